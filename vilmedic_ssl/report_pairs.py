"""The part of a report about images and their texts: retrieval, wording of prompts, the space."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from vilmedic_ssl.report_html import _folded, _section, _table
from vilmedic_ssl.report_scores import BESIDE, Results, _cell, _named

RETRIEVAL = {
    "retrieval": "an image and its report",
    "retrieval_classes": "images of the query's class",
    "retrieval_files": "CheXpert 8x200",
}
WORDING = {
    "auroc": "AUROC",
    "prompt_spread/min": "worst prompt",
    "prompt_spread/max": "best prompt",
    "prompt_spread/sd": "sd over prompts",
    "prompt_spread/mean_embedding": "mean embedding",
    "negation/accuracy": "tells it from its negation (chance 0.5)",
}
SPACE = {
    "modality_gap/gap": "distance of the means of images and reports",
    "modality_gap/alignment": "squared distance of pairs",
    "modality_gap/alignment_others": "squared distance of others",
    "pair_loss/loss": "loss",
    "pair_loss/chance": "loss by chance",
    "pair_loss/floor": "floor of the loss, as texts are equal",
    "pair_loss/below_chance": "below chance",
}
Numbers = Results


def _pairs(results: Numbers) -> str:
    """Everything about pairs that was measured, as one section; "" for nothing."""
    body = ""
    for split, plugin in _measured(results):
        if plugin in RETRIEVAL:
            body += _searches(results, split, plugin)
        elif plugin.startswith("zero_shot"):
            body += _wording(results, split, plugin)
    return _section("Images and reports", body + _space(results))


def _measured(results: Numbers) -> list[tuple[str, str]]:
    """(split, plug-in) in order, test first."""
    parts = (name.split("/") for name in results)
    found = dict.fromkeys((part[0], part[1]) for part in parts if len(part) > 2)
    return sorted(found, key=lambda pair: pair[0] != "test")


def _searches(results: Numbers, split: str, plugin: str) -> str:
    """One line per way and k: model, untrained, difference, chance."""
    stem = f"{split}/{plugin}/"
    lines = []
    for way, metric in _metrics(results, stem):
        rows = ("", "random_init", "minus_random_init")
        names = [_named(split, plugin, f"{way}/{metric}", row) for row in rows]
        chance = "chance_P" if metric.startswith("P@") else f"chance_{metric}"
        cells = [_cell(results, name) for name in (*names[:2], f"{stem}{way}/{chance}")]
        words = f"{way.replace('_', ' ')}<small>{escape(metric.replace('_', ' '))}</small>"
        lines.append([words, cells[0], cells[1], _cell(results, names[2], sign="+"), cells[2]])
    header = ["", "model", "random init", "model − random init", "chance"]
    told = ""
    if f"{stem}texts" in results:
        told = (
            f"<p>{results[f'{stem}images']:,.0f} images, {results[f'{stem}texts']:,.0f} different "
            "reports; equal ones are one candidate. Told apart, they would keep R@1 below "
            f"{results[f'{stem}duplicate_ceiling']:.3f}.</p>"
        )
    title = f"Retrieval, {escape(split)}: {RETRIEVAL[plugin]}"
    return f"<h3>{title}</h3>{_table(header, lines, mark=1)}{told}"


def _metrics(results: Numbers, stem: str) -> Iterator[tuple[str, str]]:
    """(way, metric) of the model's own numbers, those of single classes left out."""
    for name in results:
        way, _, metric = name.removeprefix(stem).partition("/")
        own = name.startswith(stem) and "_to_" in way
        if own and "/" not in metric and not metric.startswith("chance"):
            yield way, metric


def _wording(results: Numbers, split: str, plugin: str) -> str:
    """One line per finding or class: how much its AUROC hangs on the words of its prompts."""
    stem = f"{split}/{plugin}/"
    prefix = f"{stem}auroc/"
    names = [
        name.removeprefix(prefix)
        for name in results
        if name.startswith(prefix) and not name.endswith(BESIDE)
    ]
    used = [key for key in WORDING if any(f"{stem}{key}/{name}" in results for name in names)]
    lines = [
        [escape(name), *(_cell(results, f"{stem}{key}/{name}") for key in used)] for name in names
    ]
    lines.append(["mean", *(_cell(results, stem + key) for key in used)])
    table = _table(["", *(WORDING[key] for key in used)], lines, mark=1)
    title = f"Prompts, {split}: {plugin.replace('_', ' ')}"
    return _folded(title, table) if names else ""


def _space(results: Numbers) -> str:
    """How images and reports lie, and the loss at its stated batch size."""
    lines = []
    for split in dict.fromkeys(name.split("/")[0] for name in results):
        for key, words in SPACE.items():
            plugin, metric = key.split("/")
            names = [_named(split, plugin, metric, r) for r in ("", "random_init")]
            if names[0] in results:
                size = results.get(f"{split}/{plugin}/batch_size")
                what = words if size is None else f"{words}, batches of {size:.0f}"
                cells = [_cell(results, name) for name in names]
                lines.append([f"{escape(split)}<small>{what}</small>", *cells])
    table = _table(["", "model", "random init"], lines, mark=1)
    return f"<h3>The shared space</h3>{table}" if lines else ""
