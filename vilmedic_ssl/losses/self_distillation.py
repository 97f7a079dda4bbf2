"""Self-distillation between crops. Shapes: n = rows of this rank, C = crops of the student, G =
crops of the teacher, K = width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.losses.exact import exact


@exact
def dino(
    student_NCK: Tensor,
    teacher_NGK: Tensor,
    *,
    student_temp: float,
    teacher_temp: float,
    center: Tensor,
) -> Tensor:
    """Cross entropy of the student's crops under the teacher's (DINO, Caron et al. 2021, eq. 3,
    algorithm 1).

    The teacher's distribution is softmax((teacher - center) / teacher_temp), the student's
    softmax(student / student_temp); the mean over all pairs of different crops and over the global
    batch. A uniform student gives ln K.

    Args:
        student_NCK: (n, C, K) logits of this rank; the first G crops are the teacher's, in order.
        teacher_NGK: (n, G, K) logits of the same images; no gradient reaches them.
        student_temp, teacher_temp: temperatures, > 0.
        center: (K,) moving mean of the teacher's logits, any float dtype.

    Returns:
        Scalar loss of the global batch, the same on every rank.

    Raises:
        UserError: fewer than two crops, or more crops of the teacher than of the student.
    """
    crops, seen = student_NCK.shape[1], teacher_NGK.shape[1]
    if crops < 2 or not 1 <= seen <= crops:
        raise UserError(
            f"dino: {crops} crop(s) of the student and {seen} of the teacher leave no pair of "
            "different crops; give the student at least two, the teacher's first"
        )
    log_NCK = (student_NCK / student_temp).log_softmax(-1)
    target_NGK = ((teacher_NGK - center.to(teacher_NGK)).detach() / teacher_temp).softmax(-1)
    cross_NGC = -(target_NGK @ log_NCK.mT)
    different_GC = ~torch.eye(seen, crops, dtype=torch.bool, device=student_NCK.device)
    return dist.global_mean(cross_NGC[:, different_GC].mean(1))
