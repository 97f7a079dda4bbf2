"""Weighted k-nearest-neighbour vote in cosine distance: the judge that needs no training."""

from __future__ import annotations

from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, as_labels, unit_rows
from vilmedic_ssl.metrics.ranking import one_hot

CHUNK = 16_000_000  # similarities held at once: 128 MB in float64


def neighbours(
    query_x: np.ndarray,
    bank_x: np.ndarray,
    *,
    k: int,
    query_groups: np.ndarray | None = None,
    bank_groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest bank rows of every query row, by cosine; equal cosines go to the earlier bank
    row.

    With groups given, rows of the query's own group do not count (their cosine is -inf).

    Returns:
        (M, K) int64 bank rows in ascending order, (M, K) cosines; K = min(k, bank rows).
    """
    bank_ND, query_MD = unit_rows(bank_x), unit_rows(query_x)
    k, step = min(k, len(bank_ND)), max(1, CHUNK // len(bank_ND))
    index, cosine = [], []
    for start in range(0, len(query_MD), step):
        part = slice(start, start + step)
        cos_MN = query_MD[part] @ bank_ND.T
        if query_groups is not None and bank_groups is not None:
            cos_MN[query_groups[part, None] == bank_groups[None]] = -np.inf
        last_M1 = np.partition(cos_MN, -k, axis=1)[:, -k, None]  # the k-th best of every row
        above_MN, equal_MN = cos_MN > last_M1, cos_MN == last_M1
        room_M1 = k - above_MN.sum(axis=1, keepdims=True)
        taken_MN = above_MN | (equal_MN & (equal_MN.cumsum(axis=1) <= room_M1))
        index.append(np.nonzero(taken_MN)[1].reshape(-1, k))
        cosine.append(cos_MN[taken_MN].reshape(-1, k))
    return np.concatenate(index), np.concatenate(cosine)


def knn_scores(
    train_x: Any, train_y: Any, test_x: Any, *, k: int = 20, tau: float = 0.07
) -> np.ndarray:
    """Share of the weighted vote each class or finding gets, (M, C) float64 in [0, 1].

    The k nearest training rows vote with weight exp(cosine / tau). A finding is voted on by the k
    nearest rows where it is known, and is nan where it is known nowhere. Defaults: Wu et al. 2018
    (tau 0.07); k as is usual for small sets.

    Args:
        train_x, test_x: (N, D) and (M, D) features.
        train_y: (N,) classes or (N, C) findings in {0, 1, nan}.

    Raises:
        UserError: wrong shapes or labels, features that are not finite, k below 1, tau not above 0.
    """
    train_ND, test_MD = as_features(train_x, "train_x"), as_features(test_x, "test_x")
    label = as_labels(train_y, "train_y", rows=len(train_ND))
    if k < 1 or tau <= 0:
        raise UserError(f"knn: k must be at least 1 and tau above 0, found k={k}, tau={tau}")
    y_NC = label if label.ndim == 2 else one_hot(label, label.max() + 1)
    known_NC = ~np.isnan(y_NC)
    score_MC = np.full((len(test_MD), y_NC.shape[1]), np.nan)
    patterns, of_C = np.unique(known_NC, axis=1, return_inverse=True)
    for p, known_N in enumerate(patterns.T):  # findings known on the same rows share one search
        if known_N.any():
            voter_MK, cos_MK = neighbours(test_MD, train_ND[known_N], k=k)
            weight_MK = np.exp((cos_MK - cos_MK.max(axis=1, keepdims=True)) / tau)
            weight_MK /= weight_MK.sum(axis=1, keepdims=True)
            columns = np.flatnonzero(of_C.ravel() == p)
            vote_MKC = y_NC[known_N][:, columns][voter_MK]
            score_MC[:, columns] = np.einsum("mk,mkc->mc", weight_MK, vote_MKC)
    return score_MC


def knn(train_x: Any, train_y: Any, test_x: Any, *, k: int = 20, tau: float = 0.07) -> np.ndarray:
    """The class with the largest weighted vote, (M,) values of `train_y`; equal votes go to the
    lower one.

    Args and errors as in `knn_scores`; `train_y` must be (N,), of any sortable kind.
    """
    if np.ndim(train_y) != 1:
        raise UserError("knn: train_y must be one class per row; for findings use knn_scores")
    classes, y_N = np.unique(train_y, return_inverse=True)
    return classes[knn_scores(train_x, y_N, test_x, k=k, tau=tau).argmax(axis=1)]
