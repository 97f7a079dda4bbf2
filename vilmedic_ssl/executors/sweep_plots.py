"""The pictures of sweeps: value against each parameter, loss against learning rate, a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vilmedic_ssl.executors.sweep import Row
from vilmedic_ssl.executors.sweep_settings import Axis
from vilmedic_ssl.executors.sweep_space import listed
from vilmedic_ssl.executors.sweep_table import ranked, short_names
from vilmedic_ssl.files import atomic

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"  # told apart with any colour vision
ACROSS = 3  # panels side by side


def figure_of(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plain(plot: Any) -> None:
    """The look that all panels share."""
    plot.grid(color="#e4e8ec", lw=0.8)
    plot.set_axisbelow(True)
    plot.spines[["top", "right"]].set_visible(False)
    plot.tick_params(labelsize=10)


def shortened(text: str, length: int = 22) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def plot_sweep(
    rows: Sequence[Row], space: Mapping[str, Axis], path: Path, *, metric: str, lower: bool
) -> None:
    """One panel per parameter: a point per trial with its spread over seeds, the best in another
    colour, trials without a value as crosses along the bottom.
    """
    keys = list(space)
    across = min(ACROSS, len(keys))
    down = -(-len(keys) // across)
    figure = figure_of(max(5.0, 3.6 * across), 3.6 * down + 0.4)
    found = ranked(rows, lower=lower)
    bad = [row for row in rows if row.state == "failed" and row.names]
    for number, (key, name) in enumerate(zip(keys, short_names(keys), strict=True)):
        plot = figure.add_subplot(down, across, number + 1)
        place = _axis(plot, space[key], key)
        for row in reversed(found):  # the best on top
            best = row is found[0]
            plot.errorbar(
                place(row),
                row.value,
                yerr=row.sd,
                fmt="D" if best else "o",
                color=VERMILION if best else BLUE,
                ms=8 if best else 6,
                mec="white",
                lw=1.5,
                alpha=1.0 if best else 0.75,
                label=f"best: trial {row.trial}" if best and number == 0 else None,
            )
        for i, row in enumerate(bad):
            label = "no value" if i == number == 0 else None
            plot.plot(
                place(row), 0.02, "x", color=GREY, transform=plot.get_xaxis_transform(), label=label
            )
        plot.set_xlabel(name, fontsize=12)
        if number % across == 0:
            plot.set_ylabel(metric, fontsize=12)
        plain(plot)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=11)
    with atomic(path) as file:
        figure.savefig(file, dpi=150)


def _axis(plot: Any, axis: Axis, key: str) -> Any:
    """Prepare the x axis for one parameter; returns where on it a row stands."""
    from matplotlib.ticker import NullFormatter

    if axis.choices is None:
        assert axis.low is not None and axis.high is not None
        if axis.log:
            room = (axis.high / axis.low) ** 0.04
            plot.set_xscale("log")
            plot.set_xlim(axis.low / room, axis.high * room)
        else:
            span = 0.04 * (axis.high - axis.low)
            plot.set_xlim(axis.low - span, axis.high + span)
        if axis.log and axis.high / axis.low > 30:  # else one decade has no label in it
            plot.xaxis.set_minor_formatter(NullFormatter())
        return lambda row: row.parameters[key]
    names = list(listed(axis))
    plot.set_xticks(
        range(len(names)),
        [shortened(name) for name in names],
        rotation=30 if max(map(len, names)) * len(names) > 24 else 0,
        ha="right" if max(map(len, names)) * len(names) > 24 else "center",
    )
    plot.set_xlim(-0.5, len(names) - 0.5)
    return lambda row: names.index(row.names[key])


def plot_rates(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    path: Path,
) -> None:
    """Loss against learning rate on a logarithmic axis; what blows up leaves the picture."""
    figure = figure_of(6.0, 4.0)
    plot = figure.add_subplot()
    plot.set_xscale("log")
    plot.plot(rates, losses, color=BLUE, lw=1, alpha=0.35, label="loss of each step")
    plot.plot(rates[: len(smoothed)], smoothed, color=BLUE, lw=2, label="smoothed")
    if suggestion is not None:
        told = f"suggested: {suggestion:.2g}"
        plot.axvline(suggestion, color=VERMILION, lw=1.5, ls="--", label=told)
    low, high = min(smoothed), max(smoothed)
    room = 0.15 * (high - low) or 1.0
    plot.set_ylim(low - room, high + room)
    plot.set_xlabel("learning rate (trainor.optim_params.lr)", fontsize=12)
    plot.set_ylabel("training loss", fontsize=12)
    plain(plot)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=11)
    with atomic(path) as file:
        figure.savefig(file, dpi=150)


def plot_heat(
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    path: Path,
    *,
    title: str,
    across: str,
) -> None:
    """A table whose cells are coloured on a logarithmic scale; cells without a number are grey."""
    import numpy as np
    from matplotlib.colors import LogNorm

    found_RC = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
    wide = max(1.25, 0.11 * max(len(line) for row in texts for t in row for line in t.split("\n")))
    label = 0.09 * max(map(len, rows))
    figure = figure_of(max(4.5, label + wide * len(columns)), 1.3 + 0.55 * len(rows))
    plot = figure.add_subplot()
    plot.set_facecolor("#d9d9d9")
    known = found_RC[np.isfinite(found_RC)]
    norm = LogNorm(known.min(), max(known.max(), known.min() * 1.01)) if known.size else None
    plot.imshow(found_RC, cmap="cividis_r", norm=norm, aspect="auto")
    for r, row in enumerate(texts):
        for c, text in enumerate(row):
            dark = norm is not None and np.isfinite(found_RC[r, c]) and norm(found_RC[r, c]) > 0.55
            ink = "white" if dark else "black"
            plot.text(c, r, text, ha="center", va="center", fontsize=9, color=ink)
    plot.set_xticks(range(len(columns)), columns)
    plot.set_yticks(range(len(rows)), rows)
    plot.set_xlabel(across, fontsize=12)
    plot.set_title(title, loc="left", fontsize=12)
    plot.spines[:].set_visible(False)
    plot.tick_params(length=0, labelsize=10)
    with atomic(path) as file:
        figure.savefig(file, dpi=150)
