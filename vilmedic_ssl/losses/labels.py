"""Cross entropy with labels: of one class per image, of ordered classes, of several findings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.losses.exact import exact


@exact
def label_entropy(
    logits_NC: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean over the images of the global batch of weight times cross entropy.

    The mean divides by the number of images, not by the sum of their weights, and an image without
    a label counts as one with entropy 0: so the loss adds over parts of a batch.

    Args:
        logits_NC: (n, C) scores of this rank.
        labels: (n,) int64 classes in [0, C), -1 = unknown; or (n, C) float in {0, 1, nan =
            unknown}, where an image's entropy is the mean binary cross entropy over its known
            findings, 0 without any.
        label_smoothing: s in [0, 1): the target is (1 - s) * label + s / C, for findings
            (1 - s) * label + s / 2 (Szegedy et al. 2016, section 7).
        class_weights: (C,) >= 0: weight of an image of each class; for findings, weight of a
            finding's term where it is present, absent ones weigh 1.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    if labels.dim() == 1:
        entropy_N = F.cross_entropy(
            logits_NC, labels, reduction="none", ignore_index=-1, label_smoothing=label_smoothing
        )
        return dist.global_mean(entropy_N * _weights(labels, class_weights, entropy_N))
    return dist.global_mean(finding_entropy(logits_NC, labels, label_smoothing, class_weights))


@exact
def ordinal_entropy(
    logits_NK: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Of ordered classes: sum over K = C - 1 questions "is it above class k?" of the binary cross
    entropy (CORAL, Cao et al. 2020, eq. 4, all questions equally important), mean over images as
    in `label_entropy`.

    Args:
        logits_NK: (n, K) log odds of being above class 0 ... K - 1, on this rank.
        labels: (n,) int64 in [0, K], -1 = unknown.
        label_smoothing: s in [0, 1): the answers are (1 - s) * answer + s / 2.
        class_weights: (K + 1,) >= 0: weight of an image of each class.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    steps_K = torch.arange(logits_NK.shape[1], device=labels.device)
    above_NK = (labels[:, None] > steps_K).to(logits_NK.dtype)
    above_NK = above_NK * (1 - label_smoothing) + label_smoothing / 2
    entropy_N = F.binary_cross_entropy_with_logits(logits_NK, above_NK, reduction="none").sum(1)
    entropy_N = entropy_N * (labels >= 0)
    return dist.global_mean(entropy_N * _weights(labels, class_weights, entropy_N))


def ordinal_logits(logits_NK: Tensor) -> Tensor:
    """(n, K) log odds of being above each class but the last -> (n, K + 1) log probabilities.

    P(c) = s(a) - s(b) with a, b the log odds of being above c - 1 and c, which is s(a) s(-b)
    (1 - exp(b - a)). Where b > a, as biases may stand early in training, P is next to 0.
    """
    below_NK = F.logsigmoid(-logits_NK)
    gaps_NK = (logits_NK[:, 1:] - logits_NK[:, :-1]).clamp(max=-1e-6)
    inner_NK = F.logsigmoid(logits_NK[:, :-1]) + below_NK[:, 1:] + (-gaps_NK.expm1()).log()
    ends = below_NK[:, :1], F.logsigmoid(logits_NK[:, -1:])
    return torch.cat([ends[0], inner_NK, ends[1]], dim=1).log_softmax(1)


def finding_entropy(
    logits_NC: Tensor,
    labels_NC: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean binary cross entropy of each image over its known findings, (n,); 0 without any."""
    known_NC = ~labels_NC.isnan()
    target_NC = labels_NC.nan_to_num().to(logits_NC.dtype)
    if label_smoothing:
        target_NC = target_NC * (1 - label_smoothing) + label_smoothing / 2
    entropy_NC = F.binary_cross_entropy_with_logits(
        logits_NC,
        target_NC,
        reduction="none",
        pos_weight=None if class_weights is None else class_weights.to(logits_NC),
    )
    return (entropy_NC * known_NC).sum(1) / known_NC.sum(1).clamp_min(1)


def _weights(labels: Tensor, class_weights: Tensor | None, like: Tensor) -> Tensor | float:
    """What each image's entropy is multiplied by."""
    return 1.0 if class_weights is None else class_weights.to(like)[labels.clamp_min(0)]
