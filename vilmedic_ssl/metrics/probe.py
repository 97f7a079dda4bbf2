"""Linear probe: how much of the answer a straight line finds in frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, as_labels

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C on standardised features
PATIENCE = 2  # validation loss is close to convex in log C: after two worse steps the best is known
FALLBACK = 1e-2  # where validation knows nothing about a finding


def linear_probe(
    train_x: Any,
    train_y: Any,
    val_x: Any,
    val_y: Any,
    test_x: Any,
    *,
    grid: Sequence[float] = GRID,
) -> np.ndarray:
    """Class probabilities of an L2 logistic regression on features standardised with the training
    rows.

    The regularisation strength C is the one of `grid` (ascending) with the lowest cross-entropy on
    validation; the training rows alone are fitted. Findings get one binary model each, on the rows
    where they are known, each with its own C. What has a single class in training gets a constant
    score: that class's share (0 or 1).

    Args:
        train_x, val_x, test_x: (N, D), (V, D), (M, D) features.
        train_y, val_y: (N,), (V,) classes counted from 0, or (N, C), (V, C) findings in {0, 1,
            nan}.

    Returns:
        (M, C) float64 in [0, 1]; for classes C = largest label + 1 and rows sum to 1;
        nan for a finding that training knows nowhere.

    Raises:
        UserError: wrong shapes or labels, or features that are not finite.
    """
    x = {"train": train_x, "val": val_x, "test": test_x}
    x = {name: as_features(rows, f"{name}_x").astype(np.float64) for name, rows in x.items()}
    y_train = as_labels(train_y, "train_y", rows=len(x["train"]))
    y_val = as_labels(val_y, "val_y", rows=len(x["val"]))
    if y_train.shape[1:] != y_val.shape[1:]:
        raise UserError(f"linear_probe: labels {y_train.shape} and {y_val.shape} are of two kinds")
    mean_D, std_D = x["train"].mean(axis=0), x["train"].std(axis=0)
    std_D[std_D < 1e-12] = 1.0
    train, val, test = ((x[name] - mean_D) / std_D for name in ("train", "val", "test"))
    if y_train.ndim == 1:
        classes = max(y_train.max(), y_val.max()) + 1
        return _fit(train, y_train, val, y_val, test, classes, grid)
    scores = []
    for t, v in zip(y_train.T, y_val.T, strict=True):
        a, b = ~np.isnan(t), ~np.isnan(v)
        if not a.any():
            scores.append(np.full(len(test), np.nan))
            continue
        fit = _fit(train[a], t[a].astype(int), val[b], v[b].astype(int), test, 2, grid)
        scores.append(fit[:, 1])
    return np.stack(scores, axis=1)


def _fit(
    train_ND: np.ndarray,
    y_N: np.ndarray,
    val_VD: np.ndarray,
    y_V: np.ndarray,
    test_MD: np.ndarray,
    classes: int,
    grid: Sequence[float],
) -> np.ndarray:
    """(M, classes) probabilities at the C that is best on validation."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(y_N)
    best_MC = np.zeros((len(test_MD), classes))
    if len(seen) == 1:
        best_MC[:, seen[0]] = 1.0
        return best_MC
    # From strong to weak regularisation, each fit starting where the last one ended.
    model = LogisticRegression(max_iter=500, warm_start=True)
    lowest, worse = np.inf, 0
    for C in grid if len(y_V) else (FALLBACK,):
        model.set_params(C=C)
        with (
            warnings.catch_warnings()
        ):  # a weak C may stop at max_iter; validation then judges what it got
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(train_ND, y_N)
        loss = _cross_entropy(y_V, val_VD, model, classes) if len(y_V) else 0.0
        if loss < lowest:
            lowest, worse = loss, 0
            best_MC[:, seen] = model.predict_proba(test_MD)
        else:
            worse += 1
            if worse == PATIENCE:
                break
    return best_MC


def _cross_entropy(y_V: np.ndarray, val_VD: np.ndarray, model: Any, classes: int) -> float:
    p_VC = np.zeros((len(y_V), classes))
    p_VC[:, model.classes_] = model.predict_proba(val_VD)
    return float(-np.log(p_VC[np.arange(len(y_V)), y_V].clip(1e-12)).mean())
