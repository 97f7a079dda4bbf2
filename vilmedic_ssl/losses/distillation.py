"""A student learns the class probabilities of a teacher (Hinton et al. 2015; Chen et al. 2020b,
section 2, eq. 2 and 3).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.losses.exact import exact
from vilmedic_ssl.losses.labels import finding_entropy


@exact
def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    findings: bool = False,
) -> Tensor:
    """alpha * temperature^2 * soft cross entropy + (1 - alpha) * cross entropy with labels.

    The soft cross entropy is that of softmax(student / temperature) under softmax(teacher /
    temperature), for findings the mean over them of the binary one of sigmoids; its mean is over
    all images of the global batch. Temperature^2 keeps its gradient as large as that of the other
    term (Hinton et al. 2015, section 2). The mean of the cross entropy with labels is over the
    images of the global batch that have one, 0 if none has.

    Args:
        student_logits: (n, C) of this rank.
        teacher_logits: (n, C) of the same images; no gradient reaches them.
        temperature: > 0.
        labels: (n,) int64 classes, -1 = unknown; or (n, C) float in {0, 1, nan = unknown}. None
            only with alpha = 1.
        alpha: in [0, 1].
        findings: columns are findings, not classes; labels with two axes say so themselves.

    Returns:
        Scalar loss of the global batch, the same on every rank.

    Raises:
        UserError: alpha below 1 without labels.
    """
    findings = findings or (labels is not None and labels.dim() == 2)
    warm_S, warm_T = student_logits / temperature, teacher_logits.detach() / temperature
    if findings:
        target_NC = warm_T.sigmoid()
        soft_N = F.binary_cross_entropy_with_logits(warm_S, target_NC, reduction="none").mean(1)
    else:
        soft_N = -(warm_T.softmax(1) * warm_S.log_softmax(1)).sum(1)
    loss = alpha * temperature**2 * dist.global_mean(soft_N)
    if alpha == 1:
        return loss
    if labels is None:
        raise UserError(f"distillation: alpha {alpha} takes labels; give them, or write alpha: 1")
    return loss + (1 - alpha) * _known_entropy(student_logits, labels.detach())


def _known_entropy(logits_NC: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, mean over the labelled images of the global batch."""
    if labels.dim() == 1:
        known_N = labels >= 0
        entropy_N = F.cross_entropy(logits_NC, labels, reduction="none", ignore_index=-1)
    else:
        known_N = ~labels.isnan().all(1)
        entropy_N = finding_entropy(logits_NC, labels)
    count = dist.total(known_N.sum().to(logits_NC.dtype))
    return dist.total(entropy_N.sum()) / count.clamp_min(1)
