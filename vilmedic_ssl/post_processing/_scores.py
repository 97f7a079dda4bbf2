"""Class scores of a split: the model's own, or those of a judge fitted on its training features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._shared import (
    Features,
    Source,
    SplitFeatures,
    labels_of,
    rows_of,
)

By = Literal["auto", "classifier", "linear_probe", "knn"]
Judge = Literal["classifier", "linear_probe", "knn"]


def judge_of(features: Features, split: str, by: By) -> Judge:
    """Who gives the scores: `auto` means the model itself where it has them, else linear_probe."""
    if by != "auto":
        return by
    return "classifier" if "scores" in features.get(split).rows else "linear_probe"


def scores_of(
    features: Features, split: str, by: By = "auto", *, key: str = "encoder"
) -> np.ndarray:
    """(N, C) probabilities of every image and class or finding of a split.

    Args:
        by: classifier = the model's own; linear_probe and knn are fitted on the training split's
            features, once per `features`, and flatter that split.
        key: the features a fitted judge looks at.

    Raises:
        UserError: the model gives no scores or other classes than the split has; for a fitted judge
            no train split, no labels, or no such key.
    """
    part, judge = features.get(split), judge_of(features, split, by)
    if judge == "classifier":
        return own_scores(part, "scores_of")
    score_NC = judged(features, judge, key)(rows_of(part, key))
    return widen(score_NC, len(features.get("train").label_names))


def own_scores(part: SplitFeatures, plugin: str) -> np.ndarray:
    """The (N, C) scores that the model itself gives.

    Raises:
        UserError: it gives none, or of other classes than the split has.
    """
    if "scores" not in part.rows:
        raise UserError(
            f"{plugin}: this model gives no class scores, only features; write linear_probe (as "
            "the plug-in, or as by: linear_probe), which fits a classifier on them"
        )
    score_NC = part.rows["scores"]
    if score_NC.shape[1] != len(part.label_names):
        raise UserError(
            f"{plugin}: the model knows {score_NC.shape[1]} classes, {part.name} has "
            f"{len(part.label_names)}; score it on data with the classes of its training"
        )
    return cast(np.ndarray, score_NC)


def judged(features: Features, judge: Judge, key: str) -> Callable[[np.ndarray], np.ndarray]:
    """(M, D) features -> (M, C) scores of a judge fitted on train.

    Raises:
        UserError: there is no such split.
    """
    if not features.has("train"):
        raise UserError(
            f"{judge}: the data has no train split to fit on; add one, or take out what needs it"
        )
    if judge == "linear_probe":
        return probe_of(features, "model", key)
    bank_x, bank_y = labelled_rows(features.get("train"), key, judge)
    return lambda rows: metrics.knn_scores(bank_x, bank_y, rows)


def probe_of(features: Features, source: Source, key: str) -> metrics.LinearProbe:
    """L2 logistic regression on train, its strength chosen on validate, fitted once per source and
    key. Without labels in validate, the strength is chosen on a fifth of train's patients.

    Raises:
        UserError: no labels in train, or no such key.
    """
    memory, name = memory_of(features), f"linear_probe {source} {key}"
    if name not in memory:
        memory[name] = _fitted(features, source, key)
    return cast(metrics.LinearProbe, memory[name])


def memory_of(features: Features) -> dict[str, Any]:
    """What was computed from these features before."""
    return cast(dict[str, Any], vars(features).setdefault("memory", {}))


def _fitted(features: Features, source: Source, key: str) -> metrics.LinearProbe:
    train = features.get("train", source)
    x, y = labelled_rows(train, key, "linear_probe")
    if features.has("validate"):
        val = features.get("validate", source)
        if val.labels is not None and metrics.labelled(val.labels).any():
            return metrics.fit_probe(x, y, *labelled_rows(val, key, "linear_probe"))
    if source == "model":
        warn("linear_probe: no validate split, so C is chosen on a fifth of train's patients")
    names = np.array(train.ids if train.patients is None else train.patients)
    held = held_out(names[metrics.labelled(train.labels)], seed=features.seed)
    return metrics.fit_probe(x[~held], y[~held], x[held], y[held])


def labelled_rows(part: SplitFeatures, key: str, plugin: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and labels of the images that have one: not class -1, not all findings nan.

    Raises:
        UserError: no labels, or no such key.
    """
    y = labels_of(part, plugin)
    known = metrics.labelled(y)
    if not known.any():
        raise UserError(f"{plugin}: no image of {part.name} is labelled; nothing can be fitted")
    rows = rows_of(part, key)
    return (rows, y) if known.all() else (rows[known], y[known])


def held_out(patients: Sequence[str], *, seed: int, fraction: float = 0.2) -> np.ndarray:
    """(N,) bool: the rows of a random `fraction` of the patients, (N,) names, at least one.

    Raises:
        UserError: there is a single patient, so nothing would be left to fit on.
    """
    names, of_N = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            "linear_probe: train holds a single patient; add patients or a validate split"
        )
    count = max(1, round(fraction * len(names)))
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    return np.isin(of_N, chosen)


def widen(score_MC: np.ndarray, classes: int) -> np.ndarray:
    """Zero columns for classes that occur nowhere in training."""
    return np.pad(score_MC, ((0, 0), (0, max(0, classes - score_MC.shape[1]))))


def blanked(score_MC: np.ndarray, y: np.ndarray, *, fitted: bool = False) -> np.ndarray:
    """Scores (M, C), nan in the columns of what a judge that was shown the labels y, (N,) or (N,
    C), knows nothing of. Its score there is a constant, whose AUROC of 0.5 says nothing about the
    features, and which is no finding's.

    Args:
        fitted: the judge is a regression that may have been fitted on some of these rows only: what
            has the same score everywhere was not among them.
    """
    known_C = metrics.learnable(y, score_MC.shape[1])
    if fitted and len(score_MC) > 1:
        known_C = known_C & (np.ptp(score_MC, axis=0) > 0)
        if y.ndim == 1 and not known_C.any():  # one class: it is what is always decided for
            known_C = metrics.learnable(y, score_MC.shape[1])
    return np.where(known_C, score_MC, np.nan)


@dataclass(frozen=True)
class Scored:
    """A labelled split with its scores.

    Attributes:
        name: the split. judge: who scored. told: the same in words, for titles.
        y: (N,) classes or (N, C) findings. score_NC: (N, C) probabilities. names: of the classes.
    """

    name: str
    judge: Judge
    told: str
    y: np.ndarray
    score_NC: np.ndarray
    names: list[str]


def judged_splits(
    features: Features, plugin: str, by: By, key: str, *, splits: Sequence[str] | None = None
) -> Iterator[Scored]:
    """Every split asked for but train, or the `splits` named, with labels and scores.

    Raises:
        UserError: there is none, it has no labels, or nobody gives such scores.
    """
    names = [s for s in features.splits if s != "train"] if splits is None else list(splits)
    if not names:
        raise UserError(
            f"{plugin}: only train is asked for; write ensemblor.splits: [train, validate, test]"
        )
    for name in names:
        part = features.get(name)
        y, judge = labels_of(part, plugin), judge_of(features, name, by)
        if judge == "classifier":
            score_NC, told = own_scores(part, plugin), "the model's own scores"
        else:
            score_NC = scores_of(features, name, judge, key=key)
            told = f"{'linear probe' if judge == 'linear_probe' else 'kNN'} on {key}"
        yield Scored(name, judge, told, y, score_NC, list(part.label_names))
