"""`vilmedic-ssl select`: the images whose labels would teach most, added to a list of ids."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.data.splits import TRAIN
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment.data import dataset_of, refuse_another_division
from vilmedic_ssl.experiment.scoring import features_of, open_run
from vilmedic_ssl.files import write_text

if TYPE_CHECKING:
    from vilmedic_ssl.data.datasets.base import MedicalDataset
    from vilmedic_ssl.executors.selection import How
    from vilmedic_ssl.experiment.settings import Experiment


def select(
    config: Mapping[str, Any],
    *,
    score: How,
    add: int,
    out: str | Path,
    labelled: str | Path | None = None,
) -> list[str]:
    """Score every image of the training split that is not labelled yet, add the highest ones to the
    list of those that are, and write it, with all scores beside it in `<out>.csv`; returns what
    was picked.

    The checkpoint is of the config's seed. Only the training split is read, and no label before
    the choice is made. Images are picked one by one, whoever their patients are.

    Args:
        score: entropy of the class scores, or disagreement between six views of an image.
        add: so many images.
        out: text file, one id per line, which `budget.ids` takes.
        labelled: the list so far; None = what the budget of the config names, or else nothing.

    Raises:
        UserError: wrong config, checkpoint or list; fewer images are left; a checkpoint that has
            learned from labels of other images.
    """
    from vilmedic_ssl.executors.selection import highest, worth

    file = Path(out)
    if add < 1:
        raise UserError(f"--add {add}: write 1 or more")
    if file.exists() and (labelled is None or file.resolve() != Path(labelled).resolve()):
        raise UserError(
            f"--out {file} is there already; name another file, or grow it: --labelled {file}"
        )
    table = _table_of(file)
    experiment, node, files, contents = open_run(config, own_seed=True)
    whole = dataset_of(replace(experiment, budget=None), node, TRAIN)
    there, old = _lists(experiment, whole, labelled)
    candidates = sorted(set(there) - set(old))
    if add > len(candidates):
        raise UserError(
            f"--add {add}: only {len(candidates):,} images of {TRAIN} are without a label; write "
            "that many or fewer"
        )
    for content, path in zip(contents, files, strict=True):
        refuse_another_division(experiment, content, path)
        _refuse_knowing(content, path, whole, old)
    unseen = _without_labels(whole, candidates)
    features = features_of(
        experiment, node, contents, files, score, splits=[TRAIN], make_dataset=lambda _: unseen
    )
    scores = worth(features, TRAIN, score)
    order = highest(scores, unseen.ids)
    picked = [unseen.ids[i] for i in order[:add]]
    _write(file, [*(whole.ids[i] for i in old), *picked])
    _write_table(table, [(unseen.ids[i], scores[i]) for i in order], add)
    _tell(file, whole, old, [candidates[i] for i in order[:add]])
    return picked


def _table_of(file: Path) -> Path:
    """Where the scores go: `<file>.csv`; where a list grows and the table of its last round is
    there, `<file>-2.csv` and so on.

    Raises:
        UserError: a new list, and such a table is there.
    """
    table = Path(f"{file}.csv")
    if table.exists() and not file.exists():
        raise UserError(f"--out {file}: its scores would replace {table}; name another file")
    names = (Path(f"{file}-{n}.csv") for n in itertools.count(2))
    return next(name for name in itertools.chain([table], names) if not name.exists())


def _lists(
    experiment: Experiment, whole: MedicalDataset, labelled: str | Path | None
) -> tuple[list[int], list[int]]:
    """Rows of the training split that are there, after a simulated imbalance, and those of them
    that are labelled, in the order of their list.
    """
    from vilmedic_ssl.data.budget import Budget
    from vilmedic_ssl.data.budget_rows import choose, read_ids

    budget = experiment.budget or Budget()
    seed = budget.seeded(experiment.seed)
    there = list(range(len(whole)))
    if budget.keep:
        there = choose(whole, Budget(keep=budget.keep), seed=seed).kept
    source = budget.ids if labelled is None else labelled
    if source is None:
        some = budget.limited and whole.labels is not None
        return there, choose(whole, budget, seed=seed).labelled if some else []
    row_of = {whole.ids[i]: i for i in there}
    key = "budget.ids" if labelled is None else "--labelled"
    ids = read_ids(source, key)
    if unknown := [name for name in ids if name not in row_of]:
        raise UserError(
            f"{key}: {source} names {unknown[0]!r}, which is no sample of {TRAIN}; one of its "
            f"samples is {whole.ids[0]!r}"
        )
    return there, [row_of[name] for name in ids]


def _refuse_knowing(
    content: dict[str, Any], path: Path, whole: MedicalDataset, old: Sequence[int]
) -> None:
    """Raises:
    UserError: the model has learned from labels of the training split that are not on the list.
    """
    import torch

    from vilmedic_ssl.data.datasets.resplit import members_of
    from vilmedic_ssl.executors import checkpoint

    own_ids, listed = getattr(whole, "own_ids", whole.ids), set(old)
    others = members_of([name for i, name in enumerate(own_ids) if i not in listed])
    known = int(torch.isin(others, checkpoint.labels_of(content)).sum())
    if known:
        raise UserError(
            f"{path} has learned from the labels of {known:,} images of {TRAIN} that are not among "
            f"the {len(old):,} labelled ones, so its scores know them; train it with budget.ids "
            "set to that list, name the list with --labelled, or take a model that learned without "
            "labels and was not chosen by the probe"
        )


def _without_labels(whole: MedicalDataset, rows: Sequence[int]) -> MedicalDataset:
    from vilmedic_ssl.data.datasets.part import Part

    return Part(whole, rows, hidden=set(rows))


def _write(file: Path, ids: Sequence[str]) -> None:
    """One id per line, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{name}\n" for name in ids))
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); change --out") from error


def _write_table(file: Path, rows: Sequence[tuple[str, float]], add: int) -> None:
    """id, score and picked (1 or 0) of every image that was scored, highest first."""
    from vilmedic_ssl.executors.sweep_table import as_csv
    from vilmedic_ssl.files import write_text

    scored = enumerate(rows)
    lines = [{"id": n, "score": repr(float(s)), "picked": int(i < add)} for i, (n, s) in scored]
    write_text(file, as_csv(lines))


def _tell(file: Path, whole: MedicalDataset, old: Sequence[int], new: list[int]) -> None:
    """What was written; now that the choice is made, also of which classes, where labels exist."""
    from vilmedic_ssl.data.budget_rows import label_counts

    patients = whole.patients
    groups = f" of {len({patients[i] for i in new}):,} patients" if patients else ""
    console.result(f"{file}: {len(old):,} ids, and {len(new):,} more{groups}, image by image")
    if told := label_counts(whole, new):
        console.result(f"picked by the labels in the data: {told}")
