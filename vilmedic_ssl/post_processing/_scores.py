"""Class scores of a split: the model's own, or those of a judge fitted on its training features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.probe import FALLBACK
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
    score_NC = judged(features, judge, key)(rows_of(part, key), groups_of(part))
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


def judged(
    features: Features, judge: Judge, key: str
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(M, D) features and M patients, as of `groups_of`, -> (M, C) scores of a judge fitted on
    train.

    Raises:
        UserError: there is no such split.
    """
    if not features.has("train"):
        raise UserError(
            f"{judge}: the data has no train split to fit on; add one, or take out what needs it"
        )
    if judge == "linear_probe":
        return lambda rows, _: probe_of(features, "model", key)(rows)
    return lambda rows, groups: voted(features.get("train"), key, rows, groups)


def voted(
    train: SplitFeatures, key: str, rows: np.ndarray, groups: np.ndarray, **keys: Any
) -> np.ndarray:
    """(M, C) scores of the nearest labelled images of train that are of other patients.

    Args:
        rows, groups: features (M, D) and patients, as of `groups_of`, of what is scored.
        keys: of `metrics.knn_scores`.
    """
    x, y = labelled_rows(train, key, "knn")
    known = metrics.labelled(train.labels)
    names = groups_of(train)[known]
    return metrics.knn_scores(x, y, rows, train_groups=names, test_groups=groups, **keys)


def groups_of(part: SplitFeatures) -> np.ndarray:
    """(N,) text: the patient of each image, or where it is unknown a name of the image's own, the
    same one in every split that holds the image.
    """
    return np.array(part.patients or part.ids, dtype=str)


def probe_of(features: Features, source: Source, key: str) -> metrics.LinearProbe:
    """L2 logistic regression on train, fitted once per source and key as `probe_on` says.

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
    known = metrics.labelled(train.labels)
    patients = train.patients and [p for p, k in zip(train.patients, known, strict=True) if k]
    validate = features.get("validate", source) if features.has("validate") else None
    return probe_on(x, y, patients, validate, key, train.label_names, tell=source == "model")


def probe_on(
    x: np.ndarray,
    y: np.ndarray,
    patients: Sequence[str] | None,
    validate: SplitFeatures | None,
    key: str,
    names: Sequence[str],
    *,
    tell: bool = True,
) -> metrics.LinearProbe:
    """A linear probe on labelled rows of train, its strength chosen on validate, or where that
    cannot choose, by cross-validation over train's patients (see `metrics.linear_probe`).

    Args:
        x, y, patients: features (N, D), labels and patients of train.
        names: of the classes or findings.
        tell: warn where validate does not choose.
    """
    val_x, val_y = x[:0], y[:0]
    if validate is not None and validate.labels is not None:
        known = metrics.labelled(validate.labels)
        val_x, val_y = rows_of(validate, key)[known], validate.labels[known]
    probe = metrics.fit_probe(x, y, val_x, val_y, groups=patients)
    for by in ("cross-validation", "default") if tell else ():
        where = [i for i, choice in enumerate(probe.choices) if choice.by == by]
        if where:
            _tell_choice(probe, by, where, names)
    return probe


def _tell_choice(
    probe: metrics.LinearProbe, by: str, where: Sequence[int], names: Sequence[str]
) -> None:
    """Say that validate does not choose C, for which findings, and who does."""
    instead = "C is chosen by cross-validation over train's patients"
    if by == "default":
        instead = f"C is {FALLBACK:g}: train has no two classes with two patients to choose it by"
    reasons = list(dict.fromkeys(probe.choices[i].because for i in where))
    whom = ""
    if probe.findings and len(where) < len(names):
        shown = ", ".join(str(names[i]) for i in where[:5]) + ", ..." * (len(where) > 5)
        whom = f" for {len(where)} of {len(names)} findings ({shown})"
    why = reasons[0] if len(reasons) == 1 else "lacks a class of train, or images"
    warn(f"linear_probe: validate {why}, so{whom} {instead}")


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


def widen(score_MC: np.ndarray, classes: int) -> np.ndarray:
    """Zero columns for classes that occur nowhere in training."""
    return np.pad(score_MC, ((0, 0), (0, max(0, classes - score_MC.shape[1]))))


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
