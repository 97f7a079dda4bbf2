"""The model's scores beside its reference rows, on the same rows and the same bootstrap draws of
patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import progress, warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.bootstrap import Resampled
from vilmedic_ssl.post_processing._scores import widen
from vilmedic_ssl.post_processing._shared import (
    Features,
    Source,
    SplitFeatures,
    Value,
    labels_of,
    rows_of,
)

Scorer = Callable[[Source, str, np.ndarray], np.ndarray]
"""(source, key, (M, D) rows to score) -> (M, C) scores; it fetches what it fits on by itself."""
TEXT_KEYS = ("text", "linguistic")  # judged beside the same key of a reference that reads text
TOP = 5  # with more classes than this, the share of images whose class is among the first five


def compare(
    features: Features,
    out: Path,
    plugin: str,
    scorer: Scorer,
    *,
    key: str,
    references: Sequence[Source],
    draws: int,
) -> Iterator[tuple[str, Value]]:
    """Score every split but train with the model's features and with those of every reference.

    Yields:
        "<split>/<plugin>/<metric>" for the model, ".../<reference>/<metric>", and the paired
        difference ".../minus_<reference>/<metric>", as (value, low, high); low and high fall away
        where no interval exists. Last, `<plugin>_<tag>.json` with the same numbers.

    Raises:
        UserError: no train split, nothing to score, no labels, or no such key.
    """
    splits = scored_splits(features, plugin)
    plugin = plugin if key == "encoder" else f"{plugin}_{key}"  # one run may judge several keys
    parts = [features.get(split) for split in splits]
    for part in [features.get("train"), *parts]:
        labels_of(part, plugin)
    cuts = np.cumsum([len(part.ids) for part in parts])[:-1]
    scores: list[list[np.ndarray]] = []  # one list per source, one array per split
    sources: list[Source] = ["model", *references]
    for source in progress(sources, desc=plugin, unit="encoder"):
        own = source == "model" or key in TEXT_KEYS and key in features.get(splits[0], source).rows
        name = key if own else "encoder"
        stacked = np.concatenate([rows_of(features.get(s, source), name) for s in splits])
        made = widen(scorer(source, name, stacked), len(parts[0].label_names))
        scores.append(np.split(made, cuts))
    table: dict[str, Value] = {}
    for part, of_sources in zip(parts, zip(*scores, strict=True), strict=True):
        table |= _table(plugin, part, references, of_sources, draws=draws, seed=features.seed)
    yield from table.items()
    yield (
        f"{plugin}: every number with its interval",
        write_table(table, out / f"{plugin}_{features.tag}.json"),
    )


def scored_splits(features: Features, plugin: str) -> list[str]:
    """The splits asked for that can be scored: all but train, on which the judges are fitted.

    Raises:
        UserError: nothing to fit on or nothing to score.
    """
    if not features.has("train"):
        raise UserError(
            f"{plugin}: the data has no train split to fit on; add one or take {plugin} out"
        )
    splits = [split for split in features.splits if split != "train"]
    if not splits:
        raise UserError(
            f"{plugin}: only train is asked for; write ensemblor.splits: [train, validate, test]"
        )
    return splits


def measure(y: np.ndarray, score_NC: np.ndarray) -> np.ndarray:
    """Every metric of `metric_names` for labels (N,) or (N, C) and scores (N, C); nan where
    undefined.
    """
    if y.ndim == 2:
        auroc_C = metrics.columns(metrics.auroc, y, score_NC)
        auprc_C = metrics.columns(metrics.auprc, y, score_NC)
        return np.array([metrics.macro(auroc_C), metrics.macro(auprc_C), *auroc_C])
    chosen_N = score_NC.argmax(axis=1)
    auroc_C = metrics.columns(metrics.auroc, metrics.one_hot(y, score_NC.shape[1]), score_NC)
    hits = [metrics.accuracy(y, chosen_N), metrics.balanced_accuracy(y, chosen_N)]
    if score_NC.shape[1] > TOP:
        hits.append(metrics.top_k(y, score_NC, k=TOP))
    return np.array([*hits, metrics.macro(auroc_C), *auroc_C])


def metric_names(labels: np.ndarray, label_names: Sequence[str]) -> list[str]:
    """The order of `measure`: means first, then the AUROC of every class or finding."""
    hits = ["accuracy", "balanced_accuracy", *["top5"] * (len(label_names) > TOP)]
    means = [*hits, "auroc"] if labels.ndim == 1 else ["auroc", "auprc"]
    return means + [f"auroc/{name}" for name in label_names]


def _table(
    plugin: str,
    part: SplitFeatures,
    references: Sequence[str],
    scores: Sequence[np.ndarray],
    *,
    draws: int,
    seed: int,
) -> dict[str, Value]:
    """The numbers of one split: model, references and differences from one set of draws."""

    labels = labels_of(part, plugin)
    names = metric_names(labels, part.label_names)
    table, found = side_by_side(
        f"{part.name}/{plugin}",
        names,
        measure,
        [labels],
        scores,
        references,
        groups=part.patients,
        draws=draws,
        seed=seed,
    )
    nan_K = np.isnan(found.value[0])
    undefined = [names[k].removeprefix("auroc/") for k in np.flatnonzero(nan_K)]
    warn_of(plugin, part.name, undefined, found.redrawn if found.redrawn > draws // 10 else 0)
    return table


def side_by_side(
    where: str,
    names: Sequence[str],
    fn: Callable[..., np.ndarray],
    common: Sequence[np.ndarray],
    of_sources: Sequence[np.ndarray],
    references: Sequence[str],
    *,
    groups: Sequence[str] | np.ndarray | None,
    draws: int,
    seed: int,
) -> tuple[dict[str, Value], Resampled]:
    """Numbers of the model, of its references and their paired differences, from one set of draws.

    Args:
        where: what the names begin with, "<split>/<plug-in>".
        fn: (*common, rows of one source) -> (K,) numbers, as `names` calls them.
        common, of_sources: arrays with equally many rows; of_sources has the model's first.

    Returns:
        "<where>/<name>", "<where>/<reference>/<name>", "<where>/minus_<reference>/<name>" ->
        value with interval, without what is undefined; and all draws, rows in this order.
    """

    def all_at_once(*arrays: np.ndarray) -> np.ndarray:
        shared, own = arrays[: len(common)], arrays[len(common) :]
        value_SK = np.stack([fn(*shared, rows) for rows in own])
        return np.concatenate([value_SK, value_SK[:1] - value_SK[1:]])

    found = metrics.resample(
        all_at_once, *common, *of_sources, groups=groups, draws=draws, seed=seed
    )
    value_RK, (low_RK, high_RK) = found.value, found.interval()
    rows = ["", *(f"{name}/" for name in references), *(f"minus_{name}/" for name in references)]
    table: dict[str, Value] = {}
    for r, row in enumerate(rows):
        paths = [f"{where}/{row}{name}" for name in names]
        table |= triples(paths, value_RK[r], low_RK[r], high_RK[r])
    return table, found


def triples(
    names: Sequence[str], value_K: np.ndarray, low_K: np.ndarray, high_K: np.ndarray
) -> dict[str, Value]:
    """name -> (value, low, high), or the value alone where there is no interval; without what is
    undefined.
    """
    table: dict[str, Value] = {}
    for name, *triple in zip(names, value_K, low_K, high_K, strict=True):
        value, low, high = map(float, triple)
        if np.isfinite(value):
            table[name] = (value, low, high) if np.isfinite([low, high]).all() else value
    return table


def warn_of(plugin: str, split: str, undefined: Sequence[str], redrawn: int) -> None:
    """Say which classes have no score on a split, and when draws had to be repeated."""
    if undefined:
        warn(
            f"{plugin}: {', '.join(undefined)} cannot be scored on {split} (fewer than two "
            f"classes known there, or none in train); left out of the means"
        )
    if redrawn:
        warn(
            f"{plugin}: {redrawn} bootstrap draws of {split} missed a class and were "
            f"redrawn; read the intervals with care"
        )


def write_table(table: dict[str, Value], path: Path) -> Path:
    """{name: {value[, low, high]}} as JSON."""
    keys = "value", "low", "high"
    data = {
        name: dict(zip(keys, value if isinstance(value, tuple) else (value,), strict=False))
        for name, value in table.items()
    }
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
