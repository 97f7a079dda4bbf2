"""Drawing one embedding: colours and shapes for the classes, and the words around the points."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Okabe & Ito 2008, told apart with any colour vision; yellow last, it is faint on white.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#F0E442"
SHAPES = "o", "^", "s", "D", "v", "P", "X", "*"


def scatter(
    xy_N2: np.ndarray,
    names_N: np.ndarray,
    path: Path,
    *,
    title: str,
    subtitle: str,
    axes: tuple[str, str] | None = None,
    order: list[str] | None = None,
    lines_L22: np.ndarray | None = None,
) -> Path:
    """One point per image, one colour and shape per name; a legend below when there is more than
    one name.

    Args:
        xy_N2: positions.  names_N: (N,) text.  axes: labels of the axes; None hides them (t-SNE has
        no units).
        order: all names that may occur, so that a class keeps its colour from picture to picture.
        lines_L22: both ends of thin lines below the points.
    """
    from matplotlib.figure import Figure

    order = [name for name in order or sorted(set(names_N))]
    figure = Figure(figsize=(5.6, 6.0), layout="constrained", facecolor="white")
    plot = figure.add_subplot()
    counts = {name: int((names_N == name).sum()) for name in order}
    size = float(np.clip(8000 / len(xy_N2), 12, 60))
    if lines_L22 is not None:
        from matplotlib.collections import LineCollection

        plot.add_collection(
            LineCollection(list(lines_L22), colors="#888888", linewidths=0.5, alpha=0.5, zorder=0)
        )
    for name in sorted(counts, key=lambda name: -counts[name]):  # rare classes on top
        if counts[name]:
            place = order.index(name)
            plot.scatter(
                xy_N2[names_N == name, 0],
                xy_N2[names_N == name, 1],
                s=size,
                color=COLOURS[place % len(COLOURS)],
                marker=SHAPES[(place + place // len(COLOURS)) % len(SHAPES)],
                edgecolors="white",
                linewidths=0.4,
                alpha=0.85,
                label=f"{name} ({counts[name]:,})",
                rasterized=True,
            )
    plot.spines[["top", "right"]].set_visible(False)
    if axes:
        plot.set_xlabel(axes[0], fontsize=12)
        plot.set_ylabel(axes[1], fontsize=12)
        plot.tick_params(labelsize=10)
    else:
        plot.set(xticks=[], yticks=[])
        plot.spines[["left", "bottom"]].set_visible(False)
    plot.set_title(title, loc="left", fontsize=15, fontweight="bold", pad=26)
    plot.annotate(
        subtitle,
        (0, 1),
        (0, 8),
        "axes fraction",
        textcoords="offset points",
        fontsize=11,
        color="#444444",
    )
    if len(order) > 1:
        handles, labels = plot.get_legend_handles_labels()
        ranked = sorted(zip(labels, handles, strict=True), key=lambda pair: pair[0])
        figure.legend(
            [handle for _, handle in ranked],
            [label for label, _ in ranked],
            loc="outside lower left",
            ncols=2 if max(map(len, order)) > 14 else 3,
            fontsize=11,
            frameon=False,
            markerscale=float(np.sqrt(50 / size)),
            handletextpad=0.2,
        )
    figure.savefig(path, dpi=160)
    return path
