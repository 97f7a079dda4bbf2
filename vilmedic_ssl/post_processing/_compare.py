"""The model's scores beside its reference rows, on the same rows and the same bootstrap draws of
patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import progress
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics import Evidence, Resampled, Support
from vilmedic_ssl.post_processing._numbers import Left, numbered, warn_of, write_table
from vilmedic_ssl.post_processing._shared import (
    Features,
    Source,
    SplitFeatures,
    Value,
    labels_of,
    rows_of,
)

Scorer = Callable[[Source, str, np.ndarray], np.ndarray]
"""(source, key, (M, D) rows to score) -> (M, C) scores, nan for a class that what it was fitted on
has not shown; it fetches what it fits on by itself.
"""
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
        where no interval exists, and ".../interval" says why. Last, `<plugin>_<tag>.json` with the
        same numbers.

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
        made = scorer(source, name, stacked)
        missing = len(parts[0].label_names) - made.shape[1]
        made = np.pad(made, ((0, 0), (0, max(0, missing))), constant_values=np.nan)
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


@dataclass(frozen=True)
class Measured:
    """The metrics of class scores on a split: means first, then the AUROC of every class or
    finding. Calling it gives them, (K,), nan where undefined.

    Attributes:
        names: of the K metrics.
        counted_C: the classes or findings in the mean of AUROC, the same ones in every draw.
        occurring_C: the classes in the balanced accuracy.
        support: what each metric rests on.
    """

    names: list[str]
    counted_C: np.ndarray
    occurring_C: np.ndarray
    support: Support

    @classmethod
    def on(
        cls,
        y: np.ndarray,
        score_NC: np.ndarray,
        label_names: Sequence[str],
        groups: Sequence[str] | None,
    ) -> Measured:
        """For labels (N,) or (N, C) and any of the scores (N, C) that are compared."""
        classes = len(label_names)
        evidence = Evidence(y, classes, groups)
        counted_C, every = metrics.rankable(y, score_NC), evidence.of_all()
        occurring_C = (evidence.hot_NC == 1).any(axis=0)
        ranking = evidence.of_mean(counted_C)
        names, support = ["auroc", "auprc"], [ranking, ranking]
        if y.ndim == 1:
            names = ["accuracy", "balanced_accuracy", *["top5"] * (classes > TOP), "auroc"]
            balanced = evidence.of_mean(occurring_C)
            support = [every, balanced, *[every] * (classes > TOP), ranking]
        names += [f"auroc/{name}" for name in label_names]
        support += [evidence.of_ranking(c) for c in range(classes)]
        return cls(names, counted_C, occurring_C, Support.joined(support))

    def __call__(self, y: np.ndarray, score_NC: np.ndarray) -> np.ndarray:
        many = y if y.ndim == 2 else metrics.one_hot(y, score_NC.shape[1])
        auroc_C = metrics.columns(metrics.auroc, many, score_NC)
        auroc_C[~self.counted_C] = np.nan
        mean = metrics.mean_of(auroc_C, self.counted_C)
        if y.ndim == 2:
            auprc_C = metrics.columns(metrics.auprc, y, score_NC)
            return np.array([mean, metrics.mean_of(auprc_C, self.counted_C), *auroc_C])
        chosen_N = metrics.decided(score_NC)
        recall_C = metrics.recalls(y, chosen_N, classes=score_NC.shape[1])
        hits = [metrics.accuracy(y, chosen_N), metrics.mean_of(recall_C, self.occurring_C)]
        if score_NC.shape[1] > TOP:
            hits.append(metrics.top_k(y, np.nan_to_num(score_NC, nan=-np.inf), k=TOP))
        return np.array([*hits, mean, *auroc_C])


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
    measure = Measured.on(labels, scores[0], part.label_names, part.patients)
    table, found = side_by_side(
        f"{part.name}/{plugin}",
        measure.names,
        measure,
        [labels],
        scores,
        references,
        groups=part.patients,
        draws=draws,
        seed=seed,
        support=measure.support,
    )
    left = Left.of(part, labels, scores[0])
    rows = ["", *(f"{name}/" for name in references)]
    means = ("auroc", "auprc") if labels.ndim == 2 else ("auroc",)
    table |= left.notes([f"{part.name}/{plugin}/{row}{mean}" for row in rows for mean in means])
    warn_of(plugin, part.name, left, found)
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
    support: Support | None = None,
    limits: Any = metrics.UNIT,
) -> tuple[dict[str, Value], Resampled]:
    """Numbers of the model, of its references and their paired differences, from one set of draws.

    Args:
        where: what the names begin with, "<split>/<plug-in>".
        fn: (*common, rows of one source) -> (K,) numbers, as `names` calls them.
        common, of_sources: arrays with equally many rows; of_sources has the model's first.
        support: what the K numbers rest on; None = on all rows.
        limits: (2,) or (K, 2), between which they lie.

    Returns:
        "<where>/<name>", "<where>/<reference>/<name>", "<where>/minus_<reference>/<name>" ->
        value with interval, as `numbered` has them; and all draws, rows in this order.
    """
    low_K, high_K = np.broadcast_to(np.asarray(limits, np.float64), (len(names), 2)).T
    own, minus = np.stack([low_K, high_K], -1), np.stack([low_K - high_K, high_K - low_K], -1)
    others = len(of_sources) - 1

    def all_at_once(*arrays: np.ndarray) -> np.ndarray:
        shared, own = arrays[: len(common)], arrays[len(common) :]
        value_SK = np.stack([fn(*shared, rows) for rows in own])
        return np.concatenate([value_SK, value_SK[:1] - value_SK[1:]])

    found = metrics.resample(
        all_at_once,
        *common,
        *of_sources,
        groups=groups,
        draws=draws,
        seed=seed,
        support=support,
        limits=np.stack([own] * (1 + others) + [minus] * others),
    )
    rows = ["", *(f"{name}/" for name in references), *(f"minus_{name}/" for name in references)]
    paths = [f"{where}/{row}{name}" for row in rows for name in names]
    return numbered(paths, found), found
