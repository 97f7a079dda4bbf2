"""Scores of hard decisions. Images without a label, -1 or nan, are left out of every one."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from vilmedic_ssl.metrics.arrays import labelled
from vilmedic_ssl.metrics.ranking import auroc, columns, macro, one_hot

Task = Literal["multi-class", "binary-class", "multi-label, binary-class", "ordinal-regression"]


class PerClass(NamedTuple):
    """Four (C,) arrays, one number per class or finding."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def accuracy(y: Any, predicted: Any) -> float:
    """Share of rows whose predicted class, (N,), is the true one, (N,). nan for no labelled row."""
    y, predicted = _known(y, predicted)
    return float((y == predicted).mean()) if len(y) else float("nan")


def balanced_accuracy(y: Any, predicted: Any) -> float:
    """Mean over the classes present in `y` of the share recognised; chance is 1 / classes. nan for
    no labelled row.
    """
    y, predicted = _known(y, predicted)
    if not len(y):
        return float("nan")
    _, of_N = np.unique(y, return_inverse=True)
    return float((np.bincount(of_N, weights=y == predicted) / np.bincount(of_N)).mean())


def recalls(y: Any, predicted: Any, *, classes: int) -> np.ndarray:
    """(C,) share of the rows of each class that is recognised; nan for a class without rows."""
    count_CC = confusion(y, predicted, classes=classes)
    true_C = count_CC.sum(axis=1)
    return np.where(true_C > 0, np.diag(count_CC) / np.maximum(true_C, 1), np.nan)


def top_k(y: Any, score: Any, *, k: int = 5) -> float:
    """Share of rows whose true class, (N,), is among the k with the highest scores, (N, C).

    Of equal scores the lower class comes first, as in argmax: top_k with k = 1 is the accuracy. nan
    for no labelled row.
    """
    y, score_NC = _known(y, score)
    if not len(y):
        return float("nan")
    first_NK = np.argsort(-score_NC, axis=1, kind="stable")[:, :k]
    return float((first_NK == y[:, None]).any(axis=1).mean())


def confusion(y: Any, predicted: Any, *, classes: int) -> np.ndarray:
    """(C, C) int64 counts: rows the true class, columns the predicted one, both (N,) from 0."""
    y, predicted = _known(y, predicted)
    place_N = y.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(place_N, minlength=classes**2).reshape(classes, classes)


def per_class(count_CC: np.ndarray) -> PerClass:
    """Precision, recall, F1 = 2 TP / (2 TP + FP + FN) and support of every class of a `confusion`.

    Division by zero, as scikit-learn's `zero_division=0`: a class that is never predicted has
    precision 0, one that never occurs has recall 0. A class that neither occurs nor is predicted
    has no scores: nan, so that `macro` leaves it out, as scikit-learn's average="macro" does.
    """
    hit_C = np.diag(count_CC).astype(np.float64)
    said_C, true_C = count_CC.sum(axis=0), count_CC.sum(axis=1)
    return _scores(hit_C, said_C, true_C)


def per_finding(y_NC: np.ndarray, score_NC: np.ndarray, *, threshold: float = 0.5) -> PerClass:
    """The same of every finding, where it is known: found when its score is above `threshold`.

    Args:
        y_NC: (N, C) in {0, 1, nan}. score_NC: (N, C); a column of nan gives nan.
    """
    found_NC = (score_NC > threshold) & ~np.isnan(y_NC)
    hit_C, said_C = (found_NC & (y_NC == 1)).sum(axis=0), found_NC.sum(axis=0)
    made = _scores(hit_C.astype(np.float64), said_C, (y_NC == 1).sum(axis=0))
    unknown_C = np.isnan(score_NC).all(axis=0)
    precision_C, recall_C, f1_C = (np.where(unknown_C, np.nan, values) for values in made[:3])
    return PerClass(precision_C, recall_C, f1_C, made.support)


def prevalence(y: Any) -> float:
    """Share of positives, (N,) in {0, 1, nan}: the chance level of `auprc`. nan for no known
    row.
    """
    y_N = np.asarray(y, dtype=np.float64)
    return float(np.nanmean(y_N)) if (~np.isnan(y_N)).any() else float("nan")


def medmnist(y: Any, score: Any, task: Task) -> tuple[float, float]:
    """AUC and ACC as MedMNIST's evaluator defines them (Yang et al. 2023, package medmnist).

    multi-class, ordinal-regression: mean AUROC of each class against the rest; argmax accuracy.
    binary-class: both of the last column, threshold 0.5. multi-label: per label, threshold 0.5,
    then the mean. A label with one kind of row only is left out here, there it is an error.

    Args:
        y: (N,) or (N, 1) classes from 0; (N, C) in {0, 1, nan} for multi-label.
        score: (N, C) probabilities, for binary-class also (N,).
    """
    y, score_NC = np.asarray(y), np.asarray(score)
    if task == "multi-label, binary-class":
        hard_NC = (score_NC > 0.5).astype(np.float64)
        return macro(columns(auroc, y, score_NC)), macro(columns(accuracy, y, hard_NC))
    y = y.reshape(len(y))
    if task == "binary-class":
        last_N = score_NC if score_NC.ndim == 1 else score_NC[:, -1]
        hot_N = np.where(labelled(y), y, np.nan)
        return auroc(hot_N, last_N), accuracy(y, last_N > 0.5)
    hot_NC = one_hot(y, score_NC.shape[1])
    return macro(columns(auroc, hot_NC, score_NC)), accuracy(y, score_NC.argmax(axis=1))


def _known(y: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    y, predicted = np.asarray(y), np.asarray(predicted)
    known_N = labelled(y)
    return (y, predicted) if known_N.all() else (y[known_N], predicted[known_N])


def _scores(hit_C: np.ndarray, said_C: np.ndarray, true_C: np.ndarray) -> PerClass:
    def share(part_C: np.ndarray, of_C: np.ndarray) -> np.ndarray:
        made_C = np.divide(part_C, of_C, out=np.zeros(len(part_C)), where=of_C > 0)
        return np.where(said_C + true_C > 0, made_C, np.nan)

    f1_C = share(2 * hit_C, said_C + true_C)
    return PerClass(share(hit_C, said_C), share(hit_C, true_C), f1_C, true_C.astype(np.int64))
