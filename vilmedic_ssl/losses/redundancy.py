"""Losses on the statistics of the global batch. Shapes: n = rows of this rank, N = rows of all
ranks, D = width, V = the two views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.losses.exact import exact


def _centred(z1_ND: Tensor, z2_ND: Tensor) -> tuple[Tensor, int]:
    """Both views minus the mean of the global batch, (V, n, D), and N."""
    z_VND = torch.stack([z1_ND, z2_ND])
    rows = sum(dist.counts_of(len(z1_ND), z1_ND.device))
    return z_VND - dist.total(z_VND.sum(1, keepdim=True)) / rows, rows


@exact
def barlow_twins(z1_ND: Tensor, z2_ND: Tensor, *, lambda_: float, scale: float = 1.0) -> Tensor:
    """Cross-correlation of the two views against the identity (Zbontar et al. 2021, eq. 1 and 2).

    scale * (sum_i (c_ii - 1)^2 + lambda_ * sum_{i != j} c_ij^2), c the (D, D) correlation over the
    global batch after batch norm without scale and shift: biased variance, eps 1e-5. A dead feature
    costs 1; a batch of one row has no correlation and costs D, with no gradient.

    Args:
        z1_ND, z2_ND: (n, D) rows of this rank, row i of both from the same image; any float dtype.
        lambda_: weight of the off-diagonal sum; the paper's is 0.0051.
        scale: factor of the whole loss; the authors' first release had 0.024.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    z_VND, rows = _centred(z1_ND, z2_ND)
    variance_V1D = dist.total(z_VND.square().sum(1, keepdim=True)) / rows
    z_VND = z_VND * (variance_V1D + 1e-5).rsqrt()
    c_DD = dist.total(z_VND[0].T @ z_VND[1]) / rows
    error_DD = (c_DD - torch.eye(len(c_DD), dtype=c_DD.dtype, device=c_DD.device)).square()
    return scale * (lambda_ * error_DD.sum() + (1 - lambda_) * error_DD.diagonal().sum())


@exact
def vicreg(
    z1_ND: Tensor,
    z2_ND: Tensor,
    *,
    sim_loss_weight: float,
    var_loss_weight: float,
    cov_loss_weight: float,
) -> Tensor:
    """Variance, invariance and covariance (Bardes et al. 2022, eq. 1 to 6).

    sim: mean squared difference of the views, over rows and features. var: mean over features of
    max(0, 1 - sqrt(variance + 1e-4)), summed over the views. cov: squared off-diagonal covariances
    over D, summed over the views. Unbiased statistics of the global batch; a batch of one row has
    zero variance and covariance. The paper's sim sums over features; its authors' code takes the
    mean, as here, and half of var.

    Args:
        z1_ND, z2_ND: (n, D) rows of this rank, row i of both from the same image; any float dtype.
        sim_loss_weight, var_loss_weight, cov_loss_weight: weights of the three; the paper's are 25,
            25 and 1.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    sim = dist.global_mean((z1_ND - z2_ND).square().mean(1))
    z_VND, rows = _centred(z1_ND, z2_ND)
    cov_VDD = dist.total(z_VND.mT @ z_VND) / max(rows - 1, 1)
    variance_VD = cov_VDD.diagonal(dim1=1, dim2=2)
    var = (1 - (variance_VD + 1e-4).sqrt()).relu().mean(1).sum()
    cov = (cov_VDD - variance_VD.diag_embed()).square().sum() / cov_VDD.shape[-1]
    return sim_loss_weight * sim + var_loss_weight * var + cov_loss_weight * cov
