"""A comparison of runs for the eye: the printed table, and curves from the logs in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vilmedic_ssl import console
from vilmedic_ssl.executors.compare import Group, Training
from vilmedic_ssl.executors.sweep_plots import figure_of, plain, shortened
from vilmedic_ssl.executors.sweep_table import short_names

# Okabe & Ito 2008, told apart with any colour vision; yellow last, it is faint on white.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#F0E442"
LINES = "-", "--", ":", "-."
PANELS = 4  # validation scores drawn at most
HEADLINE = ("accuracy", "auroc")


def printed(groups: Sequence[Group], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table with the differences, the best validation scores and the headline results."""
    keys = list(groups[0].differs) if groups else []
    scores = [f"best {name}" for name in dict.fromkeys(n for g in groups for n in g.scores)]
    results = list(dict.fromkeys(n for g in groups for n in g.results))
    shown = [n for n in results if n.split("/")[-1] in HEADLINE and len(n.split("/")) == 3]
    header = ["run", "seeds", *short_names(keys), *scores, *shown]
    cells = [
        [
            group.label,
            row["seeds"],
            *(shortened(str(row[key]), 40) for key in keys),
            *(_cell(row, name) for name in (*scores, *shown)),
        ]
        for group, row in zip(groups, rows, strict=True)
    ]
    return console.table(header, cells)


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
                first = number == 0 and j == 0
                plot.plot(
                    at,
                    values,
                    color=COLOURS[i % len(COLOURS)],
                    ls=LINES[i // len(COLOURS) % len(LINES)],
                    marker="o" if len(at) < 2 else None,
                    lw=1.5,
                    alpha=0.8,
                    label=legend_of(group) if first else None,
                )
        plot.set_xlabel("epoch", fontsize=11)
        plot.set_ylabel(name, fontsize=11)
        plain(plot)
    figure.legend(loc="outside lower left", ncols=across, frameon=False, fontsize=10)
    figure.savefig(path, dpi=150)
    return True


def legend_of(group: Group) -> str:
    """The run, and what differs, as far as there is room."""
    told = ", ".join(f"{k.split('.')[-1]} {v}" for k, v in list(group.differs.items())[:3])
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
