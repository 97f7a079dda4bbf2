"""Several ways of training, each with several seeds, on one set of patients: means, their spread,
and differences that are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.metrics.bootstrap import FEWEST

Measure = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Triple:
    """A number with its 95 % interval; low and high are nan where there is none."""

    value: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """1 above zero, -1 below, 0 when the interval does not tell."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Standing:
    """One way of training: the mean over its seeds, their standard deviation (0 for one seed), and
    the mean paired difference to the baseline (None for the baseline itself).
    """

    mean: Triple
    sd: float
    minus: Triple | None


def _accuracy(y: np.ndarray, score: np.ndarray) -> float:
    return metrics.accuracy(y, score.argmax(1))


def _balanced(y: np.ndarray, score: np.ndarray) -> float:
    return metrics.balanced_accuracy(y, score.argmax(1))


def _mean_over(fn: Callable[[Any, Any], float]) -> Measure:
    def measure(y: np.ndarray, score: np.ndarray) -> float:
        many = metrics.one_hot(y, score.shape[1]) if y.ndim == 1 else y
        return metrics.macro(metrics.columns(fn, many, score))

    return measure


MEASURES: dict[str, Measure] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced,
    "auroc": _mean_over(metrics.auroc),
    "auprc": _mean_over(metrics.auprc),
}
FOR_CLASSES = ("accuracy", "balanced_accuracy")
"""What is undefined for findings, several of which may be true of an image."""


def standings(
    y: np.ndarray,
    scores: Sequence[Sequence[np.ndarray]],
    measure: Measure,
    *,
    baseline: int | None = None,
    groups: Sequence[Any] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Standing]:
    """Compare A ways of training with S seeds each on the same N rows.

    Every bootstrap draw takes patients and, independently, seeds with replacement, and the mean
    over the drawn seeds is what is looked at: so the interval of a mean, and of a difference of two
    means, covers both sources of chance. Ways are paired by patient and by seed. With few seeds
    their share of the spread is underestimated, by (S - 1) / S of its variance.

    Args:
        y: (N,) classes or (N, C) findings in {0, 1, nan}.
        scores: [A][S] arrays (N, C).
        measure: (y, scores) -> number.
        baseline: the way that others are compared with.
        groups: N patients; None: every row by itself.
        draws: below 20 there are no intervals.

    Returns:
        one standing per way, in order.
    """
    ways, seeds = len(scores), len(scores[0])
    flat = [score for of_way in scores for score in of_way]

    def each(y: np.ndarray, *rows: np.ndarray) -> np.ndarray:
        return np.array([measure(y, score) for score in rows])

    found = metrics.resample(each, y, *flat, groups=groups, draws=draws, seed=seed)
    value_AS = found.value.reshape(ways, seeds)
    drawn_RAS = found.draws.reshape(-1, ways, seeds)
    pick_RS = np.random.default_rng(seed).integers(seeds, size=(len(drawn_RAS), seeds))
    drawn_RA = np.take_along_axis(drawn_RAS, pick_RS[:, None, :], axis=2).mean(axis=2)
    mean_A = value_AS.mean(axis=1)
    sd_A = value_AS.std(axis=1, ddof=1) if seeds > 1 else np.zeros(ways)

    def triple(value: float, drawn_R: np.ndarray) -> Triple:
        if len(drawn_R) < FEWEST:
            return Triple(float(value), float("nan"), float("nan"))
        low, high = np.quantile(drawn_R, [0.025, 0.975])
        return Triple(float(value), float(low), float(high))

    made = []
    for a in range(ways):
        minus = None
        if baseline is not None and a != baseline:
            gain_R = drawn_RA[:, a] - drawn_RA[:, baseline]
            minus = triple(mean_A[a] - mean_A[baseline], gain_R)
        made.append(Standing(triple(mean_A[a], drawn_RA[:, a]), float(sd_A[a]), minus))
    return made
