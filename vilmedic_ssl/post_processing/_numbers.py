"""Numbers with their intervals as plug-ins yield them, and the words that belong beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import warn
from vilmedic_ssl.metrics import Resampled
from vilmedic_ssl.metrics.bootstrap import SAME
from vilmedic_ssl.post_processing._shared import SplitFeatures, Value

NOTED = 0.01  # share of undefined draws from which it is said beside an interval
INTERVAL, LEFT_OUT = "interval", "left_out"
"""Words about a number stand under "<name>/interval" and "<name>/left_out"."""


def numbered(names: Sequence[str], found: Resampled) -> dict[str, Value]:
    """name -> (value, low, high), or the value alone where there is no interval; without what is
    undefined. "<name>/interval" says why there is none, or how many draws did not define the
    number.

    Args:
        names: of all numbers of `found`, in the order of its flattened value.
    """
    low, high = found.interval()
    every = (found.value, low, high, found.withheld(), found.lost)
    table: dict[str, Value] = {}
    for name, *cells in zip(names, *(np.ravel(x) for x in every), strict=True):
        value, below, above = map(float, cells[:3])
        withheld, lost = str(cells[3]), int(cells[4])
        if not np.isfinite(value):
            continue
        table[name] = (value, below, above) if np.isfinite([below, above]).all() else value
        if withheld:
            table[f"{name}/{INTERVAL}"] = f"no interval: {withheld}"
        elif lost > NOTED * max(1, found.requested):
            table[f"{name}/{INTERVAL}"] = f"undefined in {lost:,} of {found.requested:,} draws"
    return table


@dataclass(frozen=True)
class Left:
    """Classes or findings that a mean over them leaves out.

    Attributes:
        classes: how many there are.
        untaught: those that the training data do not show, with and without.
        one_kind: others, of which the scored split has no image, or no other image.
    """

    classes: int
    untaught: list[str]
    one_kind: list[str]

    @classmethod
    def of(
        cls,
        part: SplitFeatures,
        y: np.ndarray,
        score_NC: np.ndarray,
        names: Sequence[str] | None = None,
    ) -> Left:
        """By the labels, and by scores that are nan for what a judge was not taught.

        Args:
            names: of the classes; None = all of the split's.
        """
        names = part.label_names if names is None else names
        blank_C = np.isnan(score_NC).all(axis=0)
        hot_NC = metrics.one_hot(y, len(names)) if y.ndim == 1 else y
        one_C = ~((hot_NC == 1).any(axis=0) & (hot_NC == 0).any(axis=0)) & ~blank_C
        return cls(
            len(names),
            [name for name, blank in zip(names, blank_C, strict=True) if blank],
            [name for name, one in zip(names, one_C, strict=True) if one],
        )

    def __bool__(self) -> bool:
        return bool(self.untaught or self.one_kind)

    def notes(self, means: Iterable[str]) -> dict[str, Value]:
        """ "<mean>/left_out" -> which are left out and why; {} when none is."""
        reasons = []
        if self.untaught:
            reasons.append(f"{', '.join(self.untaught)} (not learnt from train)")
        if self.one_kind:
            reasons.append(f"{', '.join(self.one_kind)} (one kind in the split)")
        count = len(self.untaught) + len(self.one_kind)
        text = f"{count} of {self.classes}: {'; '.join(reasons)}"
        return {f"{mean}/{LEFT_OUT}": text for mean in means} if self else {}


def warn_of(plugin: str, split: str, left: Left, found: Resampled) -> None:
    """Say which classes have no score on a split, and when its intervals are withheld or rest on
    fewer draws.
    """
    if left.one_kind:
        warn(
            f"{plugin}: {', '.join(left.one_kind)} cannot be scored on {split} (all images there "
            "have it, or none); left out of the means"
        )
    if left.untaught:
        warn(
            f"{plugin}: train has no image of {', '.join(left.untaught)}, or no other one, so they "
            f"are left out of the mean AUROC on {split}; in an accuracy they count as wrong"
        )
    warn_of_intervals(plugin, split, found)


def warn_of_intervals(plugin: str, split: str, found: Resampled) -> None:
    """One sentence each on the intervals that a split is too small for, and on undefined draws."""
    words = found.withheld()
    none_K = (words != "") & (words != SAME)
    if none_K.any():
        first = ", ".join(sorted(set(words[none_K]), key=lambda word: (len(word), word))[:3])
        warn(
            f"{plugin}: {none_K.sum()} of {(~np.isnan(found.value)).sum()} numbers on {split} have "
            f"no interval, as too few {found.unit} stand behind them ({first}); each says so"
        )
    lost = int(np.where(words == "", found.lost, 0).max(initial=0))
    if lost > NOTED * max(1, found.requested):
        warn(
            f"{plugin}: up to {lost:,} of {found.requested:,} bootstrap draws of {split} missed a "
            "class and do not count where it is needed; read these intervals with care"
        )


def write_table(table: dict[str, Value], path: Path) -> Path:
    """{name: {value[, low, high][, interval][, left_out]}} as JSON."""
    data: dict[str, dict[str, float | str]] = {}
    for name, value in table.items():
        if isinstance(value, str):
            of, _, key = name.rpartition("/")
            data.setdefault(of, {})[key] = value
        elif isinstance(value, tuple):
            data.setdefault(name, {}).update(zip(("value", "low", "high"), value, strict=True))
        elif isinstance(value, float):
            data.setdefault(name, {})["value"] = value
    path.write_text(
        json.dumps(data, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
        errors="backslashreplace",
    )
    return path
