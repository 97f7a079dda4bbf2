"""Contrastive losses. Shapes: n = rows of this rank, N = rows of all ranks, D = width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.losses.exact import exact


@exact
def nt_xent(z1_ND: Tensor, z2_ND: Tensor, *, tau: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al. 2020, eq. 1).

    Each of the 2N views is an anchor: cross entropy of its other view among the 2N - 1 other views
        of the global
    batch, cosine similarity over `tau`; the mean over all anchors. Chance level is ln(2N - 1); N =
    1 gives 0.

    Args:
        z1_ND, z2_ND: (n, D) rows of this rank, row i of both from the same image; any float dtype.
        tau: temperature, > 0.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    n, device = len(z1_ND), z1_ND.device
    z1_ND, z2_ND = F.normalize(z1_ND, dim=1), F.normalize(z2_ND, dim=1)
    keys_MD = torch.cat([dist.gather(z1_ND), dist.gather(z2_ND)])  # M = 2N, first views first
    logits_AM = torch.cat([z1_ND, z2_ND]) @ keys_MD.T / tau  # A = 2n anchors
    own = dist.first_row(n, device) + torch.arange(n, device=device)
    half = len(keys_MD) // 2
    itself, partner = torch.cat([own, own + half]), torch.cat([own + half, own])
    logits_AM = logits_AM.scatter(1, itself[:, None], -torch.inf)
    return dist.global_mean(F.cross_entropy(logits_AM, partner, reduction="none"))
