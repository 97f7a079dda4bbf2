"""A comparison of runs for the eye: the printed table, and curves from the logs in one picture."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vilmedic_ssl import console
from vilmedic_ssl.executors.compare import Group, Training
from vilmedic_ssl.executors.sweep_plots import figure_of, plain, shortened
from vilmedic_ssl.executors.sweep_table import short_names
from vilmedic_ssl.files import atomic

# Okabe & Ito 2008, told apart with any colour vision; yellow last, it is faint on white.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#F0E442"
LINES = "-", "--", "-.", ":"
MARKERS = "osD^vPX*"
POINTS = 10  # markers on a curve at most, about
PANELS = 4  # validation scores drawn at most
HEADLINE = ("accuracy", "auroc")
KEYS = 3  # that differ, told before the numbers
WIDE = 120  # characters of a line, where no terminal says


def printed(groups: Sequence[Group], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table with the differences, the best validation scores and the headline results, as far
    as they differ and there is room; below it in words what is the same, and what found no room.
    """
    keys = list(groups[0].differs) if groups else []
    scores = [f"best {name}" for name in dict.fromkeys(n for g in groups for n in g.scores)]
    results = list(dict.fromkeys(n for g in groups for n in g.results))
    shown = [n for n in results if n.split("/")[-1] in HEADLINE and len(n.split("/")) == 3]
    told_as = {
        name: [shortened(str(row[key]), 40) for row in rows]
        for key, name in zip(keys, short_names(keys), strict=True)
    }
    first, later = list(told_as)[:KEYS], list(told_as)[KEYS:]
    columns = {"run": [group.label for group in groups], "seeds": [str(r["seeds"]) for r in rows]}
    columns |= {name: told_as[name] for name in first}
    columns |= {name: [_cell(row, name) for row in rows] for name in (*scores, *shown)}
    columns |= {name: told_as[name] for name in later}
    same = [n for n, cells in columns.items() if n != "run" and len(groups) > 1 and _equal(cells)]
    differing = {name: cells for name, cells in columns.items() if name not in same}
    fitting = _that_fit(differing)
    lines = [console.table(list(fitting), zip(*fitting.values(), strict=True))]
    told = [f"{name} {columns[name][0]}" for name in same if columns[name][0]]
    if told:
        lines.append(f"the same in all: {', '.join(told)}")
    if left := [name for name in differing if name not in fitting]:
        lines.append(f"in compare.csv, no room here: {', '.join(left)}")
    return "\n".join(lines)


def _equal(cells: Sequence[str]) -> bool:
    return len(set(cells)) == 1


def _that_fit(columns: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The first columns that fit on a line, those narrow enough; the first one always."""
    room = shutil.get_terminal_size((WIDE, 0)).columns
    found: dict[str, Sequence[str]] = {}
    for name, cells in columns.items():
        width = max(map(len, (name, *cells)))
        if not found or width + 2 <= room:
            found[name] = cells
            room -= width + 2
    return found


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, sd = row[name], row[f"{name}/sd"]
    if value is None:
        return ""
    low, high = row.get(f"{name}/low"), row.get(f"{name}/high")
    if sd is not None:
        return f"{value:.3f} +- {sd:.3f}"
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def plot_curves(groups: Sequence[Group], path: Path) -> bool:
    """Validation scores against the epoch: a colour per group, a line per seed. False, and no file,
    when no log has an evaluation.
    """
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for group in groups for name in group.scores))[:PANELS]
    if not names:
        return False
    across = min(2, len(names))
    down = -(-len(names) // across)
    figure = figure_of(4.2 * across + 0.6, 3.2 * down + 0.3 * (1 + len(groups) // across))
    for number, name in enumerate(names):
        plot = figure.add_subplot(down, across, number + 1)
        for i, group in enumerate(groups):
            for j, training in enumerate(group.trainings):
                at, values = _curve(training, name)
                label = legend_of(group) if number == j == 0 else None
                plot.plot(at, values, label=label, **_style(i, len(groups), len(at)))
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.set_xlabel("epoch", fontsize=11)
        plot.set_ylabel(name, fontsize=11)
        plain(plot)
    figure.legend(loc="outside lower left", ncols=across, frameon=False, fontsize=10)
    with atomic(path) as file:
        figure.savefig(file, dpi=150)
    return True


def _style(i: int, groups: int, points: int) -> dict[str, Any]:
    """How group `i` is drawn: the first ones wider and below, so that equal curves show both."""
    above = i / max(1, groups - 1)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "ls": LINES[(i + i // len(COLOURS)) % len(LINES)],
        "lw": 3.5 - 2 * above if groups > 1 else 1.5,
        "marker": MARKERS[i % len(MARKERS)],
        "ms": 9 - 5 * above if groups > 1 else 5,
        "markevery": max(1, points // POINTS),
        "alpha": 0.85,
    }


def legend_of(group: Group) -> str:
    """The run, and what differs, as far as there is room."""
    told = ", ".join(f"{k.split('.')[-1]} {v}" for k, v in list(group.differs.items())[:KEYS])
    return shortened(f"{group.label}: {told}" if told else group.label, 60)


def _curve(training: Training, name: str) -> tuple[list[float], list[float]]:
    """Where and what a score was; several evaluations of an epoch are spread over it."""
    found = [
        r
        for r in training.log
        if r.get("kind") == "eval" and (r.get("scores") or {}).get(name) is not None
    ]
    epochs = [r["epoch"] for r in found]
    at = []
    for i, record in enumerate(found):
        same = [k for k, epoch in enumerate(epochs) if epoch == record["epoch"]]
        at.append(record["epoch"] - 1 + (same.index(i) + 1) / len(same))
    return at, [r["scores"][name] for r in found]
