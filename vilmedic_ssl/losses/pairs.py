"""Losses of pairs of an image and a text. Shapes: n = rows of this rank, N = rows of all ranks,
D = width.

Rows of linguistic and visual with the same number belong together. Two matrices, both optional and
both (n, N) bool, this rank's rows against all, symmetric over the whole batch (so they serve both
directions), say more: `positives`, further right answers; `left_out`, pairs that do not count at
all, also where `positives` names them. The pair of a row with itself is always right and counts.

Equal texts look the same to any model. Where m rows have a row's text, its cross entropy cannot
fall below ln m, with or without these as `positives`, and its part of `sigmoid` not below
ln m + (m - 1) ln(m / (m - 1)); with equal texts `left_out` both floors are 0, and that of `sigmoid`
is with equal texts as `positives`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vilmedic_ssl import dist
from vilmedic_ssl.losses import blocks
from vilmedic_ssl.losses.exact import exact

EPS = 1e-8  # least norm of a row, as in torch's cosine similarity


@exact
def convirt(
    linguistic: Tensor,
    visual: Tensor,
    *,
    tau: float | Tensor,
    lambda_: float,
    positives: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Cross entropies of both directions over the global batch (ConVIRT, Zhang et al. 2020, eq. 2
    to 4).

    lambda_ * (image to text) + (1 - lambda_) * (text to image), cosine similarity over `tau`, the
    mean over all rows. With `positives` the target is uniform over the right answers (UniCL, Yang
    et al. 2022, eq. 3 and 4). Chance level is ln N; N = 1 gives 0.

    Args:
        linguistic, visual: (n, D) rows of this rank; any float dtype.
        tau: temperature, > 0; a 0-dim tensor gets a gradient.
        lambda_: share of the direction from image to text; the paper's is 0.75.
        positives, left_out: (n, N) bool, see the module.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    text_ND, image_ND = (F.normalize(z, dim=1, eps=EPS) for z in (linguistic, visual))
    both = (text_ND / tau, dist.gather(image_ND)), (image_ND / tau, dist.gather(text_ND))
    from_text, from_image = (_found(*one, positives, left_out) for one in both)
    return dist.global_mean(lambda_ * from_image + (1 - lambda_) * from_text)


def info_nce(
    linguistic: Tensor,
    visual: Tensor,
    *,
    tau: float | Tensor,
    positives: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """The mean of both directions (CLIP, Radford et al. 2021, figure 3): `convirt` with half each.

    Args:
        linguistic, visual: (n, D) rows of this rank; any float dtype.
        tau: temperature, > 0; a 0-dim tensor gets a gradient.
        positives, left_out: (n, N) bool, see the module.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    keys: dict[str, Any] = {"positives": positives, "left_out": left_out}
    return convirt(linguistic, visual, tau=tau, lambda_=0.5, **keys)


@exact
def sigmoid(
    linguistic: Tensor,
    visual: Tensor,
    *,
    log_tau: float | Tensor,
    bias: float | Tensor,
    positives: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Every pair decided on its own (SigLIP, Zhai et al. 2023, algorithm 1).

    Sum over all N x N pairs of -log sigmoid(label * (exp(log_tau) * cosine + bias)) over N; label
    is 1 for right answers and -1 for the others. Chance level (a constant logit) is
    ln N + (N - 1) ln(N / (N - 1)); computed in blocks of rows, so memory grows with N.

    Args:
        linguistic, visual: (n, D) rows of this rank; any float dtype.
        log_tau, bias: the paper starts at ln 10 and -10; 0-dim tensors get gradients.
        positives, left_out: (n, N) bool, see the module.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    text_ND, image_ND = (F.normalize(z, dim=1, eps=EPS) for z in (linguistic, visual))
    kind: dict[str, Any] = {"dtype": text_ND.dtype, "device": text_ND.device}
    scale, shift = (torch.as_tensor(x, **kind) for x in (log_tau, bias))
    images_MD = dist.gather(image_ND)
    own_N = own_rows(text_ND)
    parts = text_ND * scale.exp(), images_MD, shift, own_N, positives, left_out
    return dist.total(_Decisions.apply(*parts)) / len(images_MD)


def own_rows(z_ND: Tensor) -> Tensor:
    """(n,) numbers of this rank's rows among all."""
    return dist.first_row(len(z_ND), z_ND.device) + torch.arange(len(z_ND), device=z_ND.device)


def _found(
    anchors_ND: Tensor, keys_MD: Tensor, positives: Tensor | None, left_out: Tensor | None
) -> Tensor:
    """Cross entropy of every anchor's right answers, (n,)."""
    own_N = own_rows(anchors_ND)
    if positives is None and left_out is None:
        return blocks.cross_entropies(anchors_ND, keys_MD, own_N, tau=1.0)
    return soft_cross_entropies(anchors_ND @ keys_MD.T, own_N, positives, left_out)


def soft_cross_entropies(
    logits_NM: Tensor, own_N: Tensor, positives: Tensor | None, left_out: Tensor | None
) -> Tensor:
    """Cross entropy against the uniform distribution over each row's right answers, (n,).

    Args:
        logits_NM: (n, M) float.  own_N: (n,) int64, the column that belongs to each row.
        positives, left_out: (n, M) bool, see the module.
    """
    right_NM, out_NM = _answers(own_N, logits_NM.shape[1], positives, left_out)
    logits_NM = logits_NM.masked_fill(out_NM, -torch.inf)
    wanted_N = logits_NM.masked_fill(~right_NM, 0).sum(1) / right_NM.sum(1)
    return logits_NM.logsumexp(1) - wanted_N


def _answers(
    own_N: Tensor, columns: int, positives: Tensor | None, left_out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which pairs are right and which do not count, both (n, columns) bool."""
    itself_NM = own_N.new_zeros(len(own_N), columns, dtype=torch.bool)
    itself_NM = itself_NM.scatter(1, own_N[:, None], True)
    out_NM = torch.zeros_like(itself_NM) if left_out is None else left_out & ~itself_NM
    right_NM = itself_NM if positives is None else (positives | itself_NM) & ~out_NM
    return right_NM, out_NM


class _Decisions(torch.autograd.Function):
    """Sum of -log sigmoid(label * logit) over this rank's pairs, with the gradients on the way:
    they are no larger than the rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        text_ND: Tensor,
        images_MD: Tensor,
        bias: Tensor,
        own_N: Tensor,
        positives: Tensor | None,
        left_out: Tensor | None,
    ) -> Tensor:
        loss, to_bias = torch.zeros_like(bias), torch.zeros_like(bias)
        to_text_ND, to_images_MD = torch.empty_like(text_ND), torch.zeros_like(images_MD)
        step = max(1, blocks.WHOLE // 4 // len(images_MD))
        for begin in range(0, len(text_ND), step):
            rows = slice(begin, begin + step)
            told = (None if x is None else x[rows] for x in (positives, left_out))
            right, out = _answers(own_N[rows], len(images_MD), *told)
            label = right.to(text_ND).mul_(2).sub_(1).masked_fill_(out, 0)
            margin = torch.addmm(bias, text_ND[rows], images_MD.T).mul_(label)
            loss -= F.logsigmoid(margin).masked_fill_(out, 0).sum()
            to_logits = margin.neg_().sigmoid_().mul_(label).neg_()
            to_text_ND[rows] = to_logits @ images_MD
            to_images_MD.addmm_(to_logits.T, text_ND[rows])
            to_bias += to_logits.sum()
        ctx.save_for_backward(to_text_ND, to_images_MD, to_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_text_ND, to_images_MD, to_bias = ctx.saved_tensors
        return grad * to_text_ND, grad * to_images_MD, grad * to_bias, None, None, None
