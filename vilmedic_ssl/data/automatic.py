"""The division of data that comes without one: by patient, even in what the data says of images.

It depends on everything that is there, and not on what a config leaves out or asks for, so that
leaving images out, or asking for other labels, moves none of the others; a `label` of more classes
than a column of categories has is the exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.data.patients import is_missing
from vilmedic_ssl.data.splits import refuse_shares
from vilmedic_ssl.data.spread import spread

ROLES = {"path", "patient", "study", "split", "report"}  # columns that say nothing to be even in
CELLS = {"", "-1", "0", "1", "-1.0", "0.0", "1.0"}
VALUES = 20  # a column of more different values is a number or a text, no category
COLUMNS = 64  # the most that are kept even
FAR = 0.05  # share of the images by which a split may miss its fraction without a word


def automatic(
    groups: Sequence[str], table_NL: np.ndarray, fractions: Mapping[str, float], *, seed: int = 0
) -> list[str]:
    """The split of each sample.

    Args:
        groups: the patient of each, or a name of its own.
        table_NL: (N, L) bool, which sample shows what.
        fractions: share of the images per split.

    Raises:
        UserError: impossible fractions, or fewer patients than splits.
    """
    refuse_shares(groups, fractions)
    names, shares = tuple(fractions), tuple(fractions.values())
    bits = np.ascontiguousarray(table_NL, dtype=bool)
    homes = _automatic(tuple(groups), bits.tobytes(), bits.shape[1], names, shares, seed)
    return list(homes)


def no_share(split: str, fractions: Mapping[str, float]) -> str:
    """What to say of a split that is asked for and has no fraction, as the end of a sentence."""
    return (
        f"the splits made from it are {', '.join(fractions)}; give {split} a share in "
        "dataset.fractions, which makes all of them anew, or leave it out of validator.splits or "
        "ensemblor.splits"
    )


@lru_cache(maxsize=4)  # every split of a run asks
def _automatic(
    groups: tuple[str, ...],
    table: bytes,
    columns: int,
    names: tuple[str, ...],
    shares: tuple[float, ...],
    seed: int,
) -> list[str]:
    table_NL = np.frombuffer(table, dtype=bool).reshape(len(groups), columns)
    _, of_N = np.unique(np.array(groups), return_inverse=True)
    counts_GL = np.zeros((int(of_N.max()) + 1, columns))
    np.add.at(counts_GL, of_N, table_NL)
    sizes_G, shares_S = np.bincount(of_N).astype(np.float64), np.array(shares)
    home_N = spread(counts_GL, sizes_G, shares_S, seed=seed)[of_N]
    got_S = np.bincount(home_N, minlength=len(names)) / len(groups)
    if np.abs(got_S - shares_S).max() > FAR:
        got = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, got_S, strict=True))
        _warn(
            f"the splits made by patient have {got} of the images, not "
            f"{', '.join(f'{share:.0%}' for share in shares)}: patients stay whole (one has "
            f"{int(sizes_G.max()):,} of {len(groups):,}), and each split gets every class if it can"
        )
    return [names[s] for s in home_N]


@cache
def _warn(text: str) -> None:
    console.warn(text)


def of_folders(
    classes: Sequence[str], folders: Sequence[str], groups: Sequence[str], parts: int
) -> np.ndarray:
    """(N, L) bool: a column per class, and one per folder inside the classes, where they are few
    and hold patients enough: images and masks of a class are then even each.
    """
    table_NL = one_hot(classes, sorted(set(classes)))
    if len(set(folders)) > table_NL.shape[1]:
        often = _frequent(folders, groups, parts)
        if len(often) == len(set(folders)):
            table_NL = np.concatenate([table_NL, one_hot(folders, often)], axis=1)
    return table_NL


def of_table(
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[str],
    parts: int,
    label: str | None = None,
) -> np.ndarray:
    """(N, L) bool: a column per finding (a column of 1, 0, -1 or blank) and one for none of them;
    and one per value of the columns with few values, as classes, views or devices are.

    Args:
        label: column of classes that counts however many there are.
    """
    findings, categories = [], []
    most = min(VALUES, len(set(groups)) // parts)
    for name in sorted({str(key) for row in rows for key in row} - ROLES):
        cells = [str(row.get(name, "")) for row in rows]
        spelled = {cell: "" if is_missing(cell) else cell.strip() for cell in set(cells)}
        values = set(spelled.values())
        if len(values) > max(most, len(CELLS)) and name != label:
            continue
        texts = [spelled[cell] for cell in cells]
        if values <= CELLS and values & {"1", "1.0"}:
            findings.append(np.array([text in ("1", "1.0") for text in texts]))
        elif 2 <= len(values) <= most:
            categories.append(one_hot(texts, sorted(values)))
        elif name == label:
            categories.append(one_hot(texts, _frequent(texts, groups, parts)))
    findings.sort(key=lambda column: -int(column.sum()))
    found_NL = np.stack([np.zeros(len(rows), dtype=bool), *findings[:COLUMNS]], axis=1)
    kept = [found_NL[:, 1:], ~found_NL.any(1, keepdims=True)] if findings else [found_NL[:, 1:]]
    for table_NL in sorted(categories, key=lambda table: table.shape[1]):
        if sum(table.shape[1] for table in kept) + table_NL.shape[1] <= 2 * COLUMNS:
            kept.append(table_NL)
    return np.concatenate(kept, axis=1)


def one_hot(values: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """(N, L) bool: which value each sample has."""
    number = {name: i for i, name in enumerate(names)}
    table_NL = np.zeros((len(values), len(names)), dtype=bool)
    for i, value in enumerate(values):
        if value in number:
            table_NL[i, number[value]] = True
    return table_NL


def _frequent(values: Sequence[str], groups: Sequence[str], least: int) -> list[str]:
    """The values that at least so many patients show, the most frequent first."""
    patients: dict[str, int] = {}
    for value, _ in set(zip(values, groups, strict=True)):
        patients[value] = patients.get(value, 0) + 1
    often = [value for value, count in patients.items() if count >= least]
    return sorted(often, key=lambda value: (-patients[value], value))[:COLUMNS]
