"""A linear classifier as numbers, for what needs its gradient and not only its scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, as_labels
from vilmedic_ssl.metrics.probe import FALLBACK


def linear_head(x: Any, y: Any, *, classes: int, C: float = FALLBACK) -> tuple[Any, Any]:
    """L2 logistic regression on standardised features, as weights of the features as they are.

    Args:
        x: (N, D) features.  y: (N,) classes counted from 0, or (N, classes) findings in {0, 1,
            nan}, which get one binary model each, on the rows where they are known.
        C: inverse strength of the L2 penalty.

    Returns:
        weight (classes, D) and bias (classes,), float64: logits are `x @ weight.T + bias`. Zeros,
        and -inf as bias, for a class that no row has; zeros for a finding known to be always so.

    Raises:
        UserError: wrong shapes or labels, or all rows of one class.
    """
    x_ND = as_features(x, "x").astype(np.float64)
    y_N = as_labels(y, "y", rows=len(x_ND))
    mean_D, std_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    std_D[std_D < 1e-12] = 1.0
    z_ND = (x_ND - mean_D) / std_D
    weight_CD = np.zeros((classes, x_ND.shape[1]))
    bias_C = np.zeros(classes)
    if y_N.ndim == 2:
        for c, finding_N in enumerate(y_N.T):
            known_N = ~np.isnan(finding_N)
            if len(np.unique(finding_N[known_N])) == 2:
                fit = _fit(z_ND[known_N], finding_N[known_N], C)
                weight_CD[c], bias_C[c] = fit.coef_[0], fit.intercept_[0]
    else:
        seen = np.unique(y_N)
        if len(seen) < 2:
            raise UserError("linear_head: all rows are of one class; nothing can be told apart")
        fit, bias_C[:] = _fit(z_ND, y_N, C), -np.inf
        # scikit-learn gives two classes one row, the logit of the second against the first
        sign = np.array([[-0.5], [0.5]]) if len(seen) == 2 else 1.0
        weight_CD[seen], bias_C[seen] = sign * fit.coef_, np.ravel(sign) * fit.intercept_
    weight_CD /= std_D
    return weight_CD, bias_C - weight_CD @ mean_D


def _fit(z_ND: np.ndarray, y_N: np.ndarray, C: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=500).fit(z_ND, y_N.astype(int))
