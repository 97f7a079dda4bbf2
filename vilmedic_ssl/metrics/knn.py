"""Weighted k-nearest-neighbour vote in cosine distance: the judge that needs no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, as_labels, group_numbers, unit_rows
from vilmedic_ssl.metrics.ranking import one_hot

CHUNK = 16_000_000  # similarities held at once: 128 MB in float64
Barred = Callable[[slice], np.ndarray]
"""A run of m query rows -> (m, N) bool: the bank rows that do not count for them."""


def neighbours(
    query_x: np.ndarray,
    bank_x: np.ndarray,
    *,
    k: int,
    barred: Barred | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest bank rows of every query row, by cosine; equal cosines go to the earlier bank
    row. The cosine of barred rows is -inf.

    Returns:
        (M, K) int64 bank rows in ascending order, (M, K) cosines; K = min(k, bank rows).
    """
    bank_ND, query_MD = unit_rows(bank_x), unit_rows(query_x)
    k, step = min(k, len(bank_ND)), max(1, CHUNK // len(bank_ND))
    index, cosine = [], []
    for start in range(0, len(query_MD), step):
        part = slice(start, start + step)
        cos_MN = query_MD[part] @ bank_ND.T
        if barred is not None:
            cos_MN[barred(part)] = -np.inf
        last_M1 = np.partition(cos_MN, -k, axis=1)[:, -k, None]  # the k-th best of every row
        above_MN, equal_MN = cos_MN > last_M1, cos_MN == last_M1
        room_M1 = k - above_MN.sum(axis=1, keepdims=True)
        taken_MN = above_MN | (equal_MN & (equal_MN.cumsum(axis=1) <= room_M1))
        index.append(np.nonzero(taken_MN)[1].reshape(-1, k))
        cosine.append(cos_MN[taken_MN].reshape(-1, k))
    return np.concatenate(index), np.concatenate(cosine)


def same_group(query_M: np.ndarray, bank_N: np.ndarray) -> Barred:
    """Bars the rows of a query's own group (patient)."""
    return lambda part: np.asarray(query_M[part, None] == bank_N[None])


def knn_accuracy(
    x: Any,
    y: Any,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    k: int = 20,
    tau: float = 0.07,
) -> float:
    """Accuracy of the vote of `knn` within one set, each row judged by rows of other groups
    (patients). Features without information score at chance, whatever the size of the set.

    Leaving out the row's patient alone takes from its own class only, so that random features fall
    below chance (0.20 for 0.25 with 18 rows of 4 classes). The same share of the patients of every
    other class is therefore left out too: the patients of a class lie evenly on a circle, in a
    fixed random order, and a row of a class of P patients is not judged by what lies in the P-th
    part of the circle around its own patient.

    Args:
        x: (N, D) features.
        y: (N,) classes counted from 0, -1 = unlabelled; such rows neither vote nor count.
        groups: N patients; None or a blank one: every row by itself.

    Returns:
        Share of right rows among those whose class another patient has; nan where fewer than two
        classes have two patients.
    """
    y_N, group_N = np.asarray(y), group_numbers(groups, rows=len(x))
    if not knn_defined(y_N, groups=groups):
        return float("nan")
    known = y_N >= 0
    y_N, group_N, x_ND = y_N[known].astype(int), group_N[known], np.asarray(x)[known]
    rank_N, peers_N = _circle(y_N, group_N)
    counts_N = peers_N > 1
    place_N = (rank_N + 0.5) / peers_N
    asked = np.flatnonzero(counts_N)
    own = same_group(group_N[asked], group_N)

    def barred(part: slice) -> np.ndarray:
        rows = asked[part, None]
        return own(part) | (np.floor(place_N * peers_N[rows]) == rank_N[rows])

    x_ND = as_features(x_ND, "features")
    near_MK, cos_MK = neighbours(x_ND[asked], x_ND, k=k, barred=barred)
    votes_MC = np.zeros((len(asked), y_N.max() + 1))
    np.add.at(votes_MC, (np.arange(len(asked))[:, None], y_N[near_MK]), np.exp(cos_MK / tau))
    return float((votes_MC.argmax(1) == y_N[asked]).mean())


def knn_defined(y: Any, *, groups: Sequence[Any] | np.ndarray | None = None) -> bool:
    """True where `knn_accuracy` is: two classes at least have two patients."""
    y_N, group_N = np.asarray(y), group_numbers(groups, rows=len(y))
    several = [len(np.unique(group_N[y_N == c])) > 1 for c in np.unique(y_N[y_N >= 0])]
    return sum(several) > 1


def _circle(y_N: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each row's patient among those of its class, in a fixed random order, and how
    many these are.
    """
    rank_N, peers_N = np.zeros(len(y_N), dtype=int), np.zeros(len(y_N), dtype=int)
    dice = np.random.default_rng(0)
    for c in np.unique(y_N):
        rows = np.flatnonzero(y_N == c)
        names, of_rows = np.unique(group_N[rows], return_inverse=True)
        rank_N[rows] = dice.permutation(len(names))[of_rows]
        peers_N[rows] = len(names)
    return rank_N, peers_N


def knn_scores(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    *,
    k: int = 20,
    tau: float = 0.07,
    train_groups: Sequence[Any] | np.ndarray | None = None,
    test_groups: Sequence[Any] | np.ndarray | None = None,
) -> np.ndarray:
    """Share of the weighted vote each class or finding gets, (M, C) float64 in [0, 1].

    The k nearest training rows vote with weight exp(cosine / tau). A finding is voted on by the k
    nearest rows where it is known, and is nan where it is known nowhere. Defaults: Wu et al. 2018
    (tau 0.07); k as is usual for small sets.

    Args:
        train_x, test_x: (N, D) and (M, D) features.
        train_y: (N,) classes or (N, C) findings in {0, 1, nan}.
        train_groups, test_groups: N and M names; rows of a test row's own group (patient, or the
            image itself) do not vote for it. A row for which none is left scores 0.

    Raises:
        UserError: wrong shapes or labels, features that are not finite, k below 1, tau not above 0.
    """
    train_ND, test_MD = as_features(train_x, "train_x"), as_features(test_x, "test_x")
    label = as_labels(train_y, "train_y", rows=len(train_ND))
    if k < 1 or tau <= 0:
        raise UserError(f"knn: k must be at least 1 and tau above 0, found k={k}, tau={tau}")
    y_NC = label if label.ndim == 2 else one_hot(label, label.max() + 1)
    known_NC = ~np.isnan(y_NC)
    group_N, group_M = _numbered(train_groups, test_groups)
    score_MC = np.full((len(test_MD), y_NC.shape[1]), np.nan)
    patterns, of_C = np.unique(known_NC, axis=1, return_inverse=True)
    for p, known_N in enumerate(patterns.T):  # findings known on the same rows share one search
        if known_N.any():
            barred = same_group(group_M, group_N[known_N]) if len(group_N) else None
            voter_MK, cos_MK = neighbours(test_MD, train_ND[known_N], k=k, barred=barred)
            best_M1 = cos_MK.max(axis=1, keepdims=True)
            weight_MK = np.exp((cos_MK - np.where(np.isfinite(best_M1), best_M1, 0)) / tau)
            weight_MK /= np.maximum(weight_MK.sum(axis=1, keepdims=True), 1e-300)
            columns = np.flatnonzero(of_C.ravel() == p)
            vote_MKC = y_NC[known_N][:, columns][voter_MK]
            score_MC[:, columns] = np.einsum("mk,mkc->mc", weight_MK, vote_MKC)
    return score_MC


def _numbered(
    train: Sequence[Any] | np.ndarray | None, test: Sequence[Any] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Names of groups as numbers, which compare faster; two empty arrays where either is None."""
    if train is None or test is None:
        return np.empty(0, dtype=int), np.empty(0, dtype=int)
    names = [str(name) for part in (train, test) for name in part]
    numbers = np.unique(names, return_inverse=True)[1]
    return numbers[: len(train)], numbers[len(train) :]


def knn(train_x: Any, train_y: Any, test_x: Any, *, k: int = 20, tau: float = 0.07) -> np.ndarray:
    """The class with the largest weighted vote, (M,) values of `train_y`; equal votes go to the
    lower one.

    Args and errors as in `knn_scores`; `train_y` must be (N,), of any sortable kind.
    """
    if np.ndim(train_y) != 1:
        raise UserError("knn: train_y must be one class per row; for findings use knn_scores")
    classes, y_N = np.unique(train_y, return_inverse=True)
    return classes[knn_scores(train_x, y_N, test_x, k=k, tau=tau).argmax(axis=1)]
