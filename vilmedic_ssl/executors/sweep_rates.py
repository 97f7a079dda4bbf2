"""What a learning-rate range test says: the loss while the rate rises (Smith 2017, Cyclical
Learning Rates for Training Neural Networks, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 10  # steps below which there is no curve to read
SHARE = 5  # lines are fitted to a fifth of the steps: a single step says little of its rate
SURE = 2.0  # standard errors of a slope that count as falling
RULE = (
    "the rate at which the loss falls fastest per decade, before its minimum: a range test (Smith "
    "2017, section 3.3), read as fastai does (Howard and Gugger 2020), slopes being those of lines "
    "fitted to a fifth of the steps"
)


@dataclass(frozen=True)
class Reading:
    """What the curve says.

    Attributes:
        smoothed: the losses before they blow up, one per step, each from a line through a fifth of
            them.
        suggestion: the rate of steepest descent; None where the loss does not fall for sure.
        lowest: the rate with the lowest smoothed loss; beyond it training gets worse.
    """

    smoothed: list[float]
    suggestion: float | None
    lowest: float | None


def read_curve(rates: Sequence[float], losses: Sequence[float]) -> Reading:
    """Find the rates that a curve of one loss per rate speaks for.

    Args:
        rates: rising, evenly on a logarithmic scale.
        losses: means over the images of a step, as the trainor logs them, finite.
    """
    y_N = np.asarray(losses[: before_blow_up(losses)], dtype=float)
    x_N = np.log10(np.asarray(rates[: len(y_N)], dtype=float))
    if len(y_N) < FEWEST:
        return Reading(y_N.tolist(), None, None)
    smoothed_N, slope_N, error_N = _lines(x_N, y_N, max(5, len(y_N) // SHARE))
    lowest = int(smoothed_N.argmin())
    sure_N = np.where(slope_N < -SURE * error_N, slope_N, 0.0)[: max(1, lowest)]
    steepest = int(sure_N.argmin())
    suggestion = float(rates[steepest]) if sure_N[steepest] < 0 else None
    return Reading(smoothed_N.tolist(), suggestion, float(rates[lowest]))


def _lines(x_N: np.ndarray, y_N: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
    """Value, slope and standard error of the slope of a line through the `width` points around
    each; at the ends, through the first and last ones.
    """
    count = len(x_N)
    begin_N = np.clip(np.arange(count) - width // 2, 0, count - width)
    take_NW = begin_N[:, None] + np.arange(width)
    x_NW, y_NW = x_N[take_NW], y_N[take_NW]
    dx_NW = x_NW - x_NW.mean(axis=1, keepdims=True)
    dy_NW = y_NW - y_NW.mean(axis=1, keepdims=True)
    spread_N = (dx_NW**2).sum(axis=1)
    slope_N = (dx_NW * dy_NW).sum(axis=1) / spread_N
    left_NW = dy_NW - slope_N[:, None] * dx_NW
    error_N = np.sqrt((left_NW**2).sum(axis=1) / (width - 2) / spread_N)
    value_N = y_NW.mean(axis=1) + slope_N * (x_N - x_NW.mean(axis=1))
    return value_N, slope_N, error_N


def before_blow_up(losses: Sequence[float]) -> int:
    """How many steps come before the loss leaves the band that it started in, upwards, by more
    than it had fallen below it; a bound that also holds for losses below zero.
    """
    begin = np.asarray(losses[: max(3, len(losses) // 10)], dtype=float)
    level, noise = float(np.median(begin)), float(np.ptp(begin))
    lowest = np.minimum.accumulate(np.asarray(losses, dtype=float))
    bound = level + np.maximum(level - lowest, 3 * noise) + 1e-6 * abs(level)
    beyond = np.flatnonzero(np.asarray(losses) > bound)
    return int(beyond[0]) if len(beyond) else len(losses)
