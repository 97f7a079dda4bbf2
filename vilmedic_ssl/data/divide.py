"""From the samples of some data to a new division: whole, in folds, with nested fractions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vilmedic_ssl.data.patients import Unknown
from vilmedic_ssl.data.split_file import Row
from vilmedic_ssl.data.splits import TEST, TRAIN, VALIDATE, assign, refuse_shares
from vilmedic_ssl.data.spread import spread
from vilmedic_ssl.data.stratify import balance, deviation, nest
from vilmedic_ssl.errors import UserError

if TYPE_CHECKING:
    from vilmedic_ssl.data.datasets.base import MedicalDataset

Method = Literal["own", "random", "stratified", "balanced"]
METHODS: tuple[Method, ...] = ("random", "stratified", "balanced")  # that make splits
COMBINATIONS = 50  # label combinations that are kept even, the most frequent ones


@dataclass(frozen=True)
class Cohort:
    """All samples of some data, in an order of their own.

    Attributes:
        homes, ids: split in the data, and name there.
        groups: the patient of each sample, or the sample itself.
        unknown: True for samples whose patient is unknown.
        names: one per column: the classes, or the findings and `none positive`.
        table_NL: (N, L) float64 in {0, 1}: which sample shows what.
    """

    homes: list[str]
    ids: list[str]
    groups: list[str]
    unknown: list[bool]
    names: list[str]
    table_NL: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, mask_N: np.ndarray) -> Cohort:
        """The samples a mask is true for."""
        rows = np.flatnonzero(mask_N)
        columns = {
            name: [getattr(self, name)[i] for i in rows]
            for name in ("homes", "ids", "groups", "unknown")
        }
        return replace(self, **columns, table_NL=self.table_NL[rows])

    @property
    def known(self) -> bool:
        """True when any patient is."""
        return not all(self.unknown)

    def per_patient(self, table_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(patient of each sample (N,), counts (G, F), images per patient (G,))."""
        patients, of_N = np.unique(np.array(self.groups), return_inverse=True)
        counts_GF = np.zeros((len(patients), table_NF.shape[1]))
        np.add.at(counts_GF, of_N, table_NF)
        return of_N, counts_GF, np.bincount(of_N).astype(np.float64)


def pool(homes: Mapping[str, MedicalDataset]) -> Cohort:
    """The samples of all splits of some data, sorted, so that the order of files or rows does not
    matter.

    Raises:
        UserError: a sample stands twice in a split, or the splits have different classes.
    """
    rows = []
    names, multi = next(iter(homes.values())).label_names, False
    for home, data in homes.items():
        if data.label_names != names:
            raise UserError(
                f"split {home!r} of the data has other classes than the first one; give all "
                "splits the same ones"
            )
        patients = data.patients or [Unknown()] * len(data)
        columns, multi = _columns(data), data.labels is not None and data.labels.ndim == 2
        for i, name in enumerate(data.ids):
            rows.append((home, name, patients[i], columns[i]))
    rows.sort(key=lambda row: row[:2])
    for one, next_one in zip(rows, rows[1:], strict=False):
        if one[:2] == next_one[:2]:
            raise UserError(f"{one[1]!r} stands twice in split {one[0]!r} of the data; keep one")
    return Cohort(
        [row[0] for row in rows],
        [row[1] for row in rows],
        [f"sample {r[0]}:{r[1]}" if isinstance(r[2], Unknown) else f"patient {r[2]}" for r in rows],
        [isinstance(row[2], Unknown) for row in rows],
        [*names, "none positive"] if multi else list(names),
        np.stack([row[3] for row in rows]),
    )


def _columns(data: MedicalDataset) -> np.ndarray:
    """(N, L) float64: one column per class, or per finding and one for none of them."""
    if data.labels is None:
        return np.zeros((len(data), 0))
    if data.labels.ndim == 1:
        return np.eye(len(data.label_names))[data.labels]
    positive_NC = (data.labels == 1).astype(np.float64)
    return np.concatenate([positive_NC, 1 - positive_NC.max(1, keepdims=True, initial=0)], axis=1)


def divide(cohort: Cohort, shares: Mapping[str, float], *, method: Method, seed: int) -> np.ndarray:
    """(N,) the split of each sample; patients stay whole.

    Args:
        shares: fraction of the images per split, positive, summing to 1.

    Raises:
        UserError: fewer patients than splits, impossible fractions, or no labels to go by.
    """
    refuse_shares(cohort.groups, shares)
    if method == "random":
        return np.array(assign(cohort.groups, fractions=shares, seed=seed))
    if not cohort.names:
        raise UserError(
            f"--method {method}: this data has no labels; name them in the dataset section, or "
            "write --method random"
        )
    shares_S = np.array(list(shares.values()))
    of_N, counts_GL, sizes_G = cohort.per_patient(cohort.table_NL)
    if method == "stratified":
        home_G = spread(counts_GL, sizes_G, shares_S, seed=seed)
    else:
        more_GF = _combinations(cohort, least=1 / shares_S.min())
        start_G = spread(counts_GL, sizes_G, shares_S, seed=seed)
        home_G = balance(start_G, counts_GL, more_GF, sizes_G, shares_S, seed=seed)
    return np.array(list(shares))[home_G][of_N]


def _combinations(cohort: Cohort, *, least: float) -> np.ndarray:
    """(G, F): images of each patient with one of the frequent label combinations, those that enough
    patients show for one in every split; the last column is 1, to spread patients too.
    """
    _, kind_N = np.unique(cohort.table_NL, axis=0, return_inverse=True)
    kind_N = kind_N.reshape(-1)
    _, of_N = np.unique(cohort.groups, return_inverse=True)
    shown = np.unique(np.stack([of_N, kind_N], axis=1), axis=0)
    patients_K = np.bincount(shown[:, 1])
    often = np.argsort(-patients_K, kind="stable")[:COMBINATIONS]
    often = often[patients_K[often] >= least]
    _, counts_GF, _ = cohort.per_patient((kind_N[:, None] == often).astype(np.float64))
    return np.concatenate([counts_GF, np.ones((len(counts_GF), 1))], axis=1)


def deviations(cohort: Cohort, splits_N: np.ndarray) -> np.ndarray:
    """(L,) per label, the largest difference of its frequency in a split and in all, from 0 to
    1.
    """
    names, part_N = np.unique(splits_N, return_inverse=True)
    return deviation(part_N, cohort.table_NL, np.ones(len(cohort)), len(names))


def folds(cohort: Cohort, count: int, *, method: Method, seed: int) -> np.ndarray:
    """(N,) int64: the fold of each sample, from 0."""
    shares = {str(k): 1 / count for k in range(count)}
    return divide(cohort, shares, method=method, seed=seed).astype(np.int64)


def of_fold(fold_N: np.ndarray, count: int, i: int) -> np.ndarray:
    """(N,) splits: fold i is tested, the next one validates, the others train."""
    return np.where(fold_N == i, TEST, np.where(fold_N == (i + 1) % count, VALIDATE, TRAIN))


def nested(
    cohort: Cohort, splits_N: np.ndarray, fractions: list[float], *, seed: int
) -> tuple[list[float | None], list[str]]:
    """The smallest fraction of the training split each sample belongs to, and the labels the
    smallest of them has no image of.
    """
    smallest: list[float | None] = [None] * len(cohort)
    train = splits_N == TRAIN
    if not fractions or not train.any():
        return smallest, []
    part = cohort.part(train)
    of_N, counts_GL, sizes_G = part.per_patient(part.table_NL)
    level_G, absent = nest(counts_GL, sizes_G, fractions, seed=seed)
    for row, level in zip(np.flatnonzero(train), level_G[of_N], strict=True):
        smallest[row] = fractions[level] if level < len(fractions) else None
    return smallest, [cohort.names[i] for i in absent]


def rows_of(cohort: Cohort, splits_N: np.ndarray, smallest: list[float | None]) -> list[Row]:
    """What a split file holds."""
    names = [str(name) for name in splits_N]
    return list(zip(cohort.homes, cohort.ids, names, smallest, strict=True))


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: train, validate, test, then the others."""
    there = dict.fromkeys(names)
    return [name for name in dict.fromkeys((TRAIN, VALIDATE, TEST, *there)) if name in there]


def counts(cohort: Cohort, splits_N: np.ndarray) -> dict[str, dict[str, Any]]:
    """Per split: `images`, `patients` where they are known, and images per label in `labels`."""
    told = {}
    for name in in_order(str(s) for s in splits_N):
        part = cohort.part(splits_N == name)
        shown = dict(zip(cohort.names, part.table_NL.sum(0).astype(int).tolist(), strict=True))
        patients = {"patients": len(set(part.groups))} if cohort.known else {}
        told[name] = {"images": len(part), **patients, "labels": shown}
    return told
