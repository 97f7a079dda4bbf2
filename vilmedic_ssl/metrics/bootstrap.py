"""How far a number would have moved with other patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError

TRIES = 10  # attempts per wanted draw before undefined draws are given up on
FEWEST = 20  # defined draws below which a percentile would be guesswork


@dataclass
class Resampled:
    """`value` of the whole sample, `draws` of the resampled ones (first axis R), and how many draws
    were redrawn.
    """

    value: np.ndarray
    draws: np.ndarray
    redrawn: int

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The 2.5 and 97.5 percentiles; nan with fewer than 20 defined draws."""
        if len(self.draws) < FEWEST:
            return np.full_like(self.value, np.nan), np.full_like(self.value, np.nan)
        low, high = np.quantile(self.draws, [0.025, 0.975], axis=0)
        return low, high


def resample(
    fn: Callable[..., Any],
    *arrays: Any,
    groups: Sequence[Any] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Resampled:
    """Evaluate `fn(*arrays)` on the sample and on `draws` samples of whole groups with replacement.

    `fn` may return an array: all its numbers come from the same draws, so their differences are
    paired. A draw where a number is nan that the whole sample defines (a finding left with one
    class) is drawn again.
    """
    arrays = tuple(np.asarray(a) for a in arrays)
    rows = len(arrays[0])
    if any(len(a) != rows for a in arrays) or (groups is not None and len(groups) != rows):
        raise UserError("bootstrap: the arrays and groups must have equally many rows")
    name_N = np.arange(rows) if groups is None else np.asarray(groups)
    _, of_N, size_G = np.unique(name_N, return_inverse=True, return_counts=True)
    member_N, start_G = np.argsort(of_N, kind="stable"), np.cumsum(size_G) - size_G
    value = np.asarray(fn(*arrays), dtype=np.float64)
    rng, tried = np.random.default_rng(seed), 0
    kept: list[np.ndarray] = []
    while len(size_G) > 1 and len(kept) < draws and tried < TRIES * draws:
        tried += 1
        g = rng.integers(len(size_G), size=len(size_G))
        size = size_G[g]
        first = np.repeat(start_G[g] - (np.cumsum(size) - size), size)
        row = member_N[first + np.arange(size.sum())]
        drawn = np.asarray(fn(*(a[row] for a in arrays)), dtype=np.float64)
        if not (np.isnan(drawn) & ~np.isnan(value)).any():
            kept.append(drawn)
    return Resampled(value, np.array(kept).reshape(-1, *value.shape), tried - len(kept))


def bootstrap(
    fn: Callable[..., float],
    *arrays: Any,
    groups: Sequence[Any] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """`fn(*arrays)` with its 95 % percentile interval, resampling whole groups with replacement.

    Give both models' scores as arrays and return a difference from `fn` for a paired comparison.

    Args:
        fn: arrays -> number; nan where undefined. Such draws are drawn again, at most 10 x `draws`
            in all.
        arrays: each (N, ...), resampled together by rows.
        groups: N patient names; rows of a patient stay together. None: every row by itself.

    Returns:
        (value, low, high); low and high are nan with a single group or fewer than 20 defined draws,
        and all three when `fn` is undefined on the whole sample.

    Raises:
        UserError: unequal numbers of rows.
    """
    found = resample(fn, *arrays, groups=groups, draws=draws, seed=seed)
    low, high = found.interval()
    return float(found.value), float(low), float(high)
