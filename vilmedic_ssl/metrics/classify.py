"""Scores of hard decisions."""

from __future__ import annotations

from typing import Any

import numpy as np


def accuracy(y: Any, predicted: Any) -> float:
    """Share of rows whose predicted class, (N,), is the true one, (N,). nan for no rows."""
    y, predicted = np.asarray(y), np.asarray(predicted)
    return float((y == predicted).mean()) if len(y) else float("nan")


def balanced_accuracy(y: Any, predicted: Any) -> float:
    """Mean over the classes present in `y` of the share recognised; chance is 1 / classes. nan for
    no rows.
    """
    y, predicted = np.asarray(y), np.asarray(predicted)
    if not len(y):
        return float("nan")
    _, of_N = np.unique(y, return_inverse=True)
    return float((np.bincount(of_N, weights=y == predicted) / np.bincount(of_N)).mean())
