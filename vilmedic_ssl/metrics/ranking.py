"""Scores that only read the order: AUROC and AUPRC, for one column, many findings, or classes one
against the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError


def _known(y: Any, score: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the positives and of the negatives; rows whose label is nan are left out.

    Raises:
        UserError: unequal lengths, labels outside {0, 1, nan}, or a score that is nan on a known
        row.
    """
    y_N, score_N = np.asarray(y, dtype=np.float64).ravel(), np.asarray(score, np.float64).ravel()
    if len(y_N) != len(score_N):
        raise UserError(f"{len(y_N)} labels but {len(score_N)} scores: give one score per label")
    positive, negative = score_N[y_N == 1], score_N[y_N == 0]
    if len(positive) + len(negative) + np.isnan(y_N).sum() != len(y_N):
        raise UserError("labels must be 0, 1 or nan (unknown); map other values first")
    if np.isnan(positive).any() or np.isnan(negative).any():
        raise UserError("scores hold nan where the label is known; leave those rows out")
    return positive, negative


def auroc(y: Any, score: Any) -> float:
    """Chance that a positive scores above a negative, equal scores counting half.

    Args:
        y: (N,) in {0, 1, nan}; nan rows (unknown) are left out.  score: (N,), any finite scale.

    Returns:
        A number in [0, 1], or nan when only one class is present: undefined, not zero.
    """
    positive, negative = _known(y, score)
    if not len(positive) or not len(negative):
        return float("nan")
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, "left")
    not_above = np.searchsorted(negative, positive, "right")
    return float((below + not_above).sum() / (2 * len(positive) * len(negative)))


def auprc(y: Any, score: Any) -> float:
    """Average precision: precision summed over the steps of recall, no interpolation.

    Its chance level is the prevalence, which belongs beside it. Arguments as `auroc`; nan without a
    positive.
    """
    positive, negative = _known(y, score)
    if not len(positive):
        return float("nan")
    level, count = np.unique(positive, return_counts=True)
    positives = count[::-1].cumsum()[::-1]  # scoring at least this level
    negatives = len(negative) - np.searchsorted(np.sort(negative), level, "left")
    return float((count * positives / (positives + negatives)).sum() / len(positive))


def columns(fn: Callable[[Any, Any], float], y_NC: np.ndarray, score_NC: np.ndarray) -> np.ndarray:
    """`fn` (auroc, auprc) of every finding, (C,), nan where it is undefined or the score is nan
    throughout.
    """
    return np.array(
        [
            np.nan if np.isnan(s).all() else fn(y, s)
            for y, s in zip(np.asarray(y_NC).T, np.asarray(score_NC).T, strict=True)
        ]
    )


def macro(values: np.ndarray) -> float:
    """Mean of the defined values; nan when none is. An undefined finding is left out, never counted
    as 0.
    """
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def one_hot(y_N: np.ndarray, classes: int) -> np.ndarray:
    """(N,) classes -> (N, C) in {0, 1}: each class against the rest; -1 (unlabelled) becomes a row
    of nan.
    """
    y_N = np.asarray(y_N)
    hot_NC = (y_N[:, None] == np.arange(classes)).astype(np.float64)
    hot_NC[y_N < 0] = np.nan
    return hot_NC


def decided(score_NC: np.ndarray) -> np.ndarray:
    """(N,) the class with the highest score, the first of equal ones; a class whose score is nan,
    of which a judge knows nothing, is never chosen.
    """
    return np.where(np.isnan(score_NC), -np.inf, score_NC).argmax(axis=1)


def rankable(y: np.ndarray, score_NC: np.ndarray) -> np.ndarray:
    """(C,) bool: the classes, y (N,), or findings, y (N, C), that have an AUROC: images with and
    without them, and scores that are not all nan; with one class known of, nothing is ranked.
    """
    hot_NC = one_hot(y, score_NC.shape[1]) if np.ndim(y) == 1 else np.asarray(y)
    both_C = (hot_NC == 1).any(axis=0) & (hot_NC == 0).any(axis=0)
    known_C = ~np.isnan(score_NC).all(axis=0)
    return both_C & known_C & (np.ndim(y) == 2 or known_C.sum() > 1)


def learnable(y: np.ndarray, classes: int) -> np.ndarray:
    """(C,) bool: the classes, y (N,), that some rows have, or the findings, y (N, C), that some
    have and some have not: of others a judge that is fitted on these rows knows nothing.
    """
    hot_NC = one_hot(y, classes) if np.ndim(y) == 1 else np.asarray(y)
    some_C = (hot_NC == 1).any(axis=0)
    return some_C if np.ndim(y) == 1 else some_C & (hot_NC == 0).any(axis=0)


def mean_of(values_C: np.ndarray, counted_C: np.ndarray) -> float:
    """Mean over the classes counted; nan when one of them is undefined, or none is counted.

    Which ones are counted is decided once, for the whole sample, so that every bootstrap draw
    averages the same ones.
    """
    return float(values_C[counted_C].mean()) if counted_C.any() else float("nan")
