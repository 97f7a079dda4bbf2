"""Losses of images as codes: DALL-E's cross entropies and its VAE's, sample by sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl.losses.exact import exact


@exact
def token_entropy(logits_BLK: Tensor, ids_BL: Tensor) -> Tensor:
    """Cross entropy of each sequence's tokens, mean over them, (B,), nats."""
    each = F.cross_entropy(logits_BLK.flatten(0, 1), ids_BL.flatten(), reduction="none")
    return each.view_as(ids_BL).mean(1)


@exact
def drawing_error(drawn_BCHW: Tensor, target_BCHW: Tensor, *, smooth_l1: bool = False) -> Tensor:
    """Squared error of each image, mean over its values, (B,); or, with `smooth_l1`, the smooth L1
    error (half the square below 1, Girshick 2015).
    """
    error = F.smooth_l1_loss if smooth_l1 else F.mse_loss
    return error(drawn_BCHW, target_BCHW, reduction="none").flatten(1).mean(1)
