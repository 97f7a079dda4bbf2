"""Which classes are taken for which."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.post_processing._scores import By, judged_splits
from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto

COLUMNS = 5  # tables of findings side by side


@proto
def confusion_matrix(
    features: Features, out: Path, *, by: By = "auto", key: str = "encoder"
) -> Iterator[tuple[str, Value]]:
    """Count true against predicted class on every split but train; for findings one table of two by
    two each.

    The predicted class is the most probable one; a finding is predicted when its probability is
    above 0.5. Images without a label and findings that are not known are not counted.

    Files: `confusion_matrix_<by>_<tag>_<split>.png` and `.csv`.

    Args:
        by: who predicts: classifier (the model's own class scores), linear_probe or knn (fitted on
            the features of train), auto = classifier where the model has scores, else linear_probe.
        key: the features that linear_probe and knn look at.

    Raises:
        UserError: no such scores, no labels, or nothing to score.
    """
    for scored in judged_splits(features, "confusion_matrix", by, key):
        stem = out / f"confusion_matrix_{scored.judge}_{features.tag}_{scored.name}"
        table, picture = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.png")
        title = f"{scored.name}, {scored.told}"
        if scored.y.ndim == 1:
            chosen_N = scored.score_NC.argmax(axis=1)
            count_CC = metrics.confusion(scored.y, chosen_N, classes=len(scored.names))
            _write_classes(count_CC, scored.names, table)
            _draw_classes(count_CC, scored.names, picture, title=title)
        else:
            count_C22 = two_by_two(scored.y, scored.score_NC)
            _write_findings(count_C22, scored.names, table)
            _draw_findings(count_C22, scored.names, picture, title=title)
        yield f"confusion of {title}: images, and per cent of the true class", picture
        yield f"counts of {title}", table


def two_by_two(y_NC: np.ndarray, score_NC: np.ndarray) -> np.ndarray:
    """(C, 2, 2) counts per finding: rows absent, present; columns not found, found (above 0.5)."""
    found_NC = (score_NC > 0.5).astype(np.int64)
    known_NC = ~np.isnan(y_NC)
    return np.stack(
        [
            metrics.confusion(y_NC[known, c].astype(np.int64), found_NC[known, c], classes=2)
            for c, known in enumerate(known_NC.T)
        ]
    )


def _write_classes(count_CC: np.ndarray, names: Sequence[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write = csv.writer(file).writerow
        write(["true \\ predicted", *names, *(f"% {name}" for name in names)])
        for name, row, share in zip(names, count_CC, _shares(count_CC), strict=True):
            write([name, *row, *(f"{100 * value:.1f}" for value in share)])


def _write_findings(count_C22: np.ndarray, names: Sequence[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write = csv.writer(file).writerow
        write(["finding", "true negative", "false positive", "false negative", "true positive"])
        for name, count in zip(names, count_C22, strict=True):
            write([name, *count.ravel()])


def _shares(count_CC: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; a class that does not occur has zeros."""
    return count_CC / np.maximum(count_CC.sum(axis=1, keepdims=True), 1)


def _draw_classes(count_CC: np.ndarray, names: Sequence[str], path: Path, *, title: str) -> None:
    from matplotlib.figure import Figure

    side = max(4.0, 1.6 + 0.62 * len(names) + 0.075 * max(map(len, names)))
    figure = Figure(figsize=(side, side), layout="constrained", facecolor="white")
    plot = figure.add_subplot()
    _cells(plot, count_CC, size=10 if len(names) < 10 else 8)
    turned = 0 if max(map(len, names)) * len(names) < 9 * side else 90
    plot.set_xticks(range(len(names)), names, fontsize=10, rotation=turned)
    plot.set_yticks(range(len(names)), names, fontsize=10)
    plot.set_xlabel("predicted", fontsize=11)
    plot.set_ylabel("true", fontsize=11)
    plot.set_title(title, loc="left", fontsize=11)
    figure.savefig(path, dpi=160)


def _draw_findings(count_C22: np.ndarray, names: Sequence[str], path: Path, *, title: str) -> None:
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    size = max(4.0, 2.0 * columns + 0.7), 2.1 * rows + 0.7
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    plots = list(figure.subplots(rows, columns, squeeze=False).flat)
    for i, (plot, name, count_22) in enumerate(zip(plots, names, count_C22, strict=False)):
        _cells(plot, count_22, size=9)
        plot.set_xticks([0, 1], ["no", "yes"], fontsize=9)
        plot.set_yticks([0, 1], ["no", "yes"] if i % columns == 0 else ["", ""], fontsize=9)
        plot.set_title(name, loc="left", fontsize=min(9, 210 / len(name)))
    for plot in plots[len(names) :]:
        plot.set_axis_off()
    figure.suptitle(title, x=0.02, ha="left", fontsize=12)
    figure.supxlabel("predicted", fontsize=11)
    figure.supylabel("true", fontsize=11)
    figure.savefig(path, dpi=160)


def _cells(plot: Any, count_CC: np.ndarray, *, size: float) -> None:
    """Coloured by the share of the row; the count, and the share in per cent, in every cell."""
    share_CC = _shares(count_CC)
    plot.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(count_CC):
        share = "<1%" if 0 < share_CC[i, j] < 0.005 else f"{share_CC[i, j]:.0%}"
        words = f"{count:,}\n{share}" if count else "0"
        shade = "white" if share_CC[i, j] > 0.55 else "#1b1f24" if count else "#9aa4ae"
        plot.text(j, i, words, ha="center", va="center", fontsize=size, color=shade)
    for between in np.arange(0.5, len(count_CC) - 1):
        plot.axhline(between, color="white", lw=1.5)
        plot.axvline(between, color="white", lw=1.5)
    plot.tick_params(length=0)
    plot.spines[:].set_visible(False)
