"""Is the representation alive? Measures without labels, and two with labels that go beside a
picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vilmedic_ssl.metrics.arrays import as_features, group_numbers, unit_rows
from vilmedic_ssl.metrics.knn import neighbours, same_group

MOST = 2000  # rows compared with each other; more would cost memory and change no decision


def effective_rank(x: Any) -> float:
    """exp(entropy of the singular values of `x` scaled to sum 1), from 1 to min(N, D); 0 for all
    zeros.

    Roy & Vetterli 2007; RankMe (Garrido et al. 2023) without its small constant. Not centred: a
    collapsed embedding, every row the same, gives 1.
    """
    singular = np.linalg.svd(as_features(x, "x").astype(np.float64), compute_uv=False)
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum()
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))


def feature_std(x: Any) -> float:
    """Mean over dimensions of the standard deviation of unit-length rows: 0 collapsed, 1/sqrt(D)
    spread out.

    Chen & He 2021 (SimSiam), section 4.1.
    """
    return float(unit_rows(as_features(x, "x")).std(axis=0).mean())


def alignment(x: Any, y: Any) -> float:
    """Mean squared distance of paired unit rows, 0 to 4: low when two views agree (Wang & Isola
    2020).
    """
    x_ND, y_ND = unit_rows(as_features(x, "x")), unit_rows(as_features(y, "y"))
    return float(((x_ND - y_ND) ** 2).sum(axis=1).mean())


def uniformity(x: Any) -> float:
    """log of the mean over pairs of exp(-2 squared distance) of unit rows: 0 collapsed, lower is
    more even.

    Wang & Isola 2020. Reads at most 2000 evenly spaced rows; nan for one row.
    """
    x_ND = unit_rows(_thin(as_features(x, "x")).astype(np.float64))
    if len(x_ND) < 2:
        return float("nan")
    pairs = (x_ND @ x_ND.T)[np.triu_indices(len(x_ND), 1)]
    return float(np.log(np.exp(-4 * (1 - pairs)).mean()))


def modality_gap(image: Any, text: Any) -> float:
    """Distance between the mean unit image vector and the mean unit text vector, 0 to 2: how far
    apart the two kinds lie, whatever their pairs do (Liang et al. 2022).
    """
    image_ND, text_ND = unit_rows(as_features(image, "image")), unit_rows(as_features(text, "text"))
    return float(np.linalg.norm(image_ND.mean(axis=0) - text_ND.mean(axis=0)))


def silhouette(x: Any, y: Sequence[Any] | np.ndarray) -> float:
    """Mean cosine silhouette of the classes, -1 to 1; nan unless 2 <= classes < rows. At most 2000
    rows are read.
    """
    from sklearn.metrics import silhouette_score

    x_ND, y_N = _thin(as_features(x, "x")), _thin(np.asarray(y))
    if not 2 <= len(np.unique(y_N)) < len(y_N):
        return float("nan")
    return float(silhouette_score(x_ND, y_N, metric="cosine"))


def knn_purity(
    x: Any,
    y: Sequence[Any] | np.ndarray,
    *,
    k: int = 10,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> float:
    """Mean share of a row's k nearest others (cosine) that carry its class; nan when no row has
    another.

    Rows of the same group (patient) do not count as others: being close to oneself is no merit. A
    row without group (blank) is one by itself. Its chance level is `knn_purity_chance`. At most
    2000 evenly spaced rows are asked.
    """
    x_ND, y_N = as_features(x, "x"), np.asarray(y)
    group_N = group_numbers(groups, rows=len(x_ND))
    asked = _thin(np.arange(len(x_ND)))
    barred = same_group(group_N[asked], group_N)
    near_MK, cos_MK = neighbours(x_ND[asked], x_ND, k=k, barred=barred)
    other_MK = np.isfinite(cos_MK)
    same_MK = (y_N[near_MK] == y_N[asked, None]) & other_MK
    has_M = other_MK.any(axis=1)
    share = same_MK[has_M].sum(axis=1) / other_MK[has_M].sum(axis=1)
    return float(share.mean()) if has_M.any() else float("nan")


def knn_purity_chance(
    y: Sequence[Any] | np.ndarray, *, groups: Sequence[Any] | np.ndarray | None = None
) -> float:
    """What `knn_purity` is for features without information: the mean over the same rows of the
    share of others that carry the row's class; nan when no row has another.
    """
    y_N, group_N = np.asarray(y), group_numbers(groups, rows=len(y))
    _, class_N = np.unique(y_N, return_inverse=True)
    cell_N = group_N * (class_N.max() + 1) + class_N
    asked = _thin(np.arange(len(y_N)))
    other_M = len(y_N) - np.bincount(group_N)[group_N[asked]]
    same_M = np.bincount(class_N)[class_N[asked]] - np.bincount(cell_N)[cell_N[asked]]
    has_M = other_M > 0
    return float((same_M[has_M] / other_M[has_M]).mean()) if has_M.any() else float("nan")


def _thin(rows: np.ndarray) -> np.ndarray:
    """At most MOST rows, evenly spaced."""
    if len(rows) <= MOST:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST).astype(int)]
