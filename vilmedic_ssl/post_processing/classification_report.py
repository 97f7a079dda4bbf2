"""Precision, recall and F1 of every class, in the layout of scikit-learn's report."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.post_processing._scores import By, judged_splits
from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto

HEADER = "precision", "recall", "f1-score", "support"
Line = tuple[str, tuple[float, float, float], int]


@proto
def classification_report(
    features: Features, out: Path, *, by: By = "auto", key: str = "encoder", digits: int = 3
) -> Iterator[tuple[str, Value]]:
    """Write precision, recall, F1 and support per class or finding, and their means, for every
    split but train.

    Decisions and what is left out as in `confusion_matrix`. A class never predicted has precision
    0; one that is neither true nor predicted has no line. Macro is the plain mean, weighted the
    mean by support; for findings micro counts all of them together.

    Files: `classification_report_<by>_<tag>_<split>.txt` and `.csv`.

    Args:
        by: who predicts: classifier (the model's own class scores), linear_probe or knn (fitted on
            the features of train), auto = classifier where the model has scores, else linear_probe.
        key: the features that linear_probe and knn look at.
        digits: decimals in the text.

    Raises:
        UserError: no such scores, no labels, or nothing to score.
    """
    for scored in judged_splits(features, "classification_report", by, key):
        lines = report_lines(scored.y, scored.score_NC, scored.names)
        stem = out / f"classification_report_{scored.judge}_{features.tag}_{scored.name}"
        text, table = stem.with_name(f"{stem.name}.txt"), stem.with_name(f"{stem.name}.csv")
        text.write_text(as_text(lines, digits=digits), encoding="utf-8")
        with table.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            write = csv.writer(file).writerow
            write(["class", *HEADER])
            for name, values, support in lines:
                write([name, *("" if v != v else f"{v:.6g}" for v in values), support])
        yield f"precision, recall and F1 on {scored.name}, {scored.told}", text
        yield f"the same as a table, {scored.name}", table


def report_lines(y: np.ndarray, score_NC: np.ndarray, names: Sequence[str]) -> list[Line]:
    """Name, precision, recall, F1, support: of each class, then `accuracy` (only under F1) or
    `micro avg`, `macro avg` and `weighted avg`.
    """
    if y.ndim == 1:
        chosen_N = score_NC.argmax(axis=1)
        each = metrics.per_class(metrics.confusion(y, chosen_N, classes=len(names)))
        right, nan = metrics.accuracy(y, chosen_N), float("nan")
        whole: Line = "accuracy", (nan, nan, right), int(each.support.sum())
    else:
        each = metrics.per_finding(y, score_NC)
        known = ~np.isnan(y)
        pooled = metrics.per_finding(y[known][:, None], score_NC[known][:, None])
        whole = "micro avg", _three(np.array(pooled[:3])), int(pooled.support[0])
    shown = np.flatnonzero(~np.isnan(each.f1))
    value_3C, support_C = np.array(each[:3])[:, shown], each.support[shown]
    weight_C = support_C / max(1, support_C.sum())
    total = int(support_C.sum())
    lines = [
        (names[int(c)], _three(value_3C[:, i]), int(support_C[i])) for i, c in enumerate(shown)
    ]
    macro = _three(np.array([metrics.macro(values) for values in value_3C]))
    weighted = _three(value_3C @ weight_C)
    return [*lines, whole, ("macro avg", macro, total), ("weighted avg", weighted, total)]


def _three(values: np.ndarray) -> tuple[float, float, float]:
    precision, recall, f1 = values.ravel().tolist()
    return precision, recall, f1


def as_text(lines: Sequence[Line], *, digits: int) -> str:
    """The layout of `sklearn.metrics.classification_report`: what is nan stays blank."""
    width = max(len(name) for name, _, _ in lines)
    width = max(width, len("weighted avg"), digits)
    text = " " * width + " " + "".join(f" {name:>9}" for name in HEADER) + "\n\n"
    for i, (name, values, support) in enumerate(lines):
        cells = "".join(" " * 10 if v != v else f" {v:9.{digits}f}" for v in values)
        text += f"{name:>{width}} {cells} {support:9d}\n" + "\n" * (i == len(lines) - 4)
    return text
