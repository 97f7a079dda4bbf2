"""Cross entropy with labels, of one class per image or of several findings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.losses.exact import exact


@exact
def label_entropy(logits_NC: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the images of the global batch.

    Args:
        logits_NC: (n, C) scores of this rank.
        labels: (n,) int64 classes in [0, C); or (n, C) float in {0, 1, nan = unknown}, where an
            image's entropy is the mean binary cross entropy over its known findings, 0 without any.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    if labels.dim() == 1:
        return dist.global_mean(F.cross_entropy(logits_NC, labels, reduction="none"))
    known_NC = ~labels.isnan()
    entropy_NC = F.binary_cross_entropy_with_logits(
        logits_NC, labels.nan_to_num().to(logits_NC.dtype), reduction="none"
    )
    return dist.global_mean((entropy_NC * known_NC).sum(1) / known_NC.sum(1).clamp_min(1))
