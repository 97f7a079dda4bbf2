"""How many independent patients stand behind a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vilmedic_ssl.metrics.arrays import labelled
from vilmedic_ssl.metrics.ranking import one_hot


@dataclass(frozen=True)
class Support:
    """Of K numbers, each array (K,), or of one, each a number.

    Attributes:
        groups: patients in the smallest part that the number rests on.
        equal: that many equal ones they count as; the smallest of all parts.
        freedom: degrees of freedom of a bootstrap variance; 0 where a part rests on one patient.
        inflation: what a bootstrap variance is multiplied with to be unbiased.
    """

    groups: Any
    equal: Any
    freedom: Any
    inflation: Any

    @staticmethod
    def of(parts: Sequence[np.ndarray], groups: Sequence[Any] | np.ndarray | None) -> Support:
        """Of one number.

        Patients with unequally many rows count as n = (sum w)^2 / sum w^2 equal ones (Kish 1965), w
        being the rows of each. A number that rests on several parts, as an AUROC does on images
        with and without the finding, is taken to have a variance of 1/n from each; their degrees of
        freedom n - 1 are joined as by Satterthwaite (1946), and a bootstrap variance is short by
        the factor (n - 1) / n of each. As parts may be of the same patients, the degrees of freedom
        are never more than those of all parts together.

        Args:
            parts: (N,) bool each: the rows of a part; none: the number rests on nothing.
            groups: N patients; None: every row by itself.
        """
        if not len(parts):
            return Support(0, 0.0, 0.0, 1.0)
        names = np.arange(len(parts[0])) if groups is None else np.asarray(groups)
        _, of_N = np.unique(names, return_inverse=True)
        size = [np.bincount(of_N[part]) for part in parts]
        together = _equal(np.bincount(of_N[np.any(parts, axis=0)]))
        count = min(int((w > 0).sum()) for w in size)
        if count == 0:
            return Support(0, 0.0, 0.0, 1.0)
        n = np.array([_equal(w) for w in size])
        if (n <= 1 + 1e-9).any():
            return Support(count, 1.0, 0.0, 1.0)
        freedom = min((1 / n).sum() ** 2 / (1 / (n**2 * (n - 1))).sum(), together - 1)
        inflation = (1 / n).sum() / ((n - 1) / n**2).sum()
        return Support(count, float(n.min()), float(freedom), float(inflation))

    @staticmethod
    def joined(each: Sequence[Support]) -> Support:
        """Of K numbers, one after the other."""
        table = np.array([list(vars(s).values()) for s in each], dtype=np.float64).reshape(-1, 4)
        return Support(*table.T)

    def followed_by(self, other: Support) -> Support:
        """These numbers, then those of `other`."""
        mine, others = vars(self).values(), vars(other).values()
        return Support(*(np.append(a, b) for a, b in zip(mine, others, strict=True)))


def _equal(w: np.ndarray) -> float:
    """How many patients with equally many rows w ones count as."""
    square = float((w.astype(np.float64) ** 2).sum())
    return float(w.sum()) ** 2 / square if square else 0.0


class Evidence:
    """What the usual scores of classes or findings rest on.

    Args:
        y: (N,) classes, -1 unlabelled, or (N, C) findings in {0, 1, nan}.
        classes: C.
        groups: N patients; None: every row by itself.
    """

    def __init__(self, y: np.ndarray, classes: int, groups: Sequence[Any] | np.ndarray | None):
        self.findings, self.groups = y.ndim == 2, groups
        self.labelled_N = labelled(y)
        self.hot_NC = y if self.findings else one_hot(y, classes)

    def of_all(self) -> Support:
        """Of a share of all labelled images."""
        return Support.of([self.labelled_N], self.groups)

    def of_class(self, c: int) -> Support:
        """Of a share of the images with a class or finding."""
        return Support.of([self.hot_NC[:, c] == 1], self.groups)

    def of_ranking(self, c: int) -> Support:
        """Of the AUROC of a class or finding."""
        return Support.of([self.hot_NC[:, c] == 1, self.hot_NC[:, c] == 0], self.groups)

    def of_mean(self, counted_C: np.ndarray, *, ranking: bool = True) -> Support:
        """Of a mean over some classes or findings of what each of their images say; `ranking`: and,
        of findings, their negatives. Negatives of a class are the positives of the others.
        """
        counted_C = np.asarray(counted_C, dtype=bool)
        if ranking and not self.findings:
            counted_C = counted_C & (self.hot_NC == 1).any(axis=0)
            if counted_C.sum() == 1:
                return self.of_ranking(int(counted_C.argmax()))
        parts = list((self.hot_NC == 1).T[counted_C])
        if ranking and self.findings:
            parts += list((self.hot_NC == 0).T[counted_C])
        return Support.of(parts, self.groups)
