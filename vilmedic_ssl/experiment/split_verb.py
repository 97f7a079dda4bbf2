"""`vilmedic-ssl split`: a new division of an experiment's data, written as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment.settings import check
from vilmedic_ssl.schema import plain

if TYPE_CHECKING:
    import numpy as np

    from vilmedic_ssl.data.divide import Cohort, Method
    from vilmedic_ssl.data.split_file import SplitFile


FEW = 5000  # images up to which the methods that were not chosen are tried, too


def split(
    config: Mapping[str, Any],
    *,
    out: str | Path,
    method: Method | None = None,
    fractions: str | None = None,
    folds: int | None = None,
    nested: str | None = None,
    keep_test: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Divide the data of a config anew and write the division; the data stays as it is.

    Args:
        out: the JSON file, or with `folds` the folder of `fold_0.json`, `fold_1.json` ...
        method: own, random, stratified or balanced; None = stratified where there are labels.
        fractions: share of the images per split, for example train=0.8,validate=0.1,test=0.1.
        folds: number of folds, instead of fractions.
        nested: nested fractions of the training split, for example 0.01,0.1.
        keep_test: leave the data's own test split alone.
        overwrite: replace another division at `out`.

    Raises:
        UserError: options that do not go together, or that this data cannot be divided by.
    """
    from vilmedic_ssl.data.datasets.base import Context
    from vilmedic_ssl.data.datasets.resplit import home_splits
    from vilmedic_ssl.data.divide import nested as nest
    from vilmedic_ssl.data.divide import pool, rows_of
    from vilmedic_ssl.data.images import channels_owner
    from vilmedic_ssl.data.split_file import SplitFile, refuse_another, write_splits

    _refuse_contradictions(Path(out), method, fractions, folds, keep_test, seed)
    levels = _levels(nested)
    if folds:
        shares = {str(k): 1 / folds for k in range(folds)}
    else:
        shares = {} if method == "own" else _shares(fractions, keep_test)
    node = check(plain(config))["dataset"]
    if (owner := channels_owner(node)) is not None and owner["channels"] == "auto":
        owner["channels"] = "gray"  # else files would be opened, and they may be unreadable
    cohort = pool(home_splits(node, Context(split="train")))
    _introduce(cohort)
    method = method or ("stratified" if cohort.names else "random")
    divisions = _divisions(cohort, method, shares, folds, keep_test, seed)
    files = []
    for i, splits_N in enumerate(divisions):
        smallest, absent = nest(cohort, splits_N, levels, seed=seed)
        if absent:
            console.warn(
                f"fraction {levels[0]} of the training split has no room for {', '.join(absent)}"
            )
        fold = {"folds": folds, "fold": i} if folds else {"fractions": shares}
        made_by = {"method": method, "seed": seed, **fold, "nested": levels}
        made_by |= {"keep_test": keep_test, **_outcome(cohort, splits_N)}
        path = Path(out) / f"fold_{i}.json" if folds else Path(out)
        files.append(SplitFile(rows_of(cohort, splits_N, smallest), made_by, path))
    for file in files:
        if not overwrite:
            refuse_another(file)
    for file in files:
        write_splits(file)
        console.result(_told(file, levels))
    return [file.path for file in files]


def _refuse_contradictions(
    out: Path, method: str | None, fractions: str | None, folds: int | None, keep: bool, seed: int
) -> None:
    least = 2 if keep else 3
    problem = None
    if method == "own" and (fractions or folds or keep):
        problem = (
            "--method own keeps the data's splits: leave out --fractions, --folds, --keep-test"
        )
    elif fractions and folds:
        problem = "--fractions and --folds exclude each other: keep one"
    elif folds is not None and folds < least:
        problem = f"--folds {folds}: write {least} or more"
    elif folds and out.suffix == ".json":
        problem = f"--out {out}: with --folds name a folder, one file per fold goes into it"
    elif not folds and (out.is_dir() or out.suffix != ".json"):
        problem = f"--out {out}: name a file that ends in .json"
    elif seed < 0:
        problem = f"--seed {seed}: write 0 or more"
    if problem:
        raise UserError(problem)


def _levels(text: str | None) -> list[float]:
    """The fractions of --nested, ascending."""
    try:
        levels = sorted({float(part) for part in (text or "").split(",") if part.strip()})
    except ValueError:
        levels = [0.0]
    if any(not 0 < level < 1 for level in levels):
        raise UserError(f"--nested {text}: write fractions between 0 and 1, for example 0.01,0.1")
    return levels


def _shares(text: str | None, keep_test: bool) -> dict[str, float]:
    """The fractions of --fractions; without a test split to make, its share goes to the others."""
    from vilmedic_ssl.data.splits import FRACTIONS, TEST, TRAIN

    shares = {}
    for part in text.split(",") if text else [f"{k}={v}" for k, v in FRACTIONS.items()]:
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            shares[name] = float(number)
        except ValueError:
            shares[name] = 0.0
    if TRAIN not in shares or "" in shares or abs(sum(shares.values()) - 1) > 1e-6:
        shares[TRAIN] = 0.0
    if any(not 0 < share <= 1 for share in shares.values()):
        raise UserError(
            f"--fractions {text}: write shares that sum to 1, for example "
            "train=0.7,validate=0.1,test=0.2"
        )
    if keep_test:
        shares.pop(TEST, None)
    return {name: share / sum(shares.values()) for name, share in shares.items()}


def _introduce(cohort: Cohort) -> None:
    of = f" of {len(set(cohort.groups)):,} patients" if cohort.known else ""
    homes = ", ".join(
        f"{home} {cohort.homes.count(home):,}" for home in dict.fromkeys(cohort.homes)
    )
    console.say(f"{len(cohort):,} images{of}; the data's own splits: {homes}")
    if unknown := sum(cohort.unknown):
        console.warn(
            f"{unknown:,} of {len(cohort):,} images have no patient: each counts as a patient of "
            "its own, and images of one person can end up in several splits; where file names tell "
            "the patient, set dataset.patient_pattern (dataset.image.patient_pattern for pairs), "
            "in a manifest fill the column `patient`"
        )


def _divisions(
    cohort: Cohort,
    method: Method,
    shares: dict[str, float],
    folds: int | None,
    keep_test: bool,
    seed: int,
) -> list[np.ndarray]:
    """(N,) splits, one per file; tells how even they are."""
    import numpy as np

    from vilmedic_ssl.data.divide import divide, of_fold
    from vilmedic_ssl.data.splits import TEST, TRAIN, VALIDATE

    homes_N = np.array(cohort.homes)
    if method == "own":
        _refuse_shared(cohort, homes_N, "--method own")
        return [homes_N]
    kept_N = (homes_N == TEST) & keep_test
    if keep_test:
        if not kept_N.any() or kept_N.all():
            raise UserError(
                f"--keep-test: the data's own splits are {', '.join(dict.fromkeys(cohort.homes))}; "
                "it takes test and another one"
            )
        _refuse_shared(cohort, np.where(kept_N, TEST, "the rest"), "--keep-test")
    rest = cohort.part(~kept_N)
    made_N = divide(rest, shares, method=method, seed=seed)
    if cohort.names:
        console.result(_evenness(rest, shares, seed, method, made_N))
    divisions = []
    for i in range(folds or 1):
        if folds and keep_test:
            now_N = np.where(made_N == str(i), VALIDATE, TRAIN)
        else:
            now_N = of_fold(made_N.astype(int), folds, i) if folds else made_N
        splits_N = homes_N.astype(object)
        splits_N[~kept_N] = now_N
        divisions.append(splits_N.astype(str))
    return divisions


def _refuse_shared(cohort: Cohort, parts_N: np.ndarray, option: str) -> None:
    """Parts that are to stay as they are must not share patients."""
    seen: dict[str, str] = {}
    for group, part in zip(cohort.groups, parts_N, strict=True):
        if seen.setdefault(group, str(part)) != part:
            raise UserError(
                f"{option}: {group} stands in {seen[group]} and in {part}, and patients are never "
                "divided; leave the option out, or take the patient out of one of them"
            )


def _evenness(
    rest: Cohort, shares: Mapping[str, float], seed: int, method: Method, made_N: np.ndarray
) -> str:
    """A table: how far each label's frequency in a split is from that in all, by method; of many
    images only the data's own division and the one that was made.
    """
    import numpy as np

    from vilmedic_ssl.data.divide import METHODS, deviations, divide

    columns = {"own": np.array(rest.homes)} if len(set(rest.homes)) > 1 else {}
    for name in METHODS if len(rest) <= FEW else (method,):
        made = name == method
        columns[name] = made_N if made else divide(rest, shares, method=name, seed=seed)
    off = {name: 100 * deviations(rest, splits_N) for name, splits_N in columns.items()}
    total_L = rest.table_NL.sum(0).astype(int)
    rows = [
        (label, total_L[i], *(f"{off[name][i]:.2f}" for name in off))
        for i, label in enumerate(rest.names)
    ]
    rows.append(("largest", len(rest), *(f"{off[name].max():.2f}" for name in off)))
    told = "largest difference of a label's frequency in a split and in all, percentage points:\n"
    return told + console.table(("label", "images", *off), rows)


def _outcome(cohort: Cohort, splits_N: np.ndarray) -> dict[str, Any]:
    """What a split file tells people about a division."""
    from vilmedic_ssl.data.divide import counts, deviations

    off = [round(float(value), 6) for value in deviations(cohort, splits_N)]
    told: dict[str, Any] = {"grouped_by": "patient" if cohort.known else "image"}
    told["largest_deviation"] = dict(zip(cohort.names, off, strict=True))
    return told | {"counts": counts(cohort, splits_N)}


def _told(file: SplitFile, levels: list[float]) -> str:
    """One line about a written file."""
    sizes = [f"{name} {told['images']:,}" for name, told in file.made_by["counts"].items()]
    sizes += [f"{level:g} of train {len(file.of_split('train', level)):,}" for level in levels]
    return f"{file.path}, hash {file.hash}: {', '.join(sizes)}"
