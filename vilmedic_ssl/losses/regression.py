"""Losses that predict another network's output. Shapes: n = rows of this rank, D = width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.losses.exact import exact


def _cosine(prediction_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Mean cosine over the global batch, target detached; a zero row counts 0."""
    unit_ND = F.normalize(target_ND.detach(), dim=1)
    return dist.global_mean((F.normalize(prediction_ND, dim=1) * unit_ND).sum(1))


@exact
def byol(prediction_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Mean squared distance of unit rows, 2 - 2 cos (BYOL, Grill et al. 2020, eq. 2).

    One direction; the paper adds the other, with the views exchanged. From 0 to 4; unrelated rows
    give 2, and so does a zero row (1 in DeepMind's code, which squares the difference instead).

    Args:
        prediction_ND: (n, D) output of the predictor.  target_ND: (n, D) output of the target
            network for the other view; no gradient reaches it. Any float dtype.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    return 2 - 2 * _cosine(prediction_ND, target_ND)


@exact
def sim_siam(prediction_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Negative cosine (SimSiam, Chen & He 2021, eq. 1 and 2).

    One direction; the paper takes the mean of both. From -1 to 1; unrelated rows give 0.

    Args:
        prediction_ND: (n, D) output of the predictor.  target_ND: (n, D) projection of the other
            view; no gradient reaches it. Any float dtype.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    return -_cosine(prediction_ND, target_ND)
