"""Image-text retrieval: exact pairs in both directions, and by class."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, unit_rows

BLOCK = 1024  # queries at once


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
    of_N = merged(range(len(text_ND)) if text_ids is None else text_ids)
    _, first_T = np.unique(of_N, return_index=True)
    image_N, text_T = pair_ranks(image_ND @ text_ND[first_T].T, of_N)
    found = {"image_to_text": image_N, "text_to_image": text_T}
    result = {f"{way}/R@{k}": float((r <= k).mean()) for way, r in found.items() for k in ks}
    for way, ranks in found.items():
        result[f"{way}/median_rank"] = float(np.median(ranks))
        result[f"{way}/mean_rank"] = float(ranks.mean())
    return result | {"texts": float(len(first_T)), "duplicate_ceiling": len(first_T) / len(of_N)}


def merged(text_ids: Sequence[Hashable] | range) -> np.ndarray:
    """(N,) number of each row's text, from 0 in the order in which texts first occur."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(i, len(number)) for i in text_ids])


def pair_ranks(similarity_NT: np.ndarray, of_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank from 1 of every image's text, (N,), and of every text's best image, (T,).

    Args:
        similarity_NT: of N images with T different texts.  of_N: number of each image's text.
    """
    relevant_NT = of_N[:, None] == np.arange(similarity_NT.shape[1])
    return _ranks(similarity_NT, relevant_NT), _ranks(similarity_NT.T, relevant_NT.T)


def recall_by_chance(right: Any, candidates: int, *, k: int) -> float:
    """R@k to be expected of a random order, mean over queries: exact, 1 - C(n - g, k) / C(n, k).

    Args:
        right: (Q,) how many of the `candidates` n are right answers g of each query, at least 1.
    """
    left_Q = candidates - np.asarray(right, np.float64)
    drawn = np.arange(min(k, candidates))[:, None]
    miss_Q = ((left_Q - drawn).clip(0) / (candidates - drawn)).prod(axis=0)
    return float((1 - miss_Q).mean())


def precision_at(
    similarity_QC: np.ndarray,
    right_QC: np.ndarray,
    *,
    k: int,
    allowed_QC: np.ndarray | None = None,
) -> np.ndarray:
    """Share of the k most similar candidates that are right, (Q,); nan for a query with fewer than
    k candidates.

    Of candidates with equal similarity at the k-th place every choice counts alike, so a collapsed
    model gets the prevalence.

    Args:
        similarity_QC: of Q queries with C candidates.  right_QC: bool.
        allowed_QC: bool: the candidates of each query (not itself, say); None = all.
    """
    allowed_QC = np.ones(right_QC.shape, bool) if allowed_QC is None else allowed_QC
    if k > right_QC.shape[1]:
        return np.full(len(right_QC), np.nan)
    if len(right_QC) > BLOCK:  # bounds the memory, changes no number
        every = (similarity_QC, right_QC, allowed_QC)
        parts = [[x[at : at + BLOCK] for x in every] for at in range(0, len(right_QC), BLOCK)]
        return np.concatenate([precision_at(s, r, k=k, allowed_QC=a) for s, r, a in parts])
    cos_QC = np.where(allowed_QC, similarity_QC, -np.inf)
    last_Q1 = -np.partition(-cos_QC, k - 1, axis=1)[:, k - 1 : k]
    above_QC, tied_QC = cos_QC > last_Q1, (cos_QC == last_Q1) & allowed_QC
    places_Q = k - above_QC.sum(axis=1)  # left for the tied ones
    tied_share_Q = (tied_QC & right_QC).sum(axis=1) / np.maximum(tied_QC.sum(axis=1), 1)
    share_Q = ((above_QC & right_QC).sum(axis=1) + places_Q * tied_share_Q) / k
    return np.where(allowed_QC.sum(axis=1) >= k, share_Q, np.nan)


def _ranks(cos_QT: np.ndarray, relevant_QT: np.ndarray) -> np.ndarray:
    """Rank from 1 of the best relevant candidate of every query, (Q,); ties with irrelevant ones
    share the mean.
    """
    best_Q1 = np.where(relevant_QT, cos_QT, -np.inf).max(axis=1, keepdims=True)
    other_QT = np.where(relevant_QT, -np.inf, cos_QT)
    return 1 + (other_QT > best_Q1).sum(axis=1) + (other_QT == best_Q1).sum(axis=1) / 2
