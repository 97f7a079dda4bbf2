"""What the metrics ask of their arguments, checked in one place and said in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vilmedic_ssl.data.patients import is_missing
from vilmedic_ssl.errors import UserError


def as_features(x: Any, name: str) -> np.ndarray:
    """`x` as a finite (N, D) float array; float32 stays, everything else becomes float64.

    Raises:
        UserError: not two-dimensional, no rows, or a nan or infinite value.
    """
    array = np.asarray(x)
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if array.ndim != 2 or not len(array):
        raise UserError(f"{name}: expected rows of features, (N, D), found shape {array.shape}")
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise UserError(
            f"{name}: {len(rows)} rows hold nan or infinite values (first: row {rows[0]}); "
            f"leave them out or use another checkpoint"
        )
    return array


def as_labels(y: Any, name: str, *, rows: int) -> np.ndarray:
    """`y` as (N,) int64 classes counted from 0, or as (N, C) float64 findings in {0, 1, nan}.

    Raises:
        UserError: another shape or length, negative or fractional classes, findings outside {0, 1,
        nan}.
    """
    array = np.asarray(y)
    if array.ndim not in (1, 2) or len(array) != rows:
        raise UserError(
            f"{name}: expected {rows} labels, (N,) or (N, C), found shape {array.shape}"
        )
    if array.ndim == 2:
        array = array.astype(np.float64)
        if not np.isin(array[~np.isnan(array)], (0.0, 1.0)).all():
            raise UserError(
                f"{name}: findings must be 0, 1 or nan (unknown); map other values first"
            )
        return array
    if array.dtype.kind not in "biuf" or (array < 0).any() or (array % 1 != 0).any():
        raise UserError(f"{name}: classes must be whole numbers counted from 0")
    return array.astype(np.int64)


def labelled(y: Any) -> np.ndarray:
    """(N,) bool: the rows with a label. Unlabelled are class -1 or nan, (N,), and findings, (N, C),
    of which none is known.
    """
    array = np.asarray(y)
    if array.dtype.kind not in "iuf":  # names of classes
        return np.ones(len(array), dtype=bool)
    known = np.asarray(array >= 0)
    return known if array.ndim == 1 else np.asarray(known.any(axis=1))


def group_numbers(groups: Sequence[Any] | np.ndarray | None, *, rows: int) -> np.ndarray:
    """(N,) int64: equal numbers for rows of one group (patient); a row whose group is missing is a
    group of its own, as all are for None.
    """
    if groups is None:
        return np.arange(rows)
    names = [("", i) if is_missing(g) else (str(g), 0) for i, g in enumerate(groups)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def unit_rows(x_ND: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean length; a zero row stays zero."""
    length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND / np.where(length_N1 > 0, length_N1, 1)
