"""Linear probe: how much of the answer a straight line finds in frozen features."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, as_labels

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C on standardised features
PATIENCE = 2  # validation loss is close to convex in log C: after two worse steps the best is known
FALLBACK = 1e-2  # where validation knows nothing about a finding
Head = Callable[[np.ndarray], np.ndarray]
"""(M, D) standardised features -> (M, C) probabilities."""


@dataclass
class LinearProbe:
    """A fitted probe; called with (M, D) features it gives the class probabilities (M, C)."""

    mean_D: np.ndarray
    std_D: np.ndarray
    heads: list[Head]
    findings: bool

    def __call__(self, x: Any) -> np.ndarray:
        """As `linear_probe` returns them.

        Raises:
            UserError: wrong shape, or features that are not finite.
        """
        z_MD = (as_features(x, "test_x").astype(np.float64) - self.mean_D) / self.std_D
        if not self.findings:
            return self.heads[0](z_MD)
        return np.stack([head(z_MD)[:, 1] for head in self.heads], axis=1)


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
    where they are known, each with its own C. Without validation rows C is 0.01. What has a single
    class in training gets a constant score: that class's share (0 or 1).

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
    return fit_probe(train_x, train_y, val_x, val_y, grid=grid)(test_x)


def fit_probe(
    train_x: Any, train_y: Any, val_x: Any, val_y: Any, *, grid: Sequence[float] = GRID
) -> LinearProbe:
    """The probe behind `linear_probe`, to be asked more than once; arguments, errors as there."""
    train_x = as_features(train_x, "train_x").astype(np.float64)
    if len(val_x):
        val_x = as_features(val_x, "val_x").astype(np.float64)
    else:
        val_x = np.empty((0, train_x.shape[1]))
    y_train = as_labels(train_y, "train_y", rows=len(train_x))
    y_val = as_labels(val_y, "val_y", rows=len(val_x))
    if y_train.shape[1:] != y_val.shape[1:]:
        raise UserError(f"linear_probe: labels {y_train.shape} and {y_val.shape} are of two kinds")
    mean_D, std_D = train_x.mean(axis=0), train_x.std(axis=0)
    std_D[std_D < 1e-12] = 1.0
    train, val = (train_x - mean_D) / std_D, (val_x - mean_D) / std_D
    if y_train.ndim == 1:
        classes = int(max(y_train.max(), y_val.max(initial=0))) + 1
        head = _fit(train, y_train, val, y_val, classes, grid)
        return LinearProbe(mean_D, std_D, [head], findings=False)
    heads: list[Head] = []
    for t, v in zip(y_train.T, y_val.T, strict=True):
        a, b = ~np.isnan(t), ~np.isnan(v)
        if a.any():
            heads.append(_fit(train[a], t[a].astype(int), val[b], v[b].astype(int), 2, grid))
        else:
            heads.append(_constant(np.full(2, np.nan)))
    return LinearProbe(mean_D, std_D, heads, findings=True)


def _constant(share_C: np.ndarray) -> Head:
    return lambda z_MD: np.tile(share_C, (len(z_MD), 1))


def _fit(
    train_ND: np.ndarray,
    y_N: np.ndarray,
    val_VD: np.ndarray,
    y_V: np.ndarray,
    classes: int,
    grid: Sequence[float],
) -> Head:
    """The model at the C that is best on validation."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(y_N)
    if len(seen) == 1:
        return _constant(np.eye(classes)[seen[0]])
    # From strong to weak regularisation, each fit starting where the last one ended.
    model = LogisticRegression(max_iter=500, warm_start=True)
    best, lowest, worse = model, np.inf, 0
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
            best = copy.deepcopy(model)
        else:
            worse += 1
            if worse == PATIENCE:
                break
    return lambda z_MD: _probabilities(best, z_MD, classes)


def _probabilities(model: Any, z_MD: np.ndarray, classes: int) -> np.ndarray:
    """Zero for the classes that training did not show."""
    p_MC = np.zeros((len(z_MD), classes))
    p_MC[:, model.classes_] = model.predict_proba(z_MD)
    return p_MC


def _cross_entropy(y_V: np.ndarray, val_VD: np.ndarray, model: Any, classes: int) -> float:
    p_VC = _probabilities(model, val_VD, classes)
    return float(-np.log(p_VC[np.arange(len(y_V)), y_V].clip(1e-12)).mean())
