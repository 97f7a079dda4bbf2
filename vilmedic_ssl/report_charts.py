"""The report's own drawings: training curves from the log, and scores with their intervals."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Triple = tuple[float, float, float]
MODEL, SECOND, GREY = "#0072B2", "#D55E00", "#767676"  # blue and vermilion differ for every eye
WIDTH = 5.0  # inches: shrunk to a telephone, 12 points are still 11 pixels
MOST = 1000  # points per line; more cannot be seen


def curves(log: Sequence[Record]) -> Iterator[tuple[str, bytes, str]]:
    """(caption, PNG, "png") for loss, validation scores, learning rate, speed and health, where the
    log has them.
    """
    for draw in (_loss, _learning_rate, _speed, _health, _validation):
        found = draw(log)
        if found:
            yield found[0], _png(found[1]), "png"


def forest(rows: Sequence[tuple[str, Mapping[str, Triple | None]]]) -> bytes | None:
    """Points with intervals, one band per (label, {series: (value, low, high)}); None when there
    are none. Without an interval (low and high nan) a point is hollow.

    The first series is the model: drawn in colour, the others in grey shapes.
    """
    if not rows:
        return None
    figure = _canvas(height=1.0 + 0.8 * len(rows))
    plot = figure.add_subplot()
    looks = [("o", MODEL), ("s", SECOND), ("D", GREY)]
    series, told = list(rows[0][1]), set()
    for r, (_, triples) in enumerate(rows):
        if r % 2 == 0:
            plot.axhspan(r - 0.5, r + 0.5, color="#f3f5f7", zorder=0)
        there = [name for name in series if triples.get(name)]
        for place, name in enumerate(there):
            value, low, high = triples[name]  # type: ignore[misc]
            s = series.index(name)
            marker, colour = looks[s % len(looks)]
            y = r + 0.24 * (place - (len(there) - 1) / 2)
            alone = math.isnan(low) or math.isnan(high)
            if alone:
                high = value
            else:
                plot.plot([low, high], [y, y], color=colour, lw=2.5, solid_capstyle="round")
            label = None if name in told else name
            told.add(name)
            face, edge = ("white", colour) if alone else (colour, "white")
            plot.plot(value, y, marker, color=colour, ms=8, mfc=face, mec=edge, label=label)
            plot.annotate(
                f"{value:.2f}",
                (high, y),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=10,
                color=colour,
                fontweight="bold" if s == 0 else "normal",
            )
    plot.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=11)
    plot.set_ylim(len(rows) - 0.5, -0.5)
    _room(plot, [triple for _, triples in rows for triple in triples.values() if triple])
    plot.tick_params(axis="y", length=0)
    plot.grid(axis="x", color="#d8dee4", lw=0.8)
    plot.spines[["left", "top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=11, handletextpad=0.3)
    return _png(figure)


def _room(plot: Any, triples: Sequence[Triple]) -> None:
    """Room to the right of the longest interval for its number; no ticks above 1."""
    known = [number for triple in triples for number in triple if not math.isnan(number)]
    low, high = min(known), max(known)
    span = max(high - low, 0.01)
    plot.set_xlim(low - 0.06 * span, high + 0.22 * span)
    plot.set_xticks([tick for tick in plot.get_xticks() if low - 0.06 * span <= tick <= 1])


# ---------------------------------------------------------------- curves


def _loss(log: Sequence[Record]) -> tuple[str, Any] | None:
    log = _full_batches(log)
    x, loss = _series(log, "step", "loss")
    if not x:
        return None
    figure, plot = _plot("loss")
    faint = len(x) >= 20
    plot.plot(*_thin(x, loss), color=MODEL, lw=1, alpha=0.35 if faint else 1)
    if faint:
        plot.plot(*_thin(x, _smooth(loss)), color=MODEL, lw=2, label="training, smoothed")
    else:
        plot.lines[-1].set_label("training")
    at, chance = _series(log, "step", "chance")
    if at:
        plot.plot(*_thin(at, chance), color=GREY, lw=1.5, ls="--", label="chance")
    seen, score = _scores(log, "validation_loss")
    if seen:
        plot.plot(seen, score, "o-", color=SECOND, lw=1.5, ms=6, mec="white", label="validation")
    at, chance = _series(log, "eval", "chance")
    if at:
        plot.plot(at, chance, color=SECOND, lw=1.5, ls=":", label="its chance")
    _finish(plot, columns=2)
    return "Loss, with the level of guessing; a smaller batch has a lower level", figure


def _full_batches(log: Sequence[Record]) -> list[Record]:
    """The log without the steps of short batches, whose loss has a chance level of its own."""
    full = max(_series(log, "step", "chance")[1], default=0.0)
    return [
        r
        for r in log
        if r.get("kind") != "step" or not _finite(r.get("chance")) or r["chance"] > full - 1e-6
    ]


def _learning_rate(log: Sequence[Record]) -> tuple[str, Any] | None:
    return _single(log, "step", "lr", "Learning rate")


def _speed(log: Sequence[Record]) -> tuple[str, Any] | None:
    x, speed = _series(log, "step", "images_per_s")
    if not x:
        return None
    figure, plot = _plot("images per second")
    plot.plot(*_thin(x, speed), color=MODEL, lw=1.5, label="images per second")
    plot.set_ylim(bottom=0)
    at, wait = _series(log, "step", "data_wait")
    _second(plot, at, [100 * w for w in wait], "waiting for data, %", limits=(0, 100))
    _finish(plot)
    return "Speed, and the share of time waited for data", figure


def _health(log: Sequence[Record]) -> tuple[str, Any] | None:
    x, rank = _series(log, "health", "rank")
    if not x:
        return None
    figure, plot = _plot("effective rank")
    plot.plot(x, rank, "o-", color=MODEL, lw=1.5, ms=4, label="effective rank")
    plot.set_ylim(bottom=0)
    at, std = _series(log, "health", "std")
    _second(plot, at, std, "standard deviation", limits=(0, None))
    _finish(plot)
    return "Health of the embedding: both fall towards the floor when it collapses", figure


def _validation(log: Sequence[Record]) -> tuple[str, Any] | None:
    """Scores on the scale from 0 to 1, for example a kNN monitor."""
    names = dict.fromkeys(
        n
        for r in log
        if r.get("kind") == "eval"
        for n in r.get("scores") or {}
        if n not in ("validation_loss", "training_loss", "effective_rank")
    )
    lines = [(name, *_scores(log, name)) for name in list(names)[:3]]
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    figure, plot = _plot("score")
    for (name, x, y), (shape, colour) in zip(
        lines, (("o", MODEL), ("s", SECOND), ("D", GREY)), strict=False
    ):
        plot.plot(x, y, f"{shape}-", color=colour, lw=1.5, ms=6, mec="white", label=name)
    _finish(plot)
    return "Validation scores", figure


def _single(log: Sequence[Record], kind: str, key: str, caption: str) -> tuple[str, Any] | None:
    x, y = _series(log, kind, key)
    if not x:
        return None
    figure, plot = _plot(caption.lower())
    plot.plot(*_thin(x, y), color=MODEL, lw=2)
    plot.set_ylim(bottom=0)
    return caption, figure


# ---------------------------------------------------------------- helpers


def _series(log: Sequence[Record], kind: str, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that hold a finite number."""
    mine = [r for r in log if r.get("kind") == kind and _finite(r.get("step"))]
    good = [r for r in mine if _finite(r.get(key))]
    return [r["step"] for r in good], [r[key] for r in good]


def _scores(log: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    flat = [
        {"kind": r.get("kind"), "step": r.get("step"), **(r.get("scores") or {})}
        for r in log
        if r.get("kind") == "eval"
    ]
    return _series(flat, "eval", name)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < float("inf")


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    every = -(-len(x) // MOST)
    return x[::every], y[::every]


def _smooth(values: Sequence[float]) -> list[float]:
    """Running mean over a twentieth of the curve."""
    import numpy as np

    width = max(3, len(values) // 20) | 1
    padded = np.pad(np.asarray(values, dtype=float), width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid").tolist()


def _canvas(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")


def _plot(label: str) -> tuple[Any, Any]:
    figure = _canvas(3.5)
    plot = figure.add_subplot()
    plot.set_xlabel("step", fontsize=12)
    plot.set_ylabel(label, fontsize=12)
    plot.tick_params(labelsize=11)
    plot.grid(color="#e4e8ec", lw=0.8)
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot


def _second(
    plot: Any, x: Sequence[float], y: Sequence[float], label: str, *, limits: tuple[Any, Any]
) -> None:
    """A dashed line against a right-hand axis of its own."""
    if not x:
        return
    right = plot.twinx()
    right.plot(*_thin(x, y), color=SECOND, lw=1.5, ls="--")
    right.set_ylabel(label, fontsize=12, color=SECOND)
    right.tick_params(labelsize=11, colors=SECOND)
    right.set_ylim(*limits)
    right.spines[["top", "left"]].set_visible(False)
    plot.plot([], [], color=SECOND, lw=1.5, ls="--", label=label)


def _finish(plot: Any, columns: int = 3) -> None:
    plot.figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=11)


def _png(figure: Any) -> bytes:
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=160)
    return memory.getvalue()
