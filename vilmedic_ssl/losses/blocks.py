"""Cross entropy over similarities without their whole matrix. Shapes: A = anchors, M = keys, D =
width, B = rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

WHOLE = 2**22  # most logits held at once; a larger matrix goes in blocks of a quarter of that


def cross_entropies(
    anchors_AD: Tensor,
    keys_MD: Tensor,
    partner_A: Tensor,
    *,
    tau: float,
    itself_A: Tensor | None = None,
) -> Tensor:
    """Cross entropy of every anchor's partner among the keys, (A,); logits are dot products over
    `tau`.

    Beyond `WHOLE` logits the anchors go in blocks of rows that the backward pass computes again, so
    memory grows with A + M and not with A x M. No rank talks to another here.

    Args:
        partner_A: (A,) int64, the key to find.  itself_A: (A,) int64, a key that does not count.
    """
    if len(anchors_AD) * len(keys_MD) > WHOLE:
        return _InBlocks.apply(anchors_AD, keys_MD, partner_A, itself_A, tau)
    logits_AM = anchors_AD @ keys_MD.T / tau
    if itself_A is not None:
        logits_AM = logits_AM.scatter(1, itself_A[:, None], -torch.inf)
    return F.cross_entropy(logits_AM, partner_A, reduction="none")


class _InBlocks(torch.autograd.Function):
    """The same numbers through one small buffer: autograd, with or without checkpoints, allocates
    several matrices per block, which the C library's heap keeps long after they are freed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors_AD: Tensor,
        keys_MD: Tensor,
        partner_A: Tensor,
        itself_A: Tensor | None,
        tau: float,
    ) -> Tensor:
        ctx.save_for_backward(anchors_AD, keys_MD, partner_A, itself_A)
        ctx.tau = tau
        loss_A = anchors_AD.new_empty(len(anchors_AD))
        for rows, logits_BM in _blocks(anchors_AD, keys_MD, itself_A, tau):
            own_B = logits_BM.gather(1, partner_A[rows, None])[:, 0]
            loss_A[rows] = logits_BM.exp_().sum(1).log() - own_B
        return loss_A

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_A: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        anchors_AD, keys_MD, partner_A, itself_A = ctx.saved_tensors
        to_anchors_AD = torch.empty_like(anchors_AD)
        to_keys_MD = torch.zeros_like(keys_MD) if ctx.needs_input_grad[1] else None
        for rows, logits_BM in _blocks(anchors_AD, keys_MD, itself_A, ctx.tau):
            p_BM = logits_BM.exp_()
            p_BM.div_(p_BM.sum(1, keepdim=True))
            p_BM.scatter_add_(1, partner_A[rows, None], -torch.ones_like(p_BM[:, :1]))
            p_BM.mul_(grad_A[rows, None] / ctx.tau)
            to_anchors_AD[rows] = p_BM @ keys_MD
            if to_keys_MD is not None:
                to_keys_MD.addmm_(p_BM.T, anchors_AD[rows])
        return to_anchors_AD, to_keys_MD, None, None, None


def _blocks(
    anchors_AD: Tensor, keys_MD: Tensor, itself_A: Tensor | None, tau: float
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their logits (B, M) less the row's largest, in a buffer that the next block uses
    again.
    """
    step = max(1, WHOLE // 4 // len(keys_MD))
    buffer_BM = anchors_AD.new_empty(step, len(keys_MD))
    for begin in range(0, len(anchors_AD), step):
        rows = slice(begin, min(begin + step, len(anchors_AD)))
        logits_BM = buffer_BM[: rows.stop - begin]
        torch.mm(anchors_AD[rows], keys_MD.T, out=logits_BM).div_(tau)
        if itself_A is not None:
            logits_BM.scatter_(1, itself_A[rows, None], -torch.inf)
        yield rows, logits_BM.sub_(logits_BM.amax(1, keepdim=True))
