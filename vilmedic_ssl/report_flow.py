"""The page of a flow: the comparison as a plot, as tables and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vilmedic_ssl.executors.flow_table import Cell, grid, mean_text, minus_text
from vilmedic_ssl.files import atomic, write_text
from vilmedic_ssl.report_html import _figure, _folded, _list, _page, _section, _table, _yaml

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"
SHAPES = "o^sDvPX"
NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "auprc": "average precision",
}


def write_flow_report(
    folder: Path,
    *,
    title: str,
    cells: Sequence[Cell],
    about: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    """Write `learning_curve.png` and `flow.html` into the flow's folder; returns the page."""
    metrics = list(dict.fromkeys(cell.metric for cell in cells))
    picture = learning_curve(cells, metrics[0], folder / "learning_curve.png", about=about)
    reading = _reading(about)
    sections = [
        _section("In words", _list(map(escape, [*about["words"], *about["missing"]]))),
        _section(
            "Learning curve",
            f'<div class="one">{_figure(picture.read_bytes(), reading)}</div>',
        ),
    ]
    for metric in metrics:
        header, rows = grid(cells, metric, mean_text)
        body = _table(header, [[escape(text) for text in row] for row in rows])
        rest = [cell for cell in cells if cell.standing.minus is not None]
        if rest:
            header, rows = grid(rest, metric, minus_text)
            body += f"<h3>Difference to {escape(str(about['baseline']))}</h3>"
            body += _table(header, [[escape(text) for text in row] for row in rows])
        sections.append(_section(NAMES[metric].capitalize(), body))
    sections.append(_folded("Configuration", _yaml(config)))
    path = folder / "flow.html"
    write_text(path, _page(f"{title}: comparison", sections))
    return path


def _reading(about: Mapping[str, Any]) -> str:
    seeds = len(about["seeds"])
    return (
        f"Split {about['split']}; mean of {seeds} seed{'s' * (seeds != 1)}, each with own labels; "
        f"bars: 95 % interval over {about['draws']:,} bootstrap draws of patients and seeds."
    )


def learning_curve(
    cells: Sequence[Cell], metric: str, path: Path, *, about: Mapping[str, Any]
) -> Path:
    """One line per stage over the label budgets, fewest images first, with intervals."""
    from matplotlib.figure import Figure

    shown = [cell for cell in cells if cell.metric == metric]
    stages = list(dict.fromkeys(cell.stage for cell in shown))
    sizes = {cell.budget: cell.images for cell in shown}
    order = sorted(sizes, key=sizes.__getitem__)
    figure = Figure(figsize=(6.4, 4.6), layout="constrained", facecolor="white")
    plot = figure.add_subplot()
    for i, stage in enumerate(stages):
        points = sorted((c for c in shown if c.stage == stage), key=lambda c: c.images)
        aside = 0.4 * ((i + 0.5) / len(stages) - 0.5)  # intervals side by side
        means = [c.standing.mean for c in points]
        low = [0 if math.isnan(m.low) else max(0, m.value - m.low) for m in means]
        high = [0 if math.isnan(m.high) else max(0, m.high - m.value) for m in means]
        plot.errorbar(
            [order.index(c.budget) + aside for c in points],
            [m.value for m in means],
            yerr=[low, high],
            color=COLOURS[i % len(COLOURS)],
            marker=SHAPES[i % len(SHAPES)],
            ls="--" if stage == about["baseline"] else "-",
            lw=1.6,
            ms=6,
            elinewidth=1,
            capsize=2.5,
            label=f"{stage} (baseline)" if stage == about["baseline"] else stage,
        )
    ticks = [f"{budget}\n{sizes[budget]:,.4g}" for budget in order]
    plot.set_xticks(range(len(order)), ticks, fontsize=10)
    plot.set_xlabel("label budget, and labelled training images", fontsize=11)
    plot.set_ylabel(f"{NAMES[metric]}, {about['split']}", fontsize=11)
    plot.grid(axis="y", color="#e4e8ec", lw=0.8)
    plot.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=min(4, len(stages)), frameon=False, fontsize=10)
    with atomic(path) as file:
        figure.savefig(file, dpi=160)
    return path
