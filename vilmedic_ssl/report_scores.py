"""The front page of a report: what was scored, with intervals and beside its references."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape

from vilmedic_ssl.report_charts import forest
from vilmedic_ssl.report_html import _figure, _folded, _list, _section, _table

REFERENCES = {"": "model", "random_init": "random init", "pixels": "raw pixels"}
PLUGINS = {
    "classification": "Classifier",
    "linear_probe": "Linear probe",
    "knn": "kNN",
    "zero_shot": "Zero-shot",
}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "macro F1",
}
FURTHER = {  # in the tables, not in the picture
    "top5": "top-5 accuracy",
    "ece": "calibration error (lower is better)",
    "brier": "Brier score (lower is better)",
}
OF_CLASSES = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "prevalence": "prevalence",
}
Row = tuple[str, str, Callable[[str], str]]
Results = Mapping[str, float | str]
BESIDE = ("/low", "/high", "/interval", "/left_out")  # names of what is said about a number


def _headline(results: Results) -> str:
    """Model, untrained encoder and raw pixels side by side, as a picture and as tables."""
    body = ""
    for split in _scored_splits(results):
        note = "" if split == "test" else " (chose the settings: for choosing, not for reporting)"
        table = _comparison(results, _rows(results, split, METRICS | FURTHER))
        classes = _rows(results, split, METRICS, each=True)
        if classes:
            table += _folded("AUROC of each class or finding", _comparison(results, classes))
        table += _classes(results, split)
        title = split + note
        body += f"<h3>{escape(title)}</h3>{table}" if split == "test" else _folded(title, table)
    rows = _rows(results, "test", METRICS)
    shown = _references(results, rows)
    chart = forest(
        [
            (
                f"{plugin}\n{metric}",
                {title: _triple(results, name(r)) for r, title in shown.items()},
            )
            for plugin, metric, name in rows
        ]
    )
    picture = _figure(chart, "Test scores with their 95 % intervals") if chart else ""
    words = (
        "<p>In brackets: 95 % interval by bootstrap over patients, where enough of them stand "
        "behind a number; the differences are paired. "
        "Chance is 0.5 for AUROC, the prevalence for AUPRC, and 1 / classes for balanced accuracy. "
        "A finding counts as found above a probability of 0.5.</p>"
    )
    parts = f'<div class="one">{picture}</div>{_not_above(results)}{body}{words}' if body else ""
    return _section("What the model is worth", parts)


def _rows(
    results: Results, split: str, metrics: Mapping[str, str], *, each: bool = False
) -> list[Row]:
    """(plug-in, metric, reference -> name) of the means, or of each class (its AUROC), that a split
    was scored by.
    """
    rows: list[Row] = []
    for name in results:
        where, plugin, metric, *rest = [*name.split("/", 3), "", ""]
        judge = next((j for j in PLUGINS if plugin == j or plugin.startswith(f"{j}_")), None)
        is_class = metric == "auroc" and bool(rest[0])
        if where != split or judge is None or metric not in metrics or name.endswith(BESIDE):
            continue
        if is_class == each and (is_class or not rest[0]):
            key = plugin.removeprefix(judge).replace("_", " ")
            path = f"{metric}/{rest[0]}" if is_class else metric
            title = rest[0] if is_class else metrics[metric]
            if not is_class and metric == "auprc" and f"{where}/{plugin}/prevalence" in results:
                title += f" (chance {results[f'{where}/{plugin}/prevalence']:.3f})"
            rows.append((PLUGINS[judge] + key, title, partial(_named, split, plugin, path)))
    return rows


def _classes(results: Results, split: str) -> str:
    """One line per class or finding of a classifier's own scores; "" without one."""
    stem = f"{split}/classification/"
    prefix = f"{stem}prevalence/"
    names = [name.removeprefix(prefix) for name in results if name.startswith(prefix)]
    lines = [
        [escape(name), *(_cell(results, f"{stem}{metric}/{name}") for metric in OF_CLASSES)]
        for name in names
    ]
    table = _table(["", *OF_CLASSES.values()], lines) if lines else ""
    return _folded("Each class or finding of the classifier", table) if lines else ""


def _named(split: str, plugin: str, metric: str, reference: str) -> str:
    return "/".join(part for part in (split, plugin, reference, metric) if part)


def _comparison(results: Results, rows: Sequence[Row]) -> str:
    """One line per metric: model, references where there are any, and what training has added."""
    shown = _references(results, rows)
    lines = [
        [
            f"{escape(plugin)}<small>{escape(metric + _left_out(results, name('')))}</small>",
            *(_cell(results, name(r)) for r in shown),
            *(_cell(results, name(f"minus_{r}"), sign="+") for r in shown if r),
        ]
        for plugin, metric, name in rows
    ]
    differences = [f"model − {title}" for r, title in shown.items() if r]
    return _table(["", *shown.values(), *differences], lines, mark=1)


def _left_out(results: Results, name: str) -> str:
    """Which classes a mean is without, in words behind its name."""
    words = results.get(f"{name}/left_out")
    return f" (mean without {words})" if words else ""


def _references(results: Results, rows: Sequence[Row]) -> dict[str, str]:
    """The columns that some row fills; the model's own always."""
    found = {r for r in REFERENCES for _, _, name in rows if name(r) in results}
    return {r: title for r, title in REFERENCES.items() if r in found | {""}}


def _not_above(results: Results) -> str:
    """The test scores in which training did not clearly beat a reference, if any."""
    lines = [
        escape(f"{plugin}, {metric}: {title}")
        for plugin, metric, name in _rows(results, "test", METRICS)
        for reference, title in REFERENCES.items()
        if reference and not (_triple(results, name(f"minus_{reference}")) or (1, 1, 1))[1] > 0
    ]
    words = (
        "<p>Not clearly above (the interval of the difference is not wholly above 0, or there is "
        "none):</p>"
    )
    return f'<div class="alarm">{words}{_list(lines)}</div>' if lines else ""


def _scored_splits(results: Results) -> list[str]:
    """The splits with a probe or vote, test first."""
    splits = dict.fromkeys(name.split("/")[0] for name in results)
    return sorted((s for s in splits if _rows(results, s, METRICS)), key=lambda s: s != "test")


def _triple(results: Results, name: str) -> tuple[float, float, float] | None:
    """A number with its interval, nan where it has none; None for no number."""
    if name not in results:
        return None
    low, high = (float(results.get(f"{name}/{end}", math.nan)) for end in ("low", "high"))
    return float(results[name]), low, high


def _cell(results: Results, name: str, sign: str = "") -> str:
    """A number with its interval in small print, or why it has none."""
    value = results.get(name)
    if value is None:
        return "–"
    if isinstance(value, str):
        return escape(value)
    cell = f"<b>{value:{sign}.3f}</b>" if abs(value) < 1000 else f"<b>{value:,.0f}</b>"
    small = []
    if f"{name}/low" in results and f"{name}/high" in results:
        low, high = results[f"{name}/low"], results[f"{name}/high"]
        small.append(f"[{low:{sign}.3f}, {high:{sign}.3f}]")
    if f"{name}/interval" in results:
        small.append(escape(str(results[f"{name}/interval"])))
    return f"{cell}<small>{' '.join(small)}</small>" if small else cell
