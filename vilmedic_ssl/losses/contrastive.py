"""Contrastive losses. Shapes: n = rows of this rank, N = rows of all ranks, D = width, A = anchors
of this rank, M = keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.losses.blocks import cross_entropies
from vilmedic_ssl.losses.exact import exact


@exact
def nt_xent(z1_ND: Tensor, z2_ND: Tensor, *, tau: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al. 2020, eq. 1).

    Each of the 2N views is an anchor: cross entropy of its other view among the 2N - 1 other views
    of the global batch, cosine similarity over `tau`; the mean over all anchors. Chance level is
    ln(2N - 1); N = 1 gives 0.

    Args:
        z1_ND, z2_ND: (n, D) rows of this rank, row i of both from the same image; any float dtype.
        tau: temperature, > 0.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    n, device = len(z1_ND), z1_ND.device
    z1_ND, z2_ND = F.normalize(z1_ND, dim=1), F.normalize(z2_ND, dim=1)
    keys_MD = torch.cat([dist.gather(z1_ND), dist.gather(z2_ND)])  # M = 2N, first views first
    own = dist.first_row(n, device) + torch.arange(n, device=device)
    half = len(keys_MD) // 2
    itself, partner = torch.cat([own, own + half]), torch.cat([own + half, own])
    anchors_AD = torch.cat([z1_ND, z2_ND])  # A = 2n
    return dist.global_mean(cross_entropies(anchors_AD, keys_MD, partner, tau=tau, itself_A=itself))


@exact
def moco_v3(query_ND: Tensor, key_ND: Tensor, *, tau: float) -> Tensor:
    """Cross entropy of a query's key among the keys of the global batch, times 2 `tau` (MoCo v3,
    Chen et al. 2021, algorithm 1).

    One direction; the paper adds the other, with the views exchanged. Cosine similarity over `tau`;
    no gradient reaches the keys. Chance level is 2 tau ln N; N = 1 gives 0.

    Args:
        query_ND: (n, D) predictions of this rank.  key_ND: (n, D) outputs of the momentum encoder,
            row i from the other view of the same image.
        tau: temperature, > 0.

    Returns:
        Scalar loss of the global batch, the same on every rank.
    """
    n, device = len(query_ND), query_ND.device
    keys_MD = dist.gather(F.normalize(key_ND.detach(), dim=1))
    own = dist.first_row(n, device) + torch.arange(n, device=device)
    found_N = cross_entropies(F.normalize(query_ND, dim=1), keys_MD, own, tau=tau)
    return 2 * tau * dist.global_mean(found_N)
