"""Which samples of the training split a budget takes.

Shapes: N samples, G patients, L labels (classes, or findings and none of them); `counts` says how
many images of a patient show a label, `sizes` how many images a patient has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vilmedic_ssl.data.budget import Budget
from vilmedic_ssl.data.budget_order import beginning, ordering, up_to
from vilmedic_ssl.data.divide import Cohort, pool
from vilmedic_ssl.data.lines import lines_of
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.registry import closest

if TYPE_CHECKING:
    from torch import Tensor

    from vilmedic_ssl.data.datasets.base import MedicalDataset


@dataclass(frozen=True)
class Choice:
    """What a budget makes of the training split.

    Attributes:
        kept: rows that are there, after a simulated imbalance, ascending.
        labelled: rows of `kept` whose labels may be used, ascending; of data without labels, all
            that are taken.
        told: one line about it. wanting: sentences about what the budget could not do.
    """

    kept: list[int]
    labelled: list[int]
    told: str
    wanting: list[str]


def is_labelled(dataset: MedicalDataset) -> np.ndarray:
    """(N,) bool: a class of 0 or more, or one finding at least that is known."""
    assert dataset.labels is not None
    if dataset.labels.ndim == 1:
        return np.asarray(dataset.labels >= 0)
    return np.asarray(~np.isnan(dataset.labels).all(1))


def labelled_members(dataset: MedicalDataset) -> Tensor:
    """`MedicalDataset.members` of the samples with labels."""
    from vilmedic_ssl.data.datasets.resplit import members_of

    ids = getattr(dataset, "own_ids", dataset.ids)
    rows = range(0) if dataset.labels is None else np.flatnonzero(is_labelled(dataset))
    return members_of([ids[i] for i in rows]).long()


def choose(dataset: MedicalDataset, budget: Budget, *, seed: int) -> Choice:
    """The samples of the training split that a budget takes; the order of samples does not matter.

    Args:
        seed: of the choice.

    Raises:
        UserError: labels are asked for that are not there, unknown classes or ids, or a budget too
            small for any patient.
    """
    if dataset.labels is None:
        _refuse_classes(dataset.split, budget)
    elif not is_labelled(dataset).any():
        raise UserError(
            f"budget: the split {dataset.split!r} has no labels to choose from, all are unknown; "
            "leave the section out, or take the labels out of the dataset section, and it counts "
            "images"
        )
    row_of = {name: i for i, name in enumerate(dataset.ids)}
    everything = pool({dataset.split: dataset})
    known_N = np.ones(len(dataset), bool) if dataset.labels is None else is_labelled(dataset)
    cohort = everything.part(known_N[[row_of[name] for name in everything.ids]])
    left = _imbalanced(cohort, budget.keep or {}, seed)
    gone = {row_of[name] for name in cohort.part(~left).ids}
    cohort = cohort.part(left)
    wanting: list[str] = []
    if budget.ids is not None:
        wanted = _of_file(budget.ids, dataset, {row_of[name] for name in cohort.ids}, gone)
        taken = cohort.part(np.isin([row_of[name] for name in cohort.ids], wanted))
    else:
        taken = cohort.part(_chosen(cohort, budget, seed, wanting))
    shown = taken.table_NL.sum(0).astype(int)
    absent_L = cohort.table_NL.any(0) & (shown == 0)
    if absent := [cohort.names[i] for i in np.flatnonzero(absent_L)]:
        wanting.append(f"no labelled image of {', '.join(absent)}; a larger budget has some")
    rows = sorted(row_of[name] for name in taken.ids)
    kept = [i for i in range(len(dataset)) if i not in gone]
    return Choice(kept, rows, _told(taken, len(dataset)), wanting)


def _refuse_classes(split: str, budget: Budget) -> None:
    """Raises:
    UserError: of data without labels, classes are asked for, or nothing that leaves images out.
    """
    without = f"the split {split!r} has no labels to choose from"
    instead = "write fraction, samples or ids, which then count images"
    for name in ("samples_per_class", "keep"):
        if getattr(budget, name):
            raise UserError(
                f"budget.{name}: {without}; {instead}, or name the labels in the dataset section"
            )
    if not budget.limited:
        raise UserError(f"budget: {without}; leave the section out, or {instead}")
    if budget.unlabelled == "keep":
        raise UserError(
            f"budget.unlabelled: {without}, and keep would leave all its images in; write drop, or "
            "leave the budget section out"
        )


def _told(taken: Cohort, of: int) -> str:
    groups = f" ({len(set(taken.groups)):,} patients)" if taken.known else ""
    shown = f": {_words(taken)}" if taken.names else ", without labels"
    return f"budget: {len(taken):,} of {of:,} training images{groups}{shown}"


def _words(cohort: Cohort) -> str:
    """Images per label, the most frequent first."""
    shown_L = cohort.table_NL.sum(0).astype(int)
    order = np.argsort(-shown_L, kind="stable")
    return ", ".join(f"{cohort.names[i]} {shown_L[i]:,}" for i in order)


def label_counts(dataset: MedicalDataset, rows: Iterable[int]) -> str:
    """Images per class or finding among some samples, in words; "" where none has a label."""
    if dataset.labels is None:
        return ""
    names = {dataset.ids[i] for i in set(rows) & set(np.flatnonzero(is_labelled(dataset)))}
    cohort = pool({dataset.split: dataset})
    part = cohort.part(np.array([name in names for name in cohort.ids]))
    return _words(part) if names else ""


def _ranked(cohort: Cohort, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(number of each sample's patient (N,), counts (G, L), sizes (G,)), patients in an order by
    seed and name alone, so that it is the same whoever else is there.
    """
    of_N, counts_GL, sizes_G = cohort.per_patient(cohort.table_NL)
    words = [
        f"{seed}/{name}".encode(errors="surrogateescape")
        for name in np.unique(np.array(cohort.groups)).tolist()
    ]
    hashes = [hashlib.blake2b(word, digest_size=8).digest() for word in words]
    order_G = np.array(sorted(range(len(hashes)), key=hashes.__getitem__), dtype=np.int64)
    place_G = np.empty_like(order_G)
    place_G[order_G] = np.arange(len(order_G))
    return place_G[of_N], counts_GL[order_G], sizes_G[order_G]


def _imbalanced(cohort: Cohort, keep: dict[str, float], seed: int) -> np.ndarray:
    """(N,) bool: samples of patients that come early enough among those of each class in `keep`."""
    of_N, counts_GL, sizes_G = _ranked(cohort, seed)
    stays_G = np.ones(len(sizes_G), dtype=bool)
    for name, share in keep.items():
        if name not in cohort.names:
            raise UserError(
                f"budget.keep: there is no class {name!r}; {closest(name, cohort.names)}"
            )
        counts_G = counts_GL[:, cohort.names.index(name)]
        room = round(share * counts_G.sum())
        stays_G &= (counts_G == 0) | (counts_G.cumsum() <= room)
    return stays_G[of_N]


def _chosen(cohort: Cohort, budget: Budget, seed: int, wanting: list[str]) -> np.ndarray:
    """(N,) bool: the samples of the patients that a budget takes."""
    if not len(cohort):
        raise UserError("budget.keep: no labelled image is left; write larger shares")
    of_N, counts_GL, sizes_G = _ranked(cohort, seed)
    if not cohort.names:
        counts_GL = sizes_G[:, None]  # as if all images were of one class
    if budget.samples_per_class is not None:
        limit = budget.samples_per_class
        taken_G = up_to(counts_GL, limit)
        few = [
            f"{name} {int(count)}"
            for name, count in zip(cohort.names, counts_GL[taken_G].sum(0), strict=True)
            if 0 < count < limit
        ]
        if few:
            wanting.append(f"fewer than {limit} images of a class: {', '.join(few)}")
        what, least = f"samples_per_class: {limit}", int(counts_GL.max(1).min())
        instead = f"samples_per_class: {least}"
    else:
        wanted = len(cohort) if budget.samples is None else budget.samples
        if budget.fraction is not None:
            wanted = round(budget.fraction * len(cohort))
        taken_G = np.zeros(len(sizes_G), dtype=bool)
        taken_G[beginning(counts_GL, sizes_G, wanted)] = True
        if (got := int(sizes_G[taken_G].sum())) < wanted:
            why = "there are no more" if taken_G.all() else "patients stay whole"
            kind = "labelled images" if cohort.names else "images"
            wanting.append(f"{got:,} {kind} instead of {wanted:,}: {why}")
        least = int(sizes_G[next(ordering(counts_GL, sizes_G))])
        what, instead = f"{wanted} of {len(cohort)} images", f"samples: {least}"
        if budget.fraction is not None:
            instead = f"fraction: {math.ceil(1e4 * least / len(cohort)) / 1e4:g}"
    if not taken_G.any():
        raise UserError(
            f"budget: {what} takes no patient: the first to be drawn has {least:,} "
            f"image{'s' * (least != 1)}, and patients stay whole; write {instead} or more"
        )
    return taken_G[of_N]


def read_ids(path: str | Path, key: str = "budget.ids") -> list[str]:
    """The sample ids in a text file, one per line; blank lines and lines that begin with # are
    left out.

    Args:
        key: what named the file, for the sentences.

    Raises:
        UserError: no such file, not UTF-8, no id in it, or one that stands there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{key}: there is no {path}; write a text file with one sample id per line")
    lines = [line.strip() for line in lines_of(path, key)]
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids:
        raise UserError(f"{key}: {path} names no sample; write one id per line")
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{key}: {path} names {name!r} twice; keep one")
        seen.add(name)
    return ids


def _of_file(path: str, dataset: MedicalDataset, labelled: set[int], gone: set[int]) -> list[int]:
    """The rows that a file of ids names, all of them with labels.

    Args:
        labelled: rows it may name. gone: rows that `keep` left out.
    """
    row_of = {name: i for i, name in enumerate(dataset.ids)}
    rows = []
    for name in read_ids(path):
        row = row_of.get(name)
        if row is None:
            raise UserError(
                f"budget.ids: {path} names {name!r}, which is no sample of the split "
                f"{dataset.split!r}; one of its samples is {dataset.ids[0]!r}"
            )
        if row not in labelled:
            why = "budget.keep leaves it out" if row in gone else "it has no label in the data"
            raise UserError(f"budget.ids: {path} names {name!r}, but {why}; take its line out")
        rows.append(row)
    return rows
