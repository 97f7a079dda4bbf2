"""From the predictions of a flow to its one table, in numbers and in words."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl.console import table
from vilmedic_ssl.executors.predictions import Predictions
from vilmedic_ssl.files import write_text
from vilmedic_ssl.metrics.comparison import MEASURES, Standing, standings

FIRST = ("stage", "budget", "images", "seeds", "metric")
NUMBERS = ("mean", "sd", "low", "high", "minus", "minus_low", "minus_high")
WORD = {1: "better", -1: "worse", 0: "no difference seen"}


@dataclass(frozen=True)
class Cell:
    """One stage at one label budget by one metric.

    Attributes:
        images: labelled training images, mean over seeds.
        seeds: how many.
    """

    stage: str
    budget: str
    images: float
    seeds: int
    metric: str
    standing: Standing


def cells(
    made: Mapping[str, Mapping[str, Sequence[Predictions]]],
    *,
    baseline: str | None,
    names: Sequence[str],
    draws: int,
) -> list[Cell]:
    """Compare what was predicted.

    Args:
        made: budget -> stage -> predictions, one per seed, seeds in the same order everywhere.
        baseline: the stage others are compared with.
        names: metrics.

    Raises:
        UserError: stages that were scored on other images.
    """
    found = []
    for budget, unsorted in made.items():
        first = next(iter(unsorted.values()))[0]
        stages = {n: [one.like(first, n) for one in seeds] for n, seeds in unsorted.items()}
        for name in names:
            base = None if baseline not in stages else list(stages).index(str(baseline))
            of_all = standings(
                first.labels,
                [[one.scores for one in seeds] for seeds in stages.values()],
                MEASURES[name],
                baseline=base,
                groups=first.patients,
                draws=draws,
            )
            for (stage, seeds), standing in zip(stages.items(), of_all, strict=True):
                images = float(np.mean([one.images for one in seeds]))
                found.append(Cell(stage, budget, images, len(seeds), name, standing))
    return found


def as_row(cell: Cell) -> dict[str, Any]:
    """A cell as plain values; what does not exist is None."""
    mean, minus = cell.standing.mean, cell.standing.minus
    numbers = [mean.value, cell.standing.sd, mean.low, mean.high]
    numbers += [minus.value, minus.low, minus.high] if minus else [math.nan] * 3
    plain = [None if math.isnan(x) else x for x in numbers]
    return {key: getattr(cell, key) for key in FIRST} | dict(zip(NUMBERS, plain, strict=True))


def write(found: Sequence[Cell], folder: Path, about: Mapping[str, Any]) -> None:
    """`flow.csv`, and `flow.json` with `about` beside the rows."""
    rows = [as_row(cell) for cell in found]
    table = io.StringIO()
    writer = csv.DictWriter(table, [*FIRST, *NUMBERS])
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "flow.csv", table.getvalue())
    text = json.dumps({"format": 1, **about, "rows": rows}, indent=1, ensure_ascii=False)
    write_text(folder / "flow.json", text + "\n")


def grid(found: Sequence[Cell], metric: str, cell: Any) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table, a row per budget and a column per stage; `cell` makes text."""
    of_metric = [c for c in found if c.metric == metric]
    stages = list(dict.fromkeys(c.stage for c in of_metric))
    rows = []
    for budget in dict.fromkeys(c.budget for c in of_metric):
        there = {c.stage: c for c in of_metric if c.budget == budget}
        images = next(iter(there.values())).images
        texts = [cell(there[stage]) if stage in there else "–" for stage in stages]
        rows.append([f"{budget} ({images:,.4g})", *texts])
    return ["labels (images)", *stages], rows


def mean_text(cell: Cell) -> str:
    """0.684 +- 0.049 [0.63, 0.74]."""
    mean = cell.standing.mean
    interval = "" if math.isnan(mean.low) else f" [{mean.low:.3f}, {mean.high:.3f}]"
    sd = f" ± {cell.standing.sd:.3f}" if cell.seeds > 1 else ""
    return f"{mean.value:.3f}{sd}{interval}"


def minus_text(cell: Cell) -> str:
    """+0.123 [+0.04, +0.20] better."""
    minus = cell.standing.minus
    if minus is None:
        return "–"
    if math.isnan(minus.low):
        return f"{minus.value:+.3f}"
    return f"{minus.value:+.3f} [{minus.low:+.3f}, {minus.high:+.3f}] {WORD[minus.side]}"


def as_text(found: Sequence[Cell], metrics: Sequence[str], baseline: str | None) -> str:
    """The table for a terminal: per metric the scores and, for the first, the differences."""
    parts = []
    for metric in metrics:
        parts.append(f"{metric}\n{table(*grid(found, metric, mean_text))}")
    if baseline is not None:
        rest = [cell for cell in found if cell.stage != baseline]
        told = table(*grid(rest, metrics[0], minus_text))
        parts.append(f"{metrics[0]}, difference to {baseline}\n{told}")
    return "\n\n".join(parts)


def in_words(found: Sequence[Cell], metric: str, baseline: str | None) -> list[str]:
    """Per stage: at which budgets it is better than the baseline, worse, or neither."""
    told = []
    rest = [c for c in found if c.metric == metric and c.standing.minus is not None]
    for stage in dict.fromkeys(c.stage for c in rest):
        sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for cell in rest:
            minus = cell.standing.minus
            if cell.stage == stage and minus is not None and not math.isnan(minus.low):
                sides[minus.side].append(cell.budget)
        words = [f"{WORD[side]} at {', '.join(where)}" for side, where in sides.items() if where]
        if words:
            told.append(f"{stage} against {baseline}, by {metric}: {'; '.join(words)}")
    if told and rest[0].seeds == 1:
        told.append(
            "one seed: how far another one would have moved these numbers is not in the intervals"
        )
    return told
