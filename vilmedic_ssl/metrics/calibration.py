"""Do the probabilities mean what they say?"""

from __future__ import annotations

from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.ranking import one_hot


def reliability(y: Any, p: Any, *, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points of a reliability plot: mean probability, observed share and rows per bin.

    Bins hold equally many rows (equal mass); equal probabilities always share a bin, so row order
    does not matter.

    Args:
        y: (N,) in {0, 1, nan} with p (N,) the probability of 1; or (N,) classes with p (N, C): then
            the largest probability is judged, right or wrong. Rows whose label is nan or -1
            (unknown) are left out.

    Returns:
        three (B,) arrays, B <= bins.

    Raises:
        UserError: no known row, unequal lengths, or p outside [0, 1].
    """
    y_N, p_N = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    y_N = np.where(y_N < 0, np.nan, y_N)
    if p_N.ndim == 2 and y_N.ndim == 1 and len(y_N) == len(p_N):
        y_N, p_N = np.where(np.isnan(y_N), np.nan, y_N == p_N.argmax(axis=1)), p_N.max(axis=1)
    if y_N.ndim != 1 or y_N.shape != p_N.shape or np.isnan(y_N).all() or bins < 1:
        raise UserError(
            f"calibration: labels {y_N.shape} and probabilities {p_N.shape} do not pair up"
        )
    y_N, p_N = y_N[~np.isnan(y_N)], p_N[~np.isnan(y_N)]
    if not ((p_N >= 0) & (p_N <= 1)).all():
        raise UserError(
            "calibration: probabilities must lie in [0, 1]; apply a sigmoid or softmax first"
        )
    order = np.argsort(p_N, kind="stable")
    y_N, p_N = y_N[order], p_N[order]
    place_N = np.concatenate(
        [np.full(len(part), b) for b, part in enumerate(np.array_split(p_N, min(bins, len(p_N))))]
    )
    bin_N = place_N[np.searchsorted(p_N, p_N, "left")]
    _, bin_N, count_B = np.unique(bin_N, return_inverse=True, return_counts=True)
    return np.bincount(bin_N, p_N) / count_B, np.bincount(bin_N, y_N) / count_B, count_B


def ece(y: Any, p: Any, *, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean over rows of |mean probability - observed share|
    of their bin.

    Arguments and errors as `reliability`.
    """
    confidence_B, share_B, count_B = reliability(y, p, bins=bins)
    return float(np.average(np.abs(confidence_B - share_B), weights=count_B))


def brier(y: Any, p: Any) -> float:
    """Mean squared distance of probability and truth, in [0, 1] for two arrays (N,), y in {0, 1,
    nan}; nan rows left out.

    For classes, y (N,) and p (N, C), the squared distances are summed over the classes (Brier
    1950): in [0, 2], and for two classes twice the binary number. Rows with label -1 are left out.
    nan for no labelled row.
    """
    y_N, p_N = np.asarray(y, np.float64), np.asarray(p, np.float64)
    if p_N.ndim == 1:
        square_N = (p_N - y_N) ** 2
    else:
        square_N = ((p_N - one_hot(y_N, p_N.shape[1])) ** 2).sum(axis=1)
    return float(np.nanmean(square_N)) if (~np.isnan(square_N)).any() else float("nan")
