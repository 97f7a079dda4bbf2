"""What a trained classifier's own class scores are worth."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics import Evidence, Support
from vilmedic_ssl.post_processing._compare import TOP
from vilmedic_ssl.post_processing._numbers import Left, numbered, warn_of, write_table
from vilmedic_ssl.post_processing._reliability import bins_for, draw_reliability
from vilmedic_ssl.post_processing._scores import blanked, own_scores
from vilmedic_ssl.post_processing._shared import Features, SplitFeatures, Value, labels_of
from vilmedic_ssl.registry import proto

FEW = 100  # images, below which a calibration error says little


class Over(NamedTuple):
    """The classes or findings in means: (C,) bool, those that have an AUROC, and those that occur;
    the same ones in every bootstrap draw.
    """

    names: list[str]
    ranked_C: np.ndarray
    occurring_C: np.ndarray


@proto
def classification(
    features: Features,
    out: Path,
    *,
    draws: int = 1000,
    bins: int | None = None,
    save_predictions: bool = True,
) -> Iterator[tuple[str, Value]]:
    """Score the class probabilities that the model itself gives, on every split but train.

    For one class per image the decision is the most probable class; a finding is found when its
    probability is above 0.5. Images without a label and findings that are not known are left out.
    Several checkpoints answer with the mean of their probabilities. A class or finding that train
    does not show has no AUROC and is no part of its mean; that is said.

    Args:
        draws: bootstrap draws of patients for the 95 % intervals; below 20 there are none.
        bins: bins of equally many images for the calibration error and the reliability plot; None =
            as many as have 20 images each, from 2 to 15.
        save_predictions: write `predictions_<split>_<tag>.csv` for every split, train too: id,
            patient, label (or one column label/<finding> each), score/<name> for every class.

    Yields:
        accuracy, balanced_accuracy, top5 (beyond five classes), auroc, auprc, f1, brier, and auroc,
        auprc, precision, recall and f1 of each class or finding (auroc/<name>) with intervals;
        prevalence, ece, medmnist/auc and medmnist/acc without; a reliability plot of each split,
        and `classification_<tag>.json`. For findings accuracy and the like are means over findings.

    Raises:
        UserError: the model gives no class scores, or nothing is labelled.
    """
    table: dict[str, Value] = {}
    taught = _taught(features)
    for split in features.splits:
        part = features.get(split)
        score_NC = own_scores(part, "classification")
        if save_predictions:
            path = out / f"predictions_{split}_{features.tag}.csv"
            yield f"class scores of every image of {split}", write_predictions(part, score_NC, path)
        if split == "train":
            continue
        y = labels_of(part, "classification")
        if not metrics.labelled(y).any():
            warn(f"classification: no image of {split} is labelled, so it has no numbers")
            continue
        _warn_of_few(y, split)
        table |= _table(part, y, score_NC, taught, draws=draws, bins=bins, seed=features.seed)
        path = out / f"classification_{features.tag}_{split}_reliability.png"
        draw_reliability(
            y, score_NC, part.label_names, path, title=f"Calibration, {split}", bins=bins
        )
        yield f"calibration, {split}: when the model says 80 %, is it right in 80 % of cases?", path
    if not table:
        raise UserError(
            "classification: there is nothing to score; write ensemblor.splits: [validate, test] "
            "and give these splits labels"
        )
    yield from table.items()
    path = out / f"classification_{features.tag}.json"
    yield "classification: every number with its interval", write_table(table, path)


def _taught(features: Features) -> np.ndarray | None:
    """The labels of train, where there are any."""
    if not features.has("train"):
        return None
    y: np.ndarray | None = features.dataset("train").labels
    return y if y is not None and metrics.labelled(y).any() else None


def _occurring(y: np.ndarray, classes: int) -> np.ndarray:
    hot_NC = metrics.one_hot(y, classes) if y.ndim == 1 else y
    return (hot_NC == 1).any(axis=0)


def _table(
    part: SplitFeatures,
    y: np.ndarray,
    score_NC: np.ndarray,
    taught: np.ndarray | None,
    *,
    draws: int,
    bins: int | None,
    seed: int,
) -> dict[str, Value]:
    """Every number of one split."""
    names, stem = part.label_names, f"{part.name}/classification/"
    known_NC = score_NC if taught is None else blanked(score_NC, taught)
    over = Over(names, metrics.rankable(y, known_NC), _occurring(y, len(names)))
    measure = _of_classes if y.ndim == 1 else _of_findings

    def numbers(y: np.ndarray, score_NC: np.ndarray, known_NC: np.ndarray) -> np.ndarray:
        return np.array(list(measure(y, score_NC, known_NC, over).values()))

    called = list(measure(y, score_NC, known_NC, over))
    found = metrics.resample(
        numbers,
        y,
        score_NC,
        known_NC,
        groups=part.patients,
        draws=draws,
        seed=seed,
        support=_support(called, y, score_NC, over, part),
        limits=[(0, 2) if name == "brier" else metrics.UNIT for name in called],
    )
    left = Left.of(part, y, known_NC)
    warn_of("classification", part.name, left, found)
    means = ["auroc", "auprc", *["balanced_accuracy"] * (y.ndim == 2)]
    table = numbered([stem + name for name in called], found)
    table |= left.notes(stem + mean for mean in means)
    plain = {k: v for k, v in _plain(y, score_NC, names, bins).items() if v == v}
    return table | {stem + name: value for name, value in plain.items()}


def _support(
    called: Sequence[str],
    y: np.ndarray,
    score_NC: np.ndarray,
    over: Over,
    part: SplitFeatures,
) -> Support:
    """What each number rests on: precision on the images that were given a class, the others on
    those that are of it.
    """
    evidence = Evidence(y, len(part.label_names), part.patients)
    known_NC = ~np.isnan(evidence.hot_NC)
    given_NC = score_NC > 0.5
    if y.ndim == 1:
        given_NC = metrics.one_hot(score_NC.argmax(axis=1), score_NC.shape[1]) == 1
    means = {
        "auroc": evidence.of_mean(over.ranked_C),
        "auprc": evidence.of_mean(over.ranked_C),
        "balanced_accuracy": evidence.of_mean(over.ranked_C if y.ndim == 2 else over.occurring_C),
        "f1": evidence.of_mean(over.occurring_C, ranking=False),
    }
    made = []
    for name in called:
        kind, _, label = name.partition("/")
        c = part.label_names.index(label) if label else -1
        if c < 0:
            made.append(means.get(kind) or evidence.of_all())
        elif kind == "precision":
            made.append(Support.of([given_NC[:, c] & known_NC[:, c]], part.patients))
        else:
            made.append(
                evidence.of_ranking(c) if kind in ("auroc", "auprc") else evidence.of_class(c)
            )
    return Support.joined(made)


def _warn_of_few(y: np.ndarray, split: str) -> None:
    """Of a calibration error of few images: it is above 0 by chance alone."""
    known_C = (y.reshape(len(y), -1) >= 0).sum(axis=0)
    few = int(known_C[known_C > 0].min())
    if few < FEW:
        where = "" if y.ndim == 1 else " for a finding"
        warn(
            f"classification: {split} has {few} labelled images{where}; with fewer than {FEW} the "
            "calibration error (ece) is mostly noise"
        )


def _of_classes(
    y: np.ndarray,
    score_NC: np.ndarray,
    known_NC: np.ndarray,
    over: Over,
) -> dict[str, float]:
    chosen_N = score_NC.argmax(axis=1)
    names, classes = over.names, len(over.names)
    hot_NC = metrics.one_hot(y, classes)
    each = metrics.per_class(metrics.confusion(y, chosen_N, classes=classes))
    recall_C = metrics.recalls(y, chosen_N, classes=classes)
    top = {"top5": metrics.top_k(y, score_NC, k=TOP)} if len(names) > TOP else {}
    return {
        "accuracy": metrics.accuracy(y, chosen_N),
        "balanced_accuracy": metrics.mean_of(recall_C, over.occurring_C),
        **top,
        **_ranked(hot_NC, known_NC, over),
        "f1": metrics.macro(each.f1),
        "brier": metrics.brier(y, score_NC),
        **_each(each, names),
    }


def _of_findings(
    y_NC: np.ndarray,
    score_NC: np.ndarray,
    known_NC: np.ndarray,
    over: Over,
) -> dict[str, float]:
    hard_NC = (score_NC > 0.5).astype(np.float64)
    ranked = _ranked(y_NC, known_NC, over)
    one_C = np.isnan([ranked[f"auroc/{name}"] for name in over.names])

    def mean(fn: Callable[[np.ndarray, np.ndarray], float], said_NC: np.ndarray) -> float:
        return metrics.macro(metrics.columns(fn, y_NC, said_NC))

    balanced_C = metrics.columns(metrics.balanced_accuracy, y_NC, hard_NC)
    each = metrics.per_finding(y_NC, score_NC)
    return {
        "accuracy": mean(metrics.accuracy, hard_NC),
        "balanced_accuracy": metrics.mean_of(np.where(one_C, np.nan, balanced_C), over.ranked_C),
        **ranked,
        "f1": metrics.macro(each.f1),
        "brier": mean(metrics.brier, score_NC),
        **_each(each, over.names),
    }


def _ranked(y_NC: np.ndarray, score_NC: np.ndarray, over: Over) -> dict[str, float]:
    names, counted_C = over.names, over.ranked_C
    auroc_C = metrics.columns(metrics.auroc, y_NC, score_NC)
    auprc_C = metrics.columns(metrics.auprc, y_NC, score_NC)
    auroc_C[~counted_C] = auprc_C[~counted_C] = np.nan
    return {
        "auroc": metrics.mean_of(auroc_C, counted_C),
        "auprc": metrics.mean_of(auprc_C, counted_C),
        **{f"auroc/{name}": float(v) for name, v in zip(names, auroc_C, strict=True)},
        **{f"auprc/{name}": float(v) for name, v in zip(names, auprc_C, strict=True)},
    }


def _each(each: metrics.PerClass, names: list[str]) -> dict[str, float]:
    kinds = {"precision": each.precision, "recall": each.recall, "f1": each.f1}
    return {
        f"{kind}/{name}": float(value)
        for kind, values in kinds.items()
        for name, value in zip(names, values, strict=True)
    }


def _plain(
    y: np.ndarray, score_NC: np.ndarray, names: list[str], bins: int | None
) -> dict[str, float]:
    """What has no interval: shares of the data, published definitions, and the calibration error,
    which grows by resampling itself.
    """
    hot_NC = metrics.one_hot(y, len(names)) if y.ndim == 1 else y
    share_C = np.array([metrics.prevalence(column) for column in hot_NC.T])
    if y.ndim == 1:
        task: metrics.Task = "binary-class" if len(names) == 2 else "multi-class"
        error = metrics.ece(y, score_NC, bins=bins_for(y, bins))
    else:
        task = "multi-label, binary-class"
        known = ~np.isnan(y).all(axis=0) & ~np.isnan(score_NC).all(axis=0)
        each = [
            metrics.ece(y[:, c], score_NC[:, c], bins=bins_for(y[:, c], bins))
            for c in np.flatnonzero(known)
        ]
        error = metrics.macro(np.array(each))
    auc, acc = metrics.medmnist(y, score_NC, task)
    return {
        "prevalence": metrics.macro(share_C[share_C > 0]),
        **{f"prevalence/{name}": float(v) for name, v in zip(names, share_C, strict=True)},
        "ece": error,
        "medmnist/auc": auc,
        "medmnist/acc": acc,
    }


def write_predictions(part: SplitFeatures, score_NC: np.ndarray, path: Path) -> Path:
    """One line per image: id, patient, label(s) by name and score/<name>; unknown is empty."""
    names, y = part.label_names, part.labels
    findings = y is not None and y.ndim == 2
    told = [f"label/{name}" for name in names] if findings else ["label"]
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write = csv.writer(file).writerow
        write(["id", "patient", *told, *(f"score/{name}" for name in names)])
        for i, name in enumerate(part.ids):
            if y is None:
                label = [""]
            elif findings:
                label = ["" if np.isnan(v) else str(int(v)) for v in y[i]]
            else:
                label = [names[y[i]] if y[i] >= 0 else ""]
            patient = "" if part.patients is None else part.patients[i]
            write([name, patient, *label, *(f"{value:.9g}" for value in score_NC[i])])
    return path
