"""Every image-only method out of lightly's losses, heads and model parts, put together as in its
documented examples, with the weights of a model of ours.

lightly has no loss of MoCo v3; there the paper's algorithm stands between lightly's parts.
"""

import copy
import sys

import torch
import torch.nn.functional as F
from pairs import console
from torch import Tensor, nn

from vilmedic_ssl.compat import require
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.nets.heads import widths_of

try:
    losses = require("lightly.loss", extra="bench")
    modules = require("lightly.models.modules", extra="bench")
    utils = require("lightly.models.utils", extra="bench")
except UserError as error:
    console.warn(str(error))
    sys.exit(2)


class Theirs(nn.Module):
    """Encoder and heads; `loss` of a batch; the target networks that `follow`.

    Attributes:
        together: crops of one size in one pass, instead of one by one as in lightly's examples.
    """

    together = False

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.encoder = copy.deepcopy(ours.cnn.net)

    def each(self, network, crops: tuple[Tensor, ...]) -> list[Tensor]:
        if self.together and crops:
            return list(network(torch.cat(crops)).chunk(len(crops)))
        return [network(crop) for crop in crops]

    def follow(self, momentum: float) -> None:
        for online, target in self.targets():
            utils.update_momentum(online, target, momentum)

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return []

    def before_step(self, step: int) -> None:
        """Between backward pass and optimizer."""


class SimCLR(Theirs):
    def __init__(self, ours: nn.Module):
        super().__init__(ours)
        self.head = like(ours.projection, modules.SimCLRProjectionHead, batch_norm=False)
        self.criterion = losses.NTXentLoss(temperature=ours.tau)

    def loss(self, images: Tensor, **batch: Tensor) -> Tensor:
        return self.criterion(*self.each(lambda x: self.head(self.encoder(x)), images.unbind(1)))


class BarlowTwins(SimCLR):
    def __init__(self, ours: nn.Module):
        Theirs.__init__(self, ours)
        self.head = like(ours.projector, modules.BarlowTwinsProjectionHead)
        self.criterion = losses.BarlowTwinsLoss(lambda_param=ours.loss.lambda_)


class VICReg(SimCLR):
    def __init__(self, ours: nn.Module, mu_param: float = 25.0):
        Theirs.__init__(self, ours)
        self.head = like(ours.projector, modules.heads.VICRegProjectionHead)
        self.criterion = losses.VICRegLoss(mu_param=mu_param)


class SimSiam(Theirs):
    def __init__(self, ours: nn.Module):
        super().__init__(ours)
        self.head = like(ours.projector, modules.SimSiamProjectionHead)
        self.predictor = like(ours.predictor, modules.SimSiamPredictionHead)
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, images: Tensor, **batch: Tensor) -> Tensor:
        z0, z1 = self.each(lambda x: self.head(self.encoder(x)), images.unbind(1))
        p0, p1 = self.each(self.predictor, (z0, z1))
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


class BYOL(Theirs):
    def __init__(self, ours: nn.Module):
        super().__init__(ours)
        self.make_heads(ours)
        self.target_encoder, self.target_head = frozen(self.encoder), frozen(self.head)

    def make_heads(self, ours: nn.Module) -> None:
        self.head = like(ours.projector, modules.BYOLProjectionHead)
        self.predictor = like(ours.predictor, modules.BYOLPredictionHead)
        self.criterion = losses.NegativeCosineSimilarity()

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.encoder, self.target_encoder), (self.head, self.target_head)]

    def loss(self, images: Tensor, **batch: Tensor) -> Tensor:
        views = images.unbind(1)
        p0, p1 = self.each(lambda x: self.predictor(self.head(self.encoder(x))), views)
        with torch.no_grad():
            z0, z1 = self.each(lambda x: self.target_head(self.target_encoder(x)), views)
        return self.symmetric(p0, z1, p1, z0)

    def symmetric(self, p0: Tensor, z1: Tensor, p1: Tensor, z0: Tensor) -> Tensor:
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class MoCoV3(BYOL):
    def make_heads(self, ours: nn.Module) -> None:
        self.head = like(ours.projector, modules.MoCoProjectionHead, batch_norm=True)
        self.predictor = like(ours.predictor, modules.MoCoProjectionHead, batch_norm=True)
        self.temperature = ours.temperature

    def criterion(self, query: Tensor, key: Tensor) -> Tensor:
        """Algorithm 1 of Chen et al. 2021; lightly has none."""
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / self.temperature
        return 2 * self.temperature * F.cross_entropy(logits, torch.arange(len(logits)))

    def symmetric(self, p0: Tensor, z1: Tensor, p1: Tensor, z0: Tensor) -> Tensor:
        return self.criterion(p0, z1) + self.criterion(p1, z0)


class DINO(Theirs):
    def __init__(self, ours: nn.Module):
        super().__init__(ours)
        first, hidden, _, narrow = widths_of(ours.head.mlp)
        widths = first, hidden, narrow, ours.head.prototypes.out_features
        self.head = modules.DINOProjectionHead(*widths, freeze_last_layer=2)
        filled(self.head.layers, ours.head.mlp)
        with torch.no_grad():
            self.head.last_layer.weight_v.copy_(ours.head.prototypes.weight)
        self.target_encoder = frozen(self.encoder)
        self.target_head = modules.DINOProjectionHead(*widths)
        filled(self.target_head, self.head).requires_grad_(False)
        self.criterion = losses.DINOLoss(widths[-1], teacher_temp=ours.temps[1])

    targets = BYOL.targets

    def before_step(self, step: int) -> None:
        self.head.cancel_last_layer_gradients(step)

    def loss(self, images: Tensor, local: Tensor, **batch: Tensor) -> Tensor:
        views, small = images.unbind(1), local.unbind(1)
        with torch.no_grad():
            seen = self.each(lambda x: self.target_head(self.target_encoder(x)), views)
        crops = self.each(self.encoder, views) + self.each(self.encoder, small)
        return self.criterion(seen, [self.head(x) for x in crops])


@torch.no_grad()
def filled(network: nn.Module, source: nn.Module) -> nn.Module:
    """The network with the weights of another that has the same tensors in the same order."""
    pairs = zip(network.state_dict().values(), source.state_dict().values(), strict=True)
    for mine, given in pairs:
        assert mine.shape == given.shape
        mine.copy_(given)
    return network


def like(source: nn.Sequential, kind: type[nn.Module], **keys: bool) -> nn.Module:
    """A head of lightly with the widths and the weights of ours."""
    first, hidden, *_, last = widths_of(source)
    return filled(kind(first, hidden, last, **keys), source)


def frozen(network: nn.Module) -> nn.Module:
    copied = copy.deepcopy(network)
    utils.deactivate_requires_grad(copied)
    return copied
