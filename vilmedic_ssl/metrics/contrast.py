"""How often a view finds its other view: the accuracy that goes with a contrastive loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import as_features, unit_rows

MOST = 2**22  # cosines held at once


def contrastive_accuracy(z1: Any, z2: Any, *, tau: float | None = None) -> dict[str, float]:
    """Rank by cosine of each row's other view, under both published definitions.

    "between": each row of `z1` looks for its partner among the N rows of `z2` (google-research/
    simclr's contrast accuracy). "all": each of the 2N rows looks among the 2N - 1 others, as in the
    loss (Chen et al. 2020, eq. 1). The two do not compare, and neither do different N: chance is
    k / candidates for top-k and (candidates + 1) / 2 for the mean rank. Equal cosines share their
    mean rank, so a collapsed model ranks in the middle instead of first.

    Args:
        z1, z2: (N, D) embeddings, row i of both from the same image; need not have unit length.
        tau: temperature of the entropy; None leaves the entropy out.

    Returns:
        "between/top1", "between/top5" in [0, 1], "between/mean_rank" (from 1),
        "between/candidates", the same four under "all/", and with `tau` "between/entropy": mean
        entropy in nats of softmax(cosine / tau) over the candidates.

    Raises:
        UserError: unequal shapes, features that are not finite, or `tau` not above 0.
    """
    z1_ND, z2_ND = unit_rows(as_features(z1, "z1")), unit_rows(as_features(z2, "z2"))
    if z1_ND.shape != z2_ND.shape:
        raise UserError(
            f"contrastive_accuracy: z1 {z1_ND.shape} and z2 {z2_ND.shape} must pair up row by row"
        )
    if tau is not None and tau <= 0:
        raise UserError(f"contrastive_accuracy: tau must be above 0, found {tau}")
    n = len(z1_ND)
    ranks: dict[str, list[np.ndarray]] = {"between": [], "all": []}
    entropy = 0.0
    for row_B, cos_BM in _blocks(np.concatenate([z1_ND, z2_ND])):
        ranks["all"].append(_ranks(cos_BM, (row_B + n) % (2 * n)))
        first = row_B < n
        between_BN = cos_BM[first, n:]
        ranks["between"].append(_ranks(between_BN, row_B[first]))
        entropy += 0.0 if tau is None else _entropies(between_BN / tau).sum()
    result = {}
    for name, candidates in (("between", n), ("all", 2 * n - 1)):
        rank_A = np.concatenate(ranks[name])
        result[f"{name}/top1"] = float((rank_A <= 1).mean())
        result[f"{name}/top5"] = float((rank_A <= 5).mean())
        result[f"{name}/mean_rank"] = float(rank_A.mean())
        result[f"{name}/candidates"] = float(candidates)
    return result if tau is None else result | {"between/entropy": float(entropy) / n}


def _blocks(z_MD: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers (B,) and their cosines with every row (B, M), a row with itself -inf."""
    step = max(1, MOST // len(z_MD))
    for begin in range(0, len(z_MD), step):
        cos_BM = z_MD[begin : begin + step] @ z_MD.T
        row_B = begin + np.arange(len(cos_BM))
        cos_BM[np.arange(len(cos_BM)), row_B] = -np.inf
        yield row_B, cos_BM


def _ranks(cos_BM: np.ndarray, partner_B: np.ndarray) -> np.ndarray:
    """Rank from 1 of each row's partner, (B,); ties share the mean."""
    own_B1 = np.take_along_axis(cos_BM, partner_B[:, None], axis=1)
    ties_B = (cos_BM == own_B1).sum(axis=1) - 1
    return 1 + (cos_BM > own_B1).sum(axis=1) + ties_B / 2


def _entropies(logits_BN: np.ndarray) -> np.ndarray:
    """Entropy of the softmax of each row, (B,), in nats."""
    shifted_BN = logits_BN - logits_BN.max(axis=1, keepdims=True)
    weight_BN = np.exp(shifted_BN)
    total_B = weight_BN.sum(axis=1)
    return np.log(total_B) - (weight_BN * shifted_BN).sum(axis=1) / total_B
