"""Drawing what a probability is worth: said against observed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.post_processing._scatter import COLOURS

COLUMNS = 4  # panels side by side, where every finding has its own
MOST, EACH = 15, 20  # bins at most (Guo et al. 2017, section 5), images in each at least


def bins_for(y: np.ndarray, bins: int | None) -> int:
    """How many bins labels (N,) get: `bins` where it is given, else as many as have 20 labelled
    images each, from 2 to 15.
    """
    return min(MOST, max(2, int((y >= 0).sum()) // EACH)) if bins is None else bins


def draw_reliability(
    y: np.ndarray,
    score_NC: np.ndarray,
    names: Sequence[str],
    path: Path,
    *,
    title: str,
    bins: int | None,
) -> Path:
    """A point per bin of equally many images. For classes the probability of the chosen one against
    the share that was right; for findings one panel each, where labels are known.

    Args:
        bins: as in `bins_for`.
    """
    from matplotlib.figure import Figure

    if y.ndim == 1:
        panels = [("", y, score_NC)]
        axes = "probability of the chosen class", "share that is right"
    else:
        known = np.flatnonzero(~np.isnan(y).all(axis=0) & ~np.isnan(score_NC).all(axis=0))
        panels = [(names[int(c)], y[:, c], score_NC[:, c]) for c in known]
        axes = "probability said", "share that has it"
    columns = min(COLUMNS, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    side = 4.4 if columns == 1 else 2.5
    size = max(4.4, side * columns), side * rows + 0.5
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    plots = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for plot, panel in zip(plots, panels, strict=False):
        _panel(plot, *panel, bins=bins)
    for plot in plots[max(0, len(panels) - columns) : len(panels)]:
        plot.tick_params(labelbottom=True)
    for plot in plots[len(panels) :]:
        plot.set_axis_off()
    figure.suptitle(f"{title} (below the line: too sure)", x=0.02, ha="left", fontsize=12)
    figure.supxlabel(axes[0], fontsize=11)
    figure.supylabel(axes[1], fontsize=11)
    figure.savefig(path, dpi=160)
    return path


def _panel(plot: Any, name: str, y: np.ndarray, score: np.ndarray, *, bins: int | None) -> None:
    bins = bins_for(y, bins)
    said_B, share_B, count_B = metrics.reliability(y, score, bins=bins)
    plot.plot([0, 1], [0, 1], color="#9aa4ae", lw=1, ls="--")
    plot.vlines(said_B, said_B, share_B, color=COLOURS[1], lw=1.5, alpha=0.6)
    size_B = np.clip(60 * count_B / count_B.max(), 15, 60)
    plot.plot(said_B, share_B, color=COLOURS[0], lw=1.2)
    plot.scatter(said_B, share_B, s=size_B, color=COLOURS[0], edgecolors="white", zorder=3)
    plot.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    plot.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    plot.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    plot.grid(color="#e4e8ec", lw=0.8)
    plot.spines[["top", "right"]].set_visible(False)
    error = metrics.ece(y, score, bins=bins)
    binned = f"{len(count_B)} {'bin' if len(count_B) == 1 else 'bins'}"
    words = name or f"{count_B.sum():,} images in {binned}, calibration error {error:.3f}"
    plot.set_title(words, loc="left", fontsize=10)
    if name:
        words = f"ECE {error:.3f}\nn {count_B.sum():,}, {binned}"
        plot.text(0.98, 0.03, words, transform=plot.transAxes, ha="right", va="bottom", fontsize=8)
