"""How far a number would have moved with other patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.support import Support

FEWEST = 20  # defined draws below which a variance would be guesswork
LEAST = 5  # degrees of freedom below which no interval is printed: six patients of equal weight
MOST_LOST = 0.5  # share of undefined draws above which the others are another population
RARE = 0.01  # share of undefined draws when a part rests on about five patients: exp(-5)
SAME = "the same in every draw"
UNIT = (0.0, 1.0)
"""Limits of a share, an AUROC and the like."""
DIFFERENCE = (-1.0, 1.0)
UNLIMITED = (-np.inf, np.inf)


@dataclass
class Resampled:
    """Numbers of the whole sample and of resampled ones.

    Attributes:
        value: of the whole sample, any shape.
        draws: (R, *value.shape); nan where a draw does not define a number.
        support: what each number rests on, broadcast against `value`.
        limits: between which each number lies, (..., 2), broadcast likewise.
        requested: number of draws requested.
        unit: what was drawn, "patients" or "images".
        stated: `support` was given by who called; else that of all rows.
    """

    value: np.ndarray
    draws: np.ndarray
    support: Support
    limits: np.ndarray
    requested: int
    unit: str = "patients"
    stated: bool = True

    @property
    def lost(self) -> np.ndarray:
        """How many draws do not define a number that the whole sample defines."""
        return np.where(np.isnan(self.value), 0, np.isnan(self.draws).sum(axis=0))

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The 95 % interval of every number: `t_interval` with its variance, or `exact_interval`
        where all patients are at a limit; nan where `withheld` says why, or where too few draws
        were asked for.
        """
        low, high = t_interval(self.value, self.variance(), self.support.freedom, self.limits)
        exact = self._at_limit() & (self.withheld() == "") & (self.requested >= FEWEST)
        ends = exact_interval(self.value, self.support.equal, self.limits)
        return np.where(exact, ends[0], low), np.where(exact, ends[1], high)

    def _at_limit(self) -> np.ndarray:
        """Numbers as large, or as small, as can be: a share of 0 or 1."""
        same = self.value[..., None] == self.limits
        return same.any(axis=-1) & np.isfinite(self.limits).all(axis=-1)

    def variance(self) -> np.ndarray:
        """Of every number over samples of other patients; nan where it says nothing: no interval,
        or a number at its limit.
        """
        silent = (self.withheld() != "") | np.isnan(self.value) | (self.requested < FEWEST)
        silent |= self._at_limit()
        return np.where(silent, np.nan, _variance(self.draws) * self.support.inflation)

    def withheld(self) -> np.ndarray:
        """Per number why it has no interval, in words; "" where it has one or needs none: nothing
        was asked for (fewer than 20 draws), or the number itself is undefined.
        """
        requested, shape = self.requested, self.value.shape
        support = [np.broadcast_to(x, shape) for x in (self.support.groups, self.support.freedom)]
        spread, lost = _variance(self.draws), self.lost
        fixed = (spread < 1e-20) & ~self._at_limit()
        words = np.full(shape, "", dtype=object)
        for at in np.ndindex(shape):
            groups, freedom = int(support[0][at]), float(support[1][at])
            if np.isnan(self.value[at]) or requested < FEWEST:
                continue
            if freedom < LEAST - 1e-9:
                unit = self.unit[:-1] if groups == 1 else self.unit
                words[at] = f"{groups:,} {unit}"
                if groups > LEAST:
                    words[at] += ", some with most of the images"
            elif lost[at] > (MOST_LOST if self.stated else RARE) * requested:
                words[at] = f"undefined in {lost[at]:,} of {requested:,} draws"
            elif requested - lost[at] < FEWEST:
                words[at] = f"only {requested - lost[at]:,} draws define it"
            elif fixed[at]:
                words[at] = SAME
        return words


def _variance(draws: np.ndarray) -> np.ndarray:
    """Over the draws that define a number; 0 for fewer than two."""
    defined = ~np.isnan(draws)
    count = defined.sum(axis=0)
    mean = np.where(defined, draws, 0).sum(axis=0) / np.maximum(count, 1)
    square = np.where(defined, (draws - mean) ** 2, 0).sum(axis=0)
    return square / np.maximum(count - 1, 1)


def t_interval(
    value: Any, variance: Any, freedom: Any, limits: Any = UNLIMITED
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of Student's t around a number, on the logit scale between its limits.

    A share near 1 has more room below than above; on the scale log((x - a) / (b - x)) an interval
    is symmetric, stays within [a, b], and covers where a percentile interval is too short. Over few
    patients t is much wider than the normal distribution (Hesterberg 2015), and so is this.

    Args:
        value, variance, freedom: equal shapes, or broadcast.
        limits: (..., 2), a and b; infinite for a number without: then the plain scale.

    Returns:
        (low, high); nan where the variance is, or where the value is at a limit.
    """
    from scipy.stats import t

    value, variance = np.asarray(value, np.float64), np.asarray(variance, np.float64)
    low, high = np.moveaxis(np.asarray(limits, np.float64), -1, 0)
    with np.errstate(all="ignore"):
        reach = t.ppf(0.975, np.asarray(freedom, np.float64)) * np.sqrt(variance)
        bounded = np.isfinite(low) & np.isfinite(high)
        width, part = high - low, (value - low) / (high - low)
        inside = (part > 0) & (part < 1)
        middle, step = np.log(part / (1 - part)), reach / (width * part * (1 - part))
        ends = []
        for side in (-1, 1):
            plain = np.clip(value + side * reach, low, high)
            curved = low + width / (1 + np.exp(-(middle + side * step)))
            ends.append(np.where(bounded, np.where(inside, curved, np.nan), plain))
    return ends[0], ends[1]


def exact_interval(value: Any, patients: Any, limits: Any) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a mean whose n patients are all at one of its limits, where resampling
    changes nothing: for 1, from 0.025^(1/n), as Clopper and Pearson (1934) have it for n of n.

    For an AUROC of 1 n is the smaller number of patients, those with or without the finding: so
    many pairs are independent, and all in the right order.

    Returns:
        (low, high); nan where the value is between its limits.
    """
    low, high = np.moveaxis(np.asarray(limits, np.float64), -1, 0)
    with np.errstate(all="ignore"):
        reach = (high - low) * (1 - 0.025 ** (1 / np.asarray(patients, np.float64)))
        top, bottom = np.asarray(value) == high, np.asarray(value) == low
        below = np.where(top, high - reach, np.where(bottom, low, np.nan))
        above = np.where(top, high, np.where(bottom, low + reach, np.nan))
    return below, above


def counts_of_draws(groups: int, draws: int, seed: int) -> np.ndarray:
    """(R, G) int64: how often each group is in each draw of `resample`."""
    rng = np.random.default_rng(seed)
    groups_RG = [rng.integers(groups, size=groups) for _ in range(draws)]
    return np.array([np.bincount(g, minlength=groups) for g in groups_RG]).reshape(-1, groups)


def resample(
    fn: Callable[..., Any],
    *arrays: Any,
    groups: Sequence[Any] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    support: Support | None = None,
    limits: Any = UNLIMITED,
) -> Resampled:
    """Evaluate `fn(*arrays)` on the sample and on `draws` samples of whole groups with replacement.

    `fn` may return an array: all its numbers come from the same draws, so their differences are
    paired. A number that a draw does not define (an AUROC without a positive) is nan in that draw,
    and the others are not; no draw is repeated, which would favour samples that hold a rare class.

    Args:
        support: what the numbers rest on, broadcast against them; None = all rows. Then a number
            that over 1 % of the draws do not define has no interval, as few patients carry it.
        limits: (..., 2), between which the numbers lie, broadcast likewise.

    Raises:
        UserError: unequal numbers of rows.
    """
    arrays = tuple(np.asarray(a) for a in arrays)
    rows = len(arrays[0])
    if any(len(a) != rows for a in arrays) or (groups is not None and len(groups) != rows):
        raise UserError("bootstrap: the arrays and groups must have equally many rows")
    name_N = np.arange(rows) if groups is None else np.asarray(groups)
    _, of_N, size_G = np.unique(name_N, return_inverse=True, return_counts=True)
    member_N, start_G = np.argsort(of_N, kind="stable"), np.cumsum(size_G) - size_G
    value = np.asarray(fn(*arrays), dtype=np.float64)
    rng, values = np.random.default_rng(seed), []
    for _ in range(draws if len(size_G) > 1 else 0):
        g = rng.integers(len(size_G), size=len(size_G))
        size = size_G[g]
        first = np.repeat(start_G[g] - (np.cumsum(size) - size), size)
        row = member_N[first + np.arange(size.sum())]
        values.append(np.asarray(fn(*(a[row] for a in arrays)), dtype=np.float64))
    return Resampled(
        value,
        np.array(values).reshape(-1, *value.shape),
        Support.of([np.ones(rows, dtype=bool)], name_N) if support is None else support,
        np.broadcast_to(np.asarray(limits, np.float64), (*value.shape, 2)),
        requested=draws,
        unit="images" if groups is None else "patients",
        stated=support is not None,
    )


def bootstrap(
    fn: Callable[..., float],
    *arrays: Any,
    groups: Sequence[Any] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    limits: Any = UNLIMITED,
) -> tuple[float, float, float]:
    """`fn(*arrays)` with its 95 % interval, from resampling whole groups with replacement.

    Give both models' scores as arrays and return a difference from `fn` for a paired comparison.

    Args:
        fn: arrays -> number; nan where undefined. Such draws do not count.
        arrays: each (N, ...), resampled together by rows.
        groups: N patient names; rows of a patient stay together. None: every row by itself.
        limits: between which the number lies: (0, 1) for a share or an AUROC, (-1, 1) for their
            difference; the interval then stays inside.

    Returns:
        (value, low, high); low and high are nan where the sample says nothing about them: fewer
        than about six groups of equal weight, fewer than 20 draws, more than 1 % of them undefined,
        or the same number in all. All three are nan when `fn` is undefined on the whole sample.

    Raises:
        UserError: unequal numbers of rows.
    """
    resampled = resample(fn, *arrays, groups=groups, draws=draws, seed=seed, limits=limits)
    low, high = resampled.interval()
    return float(resampled.value), float(low), float(high)
