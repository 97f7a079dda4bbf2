"""Networks that follow another one as a moving average of its weights."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def target_of(online: Module) -> Module:
    """A copy that gets no gradient: the target network of BYOL and its kin.

    It stays in the mode of the model it belongs to: batch norm normalises a training batch with
    that batch's own statistics, and its running statistics are its own; they are not copied from
    the online network, whose running statistics describe other weights.
    """
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target <- tau * target + (1 - tau) * online, weights only (Grill et al. 2020, eq. 1)."""
    for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
        mine.lerp_(theirs.to(mine.dtype), 1.0 - tau)


def cosine_tau(base: float, step: int, total: int) -> float:
    """1 - (1 - base) * (cos(pi * step / total) + 1) / 2: from `base` to 1 (Grill et al. 2020,
    section 3.2).
    """
    return 1 - (1 - base) * (math.cos(math.pi * min(1.0, step / max(1, total))) + 1) / 2


class WeightAverage:
    """A copy of a model that follows it: average <- decay * average + (1 - decay)
    * model.

    Buffers (batch-norm statistics) are copied, not averaged: they are running averages already.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model: Any = target_of(model).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        follow(self.model, model, self.decay)
        for kept, current in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(current)
