"""Heat of phrases against outlines of findings, beside its reference rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import say
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing import _sides
from vilmedic_ssl.post_processing._cells import Cells, at_view, cells_of, scaled
from vilmedic_ssl.post_processing._inside import mean_known, over_rows
from vilmedic_ssl.post_processing._numbers import numbered, warn_of_intervals
from vilmedic_ssl.post_processing._phrases import (
    Asked,
    Phrases,
    Reader,
    Words,
    asked,
    findings_of,
    language_of,
)
from vilmedic_ssl.post_processing._shared import Features, Value

MEANS = "cnr", "signed_cnr", "miou", "miou_scaled", "pointing_game", "energy_inside"
REFERENCES = "random_init", "no_query", "other_place"
NUMBERS = (
    "chance",
    *MEANS,
    *(f"{row}/{name}" for row in REFERENCES for name in MEANS),
    *(f"minus_{row}/{name}" for row in REFERENCES for name in MEANS),
    *(f"minus_chance/{name}" for name in MEANS[2:]),
)


SHARES = "chance", "miou", "miou_scaled", "pointing_game", "energy_inside", "right_way"


def limits_of(name: str) -> tuple[float, float]:
    """Between which a number of this page lies; contrasts have no limits."""
    *rows, kind = (part for part in name.split("/"))
    if kind not in SHARES:
        rows, kind = rows[:-1], rows[-1] if rows else kind  # "<number>/<finding>"
    if kind not in SHARES:
        return metrics.UNLIMITED
    return metrics.DIFFERENCE if any(row.startswith("minus_") for row in rows) else metrics.UNIT


@dataclass(frozen=True)
class Keys:
    """The keys of `grounding` that say how it measures."""

    phrases: Phrases
    of_report: bool
    sigma: float
    tolerance: float
    left_is: str
    lateral: Sequence[str]
    measured: int
    draws: int


def measure(
    features: Features, split: str, readers: dict[str, Reader], keys: Keys
) -> Iterator[tuple[str, Value]]:
    """Numbers of one split; `readers` are the trained ("model") and the untrained one.

    Yields:
        "<split>/grounding/<metric>" as in `NUMBERS`, by finding chance and `MEANS`, then
        "side/..." of the trained and the untrained network; intervals over patients.

    Raises:
        UserError: no outlines, or no phrase for any.
    """
    data = features.dataset(split)
    known = findings_of(data, "grounding")
    words = Words(keys.phrases, known, "grounding.phrases", language_of(data))
    reports = readers["model"].reports(split) if keys.of_report else None
    found = asked(features, split, words, most=keys.measured, reports=reports)
    if not found:
        raise UserError(
            f"grounding: no outlined finding of {split} is labelled true"
            + (" and named in its image's report" if keys.of_report else "")
        )
    sided = _sides.sided(data, found, keys.lateral)
    own = [(item.image, item.phrase) for item in found]
    bare = [(item.image, words.of(name)) for item in found for name in words.templates]
    asked_of = {"model": [*own, *bare], "random_init": own}
    cells = {
        source: cells_of(
            reader,
            split,
            [*asked_of[source], *_sides.queries(sided)],
            sigma=keys.sigma,
            desc=f"{split}, heat of {source}",
        )
        for source, reader in readers.items()
    }
    names = data.ids if data.patients is None else data.patients
    drawn = {"draws": keys.draws, "seed": features.seed}

    def values(
        rows_NK: np.ndarray, items: Sequence[Asked], called: Sequence[str], warns: bool = False
    ) -> Iterator:
        groups = np.array([names[item.image] for item in items])
        limits = [limits_of(name) for name in called]
        made = over_rows(mean_known, rows_NK, rows_NK, groups, limits=limits, **drawn)
        if warns:
            warn_of_intervals("grounding", split, made)
        yield from numbered([f"{split}/grounding/{name}" for name in called], made).items()

    rows_NK = _rows(features, split, found, words, cells, keys.tolerance)
    yield from values(rows_NK, found, NUMBERS, warns=True)
    of_N, some = np.array([item.finding for item in found]), slice(0, 1 + len(MEANS))
    for finding in words.templates:
        mine = [item for item in found if item.finding == finding]
        if mine:
            called = [f"{name}/{finding}" for name in NUMBERS[some]]
            yield from values(rows_NK[of_N == finding, some], mine, called)
    if not sided:
        say(f"grounding: no phrase of {split} names a side that its picture shows; no side test")
        return
    for source, before in (("model", ""), ("random_init", "random_init/")):
        made = _sides.rows(
            features,
            split,
            readers[source],
            cells[source],
            sided,
            left_is=keys.left_is,
            sigma=keys.sigma,
        )
        yield from values(made, sided, [before + name for name in _sides.NAMES])


def scores(heat_HW: np.ndarray | None, inside_HW: np.ndarray, tolerance: float) -> list[float]:
    """`MEANS` of one map of cosines; nan without a map."""
    if heat_HW is None:
        return [np.nan] * len(MEANS)
    even_HW = scaled(heat_HW)
    found = [
        metrics.grounding_cnr(heat_HW, inside_HW),
        metrics.grounding_cnr(heat_HW, inside_HW, signed=True),
        metrics.miou(heat_HW, inside_HW),
        metrics.miou(even_HW, inside_HW),
        metrics.pointing_game(heat_HW, inside_HW, tolerance=tolerance),
        metrics.energy_inside(even_HW, inside_HW),
    ]
    return [value if np.isfinite(value) else np.nan for value in found]


def _rows(
    features: Features,
    split: str,
    found: Sequence[Asked],
    words: Words,
    cells: dict[str, Cells],
    tolerance: float,
) -> np.ndarray:
    """(N, len(NUMBERS)); nan where a number is not defined."""
    usual = UsualPlace(features, split, found)
    rows = []
    for item in found:
        others = [words.of(name) for name in words.templates if name != item.finding]
        unasked = [cells["model"][item.image, phrase] for phrase in others]
        cells_hw = [
            cells["model"][item.image, item.phrase],
            cells["random_init"][item.image, item.phrase],
            np.mean(unasked, axis=0) if unasked else None,
        ]
        maps_HW = [None if c is None else at_view(c, item.inside.shape) for c in cells_hw]
        model, *references = np.array(
            [scores(heat_HW, item.inside, tolerance) for heat_HW in (*maps_HW, usual.of(item))]
        )
        minus = [model - reference for reference in references]
        chance = item.inside.mean()
        above = model[2:] - chance
        rows.append(np.concatenate([[chance], model, *references, *minus, above]))
    return np.array(rows)


class UsualPlace:
    """Where other patients have the same finding, on the same side, in the same kind of picture."""

    def __init__(self, features: Features, split: str, found: Sequence[Asked]):
        data = features.dataset(split)
        self.patients = data.ids if data.patients is None else data.patients
        self.views = data.projections or [""] * len(data)
        self.sums: dict[tuple[str, ...], tuple[np.ndarray, int]] = {}
        for item in found:
            for key in self._keys(item):
                total, count = self.sums.get(key, (np.zeros(item.inside.shape), 0))
                self.sums[key] = total + item.inside, count + 1

    def _keys(self, item: Asked) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of all patients, and of the item's own."""
        key = item.finding, item.side, self.views[item.image]
        return key, (*key, self.patients[item.image])

    def of(self, item: Asked) -> np.ndarray | None:
        """(H, W) in [0, 1]: share of the others' outlines; None where there are none."""
        (total, count), (own, mine) = (self.sums[key] for key in self._keys(item))
        return (total - own) / (count - mine) if count > mine else None
