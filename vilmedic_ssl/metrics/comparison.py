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
    """One way of training: the mean over its seeds, their standard deviation (nan for one seed),
    and the mean paired difference to the baseline (None where there is none to compare with).
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

    An interval is the mean plus and minus t times a standard error of two parts: the variance over
    bootstrap draws of patients, and the variance over seeds divided by S. The degrees of freedom of
    t are Welch and Satterthwaite's for that sum (Satterthwaite 1946), so that three seeds that
    disagree make it wide. A difference is taken per patient draw and per seed, where ways are
    paired, before either variance is. With one seed the interval is of patients alone.

    Args:
        y: (N,) classes or (N, C) findings in {0, 1, nan}.
        scores: [A][S] arrays (N, C).
        measure: (y, scores) -> number in [0, 1].
        baseline: the way that others are compared with.
        groups: N patients; None: every row by itself.
        draws: of patients; below 20 there are no intervals.

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
    made = []
    for a in range(ways):
        minus = None
        if baseline is not None and a != baseline:
            gain_S = value_AS[a] - value_AS[baseline]
            minus = _interval(gain_S, drawn_RAS[:, a] - drawn_RAS[:, baseline], least=-1)
        sd = float(value_AS[a].std(ddof=1)) if seeds > 1 else float("nan")
        made.append(Standing(_interval(value_AS[a], drawn_RAS[:, a], least=0), sd, minus))
    return made


def _interval(value_S: np.ndarray, drawn_RS: np.ndarray, *, least: float) -> Triple:
    """The mean over seeds with its 95 % interval, within [least, 1]."""
    from scipy.stats import t

    mean, seeds = float(value_S.mean()), len(value_S)
    if len(drawn_RS) < FEWEST:
        return Triple(mean, float("nan"), float("nan"))
    of_patients = float(drawn_RS.mean(axis=1).var(ddof=1))
    of_seeds = float(value_S.var(ddof=1)) / seeds if seeds > 1 else 0.0
    total = of_patients + of_seeds
    freedom = (seeds - 1) * total**2 / of_seeds**2 if of_seeds > 0 else np.inf
    reach = float(t.ppf(0.975, freedom)) * total**0.5
    return Triple(mean, max(least, mean - reach), min(1.0, mean + reach))
