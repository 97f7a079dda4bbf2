"""Image-text retrieval on exact pairs, both directions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, unit_rows


def retrieval(
    image: Any,
    text: Any,
    *,
    ks: Sequence[int] = (1, 5, 10),
    text_ids: Sequence[Hashable] | None = None,
) -> dict[str, float]:
    """Recall at k, median and mean rank by cosine, image -> text and text -> image.

    Row i of `image` belongs to row i of `text`. Rows with the same `text_ids` carry the same text:
    they are merged into one candidate first (as CXR-CLIP does), and a text finds its image when it
    finds any of them. Equal cosines share their mean rank, so a collapsed model ranks in the middle
    instead of first.

    Args:
        image, text: (N, D) embeddings.  text_ids: N hashable names of the texts; None: all differ.

    Returns:
        "image_to_text/R@k", "text_to_image/R@k" in [0, 1] for every k, ".../median_rank",
        ".../mean_rank" (from 1), "texts" (candidates after merging) and "duplicate_ceiling", the
        best R@1 had they not been merged.

    Raises:
        UserError: unequal shapes, or features that are not finite.
    """
    image_ND = unit_rows(as_features(image, "image"))
    text_ND = unit_rows(as_features(text, "text"))
    if image_ND.shape != text_ND.shape or (text_ids is not None and len(text_ids) != len(text_ND)):
        raise UserError(
            f"retrieval: image {image_ND.shape}, text {text_ND.shape} and text_ids "
            f"must pair up row by row"
        )
    ids = list(range(len(text_ND))) if text_ids is None else list(text_ids)
    number: dict[Hashable, int] = {}
    of_N = np.array([number.setdefault(i, len(number)) for i in ids])
    _, first_T = np.unique(of_N, return_index=True)
    relevant_NT = of_N[:, None] == np.arange(len(first_T))
    cos_NT = image_ND @ text_ND[first_T].T
    found = {
        "image_to_text": _ranks(cos_NT, relevant_NT),
        "text_to_image": _ranks(cos_NT.T, relevant_NT.T),
    }
    result = {f"{way}/R@{k}": float((r <= k).mean()) for way, r in found.items() for k in ks}
    for way, ranks in found.items():
        result[f"{way}/median_rank"] = float(np.median(ranks))
        result[f"{way}/mean_rank"] = float(ranks.mean())
    return result | {"texts": float(len(first_T)), "duplicate_ceiling": len(first_T) / len(of_N)}


def _ranks(cos_QT: np.ndarray, relevant_QT: np.ndarray) -> np.ndarray:
    """Rank from 1 of the best relevant candidate of every query, (Q,); ties with irrelevant ones
    share the mean.
    """
    best_Q1 = np.where(relevant_QT, cos_QT, -np.inf).max(axis=1, keepdims=True)
    other_QT = np.where(relevant_QT, -np.inf, cos_QT)
    return 1 + (other_QT > best_Q1).sum(axis=1) + (other_QT == best_Q1).sum(axis=1) / 2
