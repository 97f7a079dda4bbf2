"""Several ways of training, each with several seeds, on one set of patients: means, their spread,
and differences that are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.metrics.bootstrap import DIFFERENCE, UNIT, Resampled, t_interval
from vilmedic_ssl.metrics.support import Evidence, Support


@dataclass(frozen=True)
class Triple:
    """A number with its 95 % interval; low and high are nan where there is none, `withheld` says
    why, in words.
    """

    value: float
    low: float
    high: float
    withheld: str = ""

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


@dataclass(frozen=True)
class Measure:
    """A score, and what it rests on.

    Attributes:
        counted: (labels, the scores (N, C) of all that are compared) -> (C,) bool: the classes or
            findings in a mean, the same ones for all.
        score: (labels, scores (N, C), (C,) bool of the classes in its mean) -> number in [0, 1].
        support: (what the labels show, the same classes) -> what the number rests on.
    """

    counted: Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float]
    support: Callable[[Evidence, np.ndarray], Support]


def rankable_by_all(y: np.ndarray, scores: Sequence[np.ndarray]) -> np.ndarray:
    """(C,) bool: what has an AUROC by every one of the scores (N, C)."""
    return np.all([metrics.rankable(y, score) for score in scores], axis=0)


def _occurring(y: np.ndarray, scores: Sequence[np.ndarray]) -> np.ndarray:
    return np.isin(np.arange(scores[0].shape[1]), y)


def _accuracy(y: np.ndarray, score: np.ndarray, counted_C: np.ndarray) -> float:
    return metrics.accuracy(y, metrics.decided(score))


def _balanced(y: np.ndarray, score: np.ndarray, counted_C: np.ndarray) -> float:
    chosen = metrics.decided(score)
    return metrics.mean_of(metrics.recalls(y, chosen, classes=score.shape[1]), counted_C)


def _ranking(fn: Callable[[Any, Any], float]) -> Measure:
    def score(y: np.ndarray, score: np.ndarray, counted_C: np.ndarray) -> float:
        many = metrics.one_hot(y, score.shape[1]) if y.ndim == 1 else y
        return metrics.mean_of(metrics.columns(fn, many, score), counted_C)

    return Measure(rankable_by_all, score, Evidence.of_mean)


MEASURES: dict[str, Measure] = {
    "accuracy": Measure(_occurring, _accuracy, lambda evidence, _: evidence.of_all()),
    "balanced_accuracy": Measure(_occurring, _balanced, Evidence.of_mean),
    "auroc": _ranking(metrics.auroc),
    "auprc": _ranking(metrics.auprc),
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

    An interval is Student's t around the mean, on the logit scale between the limits, with a
    variance of two parts: that over bootstrap draws of patients, and that over seeds divided by S.
    The degrees of freedom are Welch and Satterthwaite's for that sum (Satterthwaite 1946), so that
    few patients, or three seeds that disagree, make it wide. A difference is taken per patient draw
    and per seed, where ways are paired, before either variance is. With one seed the interval is of
    patients alone. There is none where the patients give none by themselves.

    Args:
        y: (N,) classes or (N, C) findings in {0, 1, nan}.
        scores: [A][S] arrays (N, C); a column of nan says that nothing is known of a class.
        measure: one of `MEASURES`.
        baseline: the way that others are compared with.
        groups: N patients; None: every row by itself.
        draws: of patients; below 20 there are no intervals.

    Returns:
        one standing per way, in order.
    """
    ways, seeds = len(scores), len(scores[0])
    flat = [score for of_way in scores for score in of_way]
    counted_C = measure.counted(y, flat)
    evidence = Evidence(y, flat[0].shape[1], groups)

    def each(y: np.ndarray, *rows: np.ndarray) -> np.ndarray:
        return np.array([measure.score(y, score, counted_C) for score in rows])

    found = metrics.resample(
        each,
        y,
        *flat,
        groups=groups,
        draws=draws,
        seed=seed,
        support=measure.support(evidence, counted_C),
        limits=UNIT,
    )
    value_AS = found.value.reshape(ways, seeds)
    drawn_RAS = found.draws.reshape(-1, ways, seeds)
    made = []
    for a in range(ways):
        minus = None
        if baseline is not None and a != baseline:
            gain_S = value_AS[a] - value_AS[baseline]
            minus = _triple(found, gain_S, drawn_RAS[:, a] - drawn_RAS[:, baseline], DIFFERENCE)
        sd = float(value_AS[a].std(ddof=1)) if seeds > 1 else float("nan")
        made.append(Standing(_triple(found, value_AS[a], drawn_RAS[:, a], UNIT), sd, minus))
    return made


def _triple(
    found: Resampled, value_S: np.ndarray, drawn_RS: np.ndarray, limits: tuple[float, float]
) -> Triple:
    """The mean over seeds with its interval."""
    mean, draws = value_S.mean(), drawn_RS.mean(axis=1)
    patients = replace(found, value=mean, draws=draws, limits=np.array(limits))
    of_patients = patients.variance()
    if np.isnan(of_patients):  # none, or at a limit, where all seeds are
        low, high = patients.interval()
        return Triple(float(mean), float(low), float(high), str(patients.withheld()))
    seeds, freedom = len(value_S), float(found.support.freedom)
    of_seeds = value_S.var(ddof=1) / seeds if seeds > 1 else 0.0
    total = of_patients + of_seeds
    joined = total**2 / (of_patients**2 / freedom + of_seeds**2 / max(1, seeds - 1))
    low, high = t_interval(mean, total, joined, limits)
    return Triple(float(mean), float(low), float(high))
