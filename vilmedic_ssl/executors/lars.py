"""Layer-wise adaptive rates for large batches (You et al. 2017, arXiv:1708.03888)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD whose every tensor p takes a step in proportion to its own norm.

    With u = g + weight_decay * p and the trust ratio q = eta * |p| / |u|:

        m <- momentum * m + q * u,         p <- p - lr * m      Barlow Twins, BYOL (the default)
        m <- momentum * m + lr * q * u,    p <- p - m           SimCLR (`lr_in_momentum`)

    The two differ only where the rate changes: the second form keeps in the buffer the rate that
    each update had when it came. Groups with `adapt` False (biases and norms) take q = 1, as do a
    zero parameter and a zero update.

    Raises:
        ValueError: an argument that is negative or of the wrong type.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,  # trust coefficient of the paper's ImageNet runs
        lr_in_momentum: bool = False,
    ):
        numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(f"{name} is {value!r}, must be a number from 0")
        if not isinstance(lr_in_momentum, bool):
            raise ValueError(f"lr_in_momentum is {lr_in_momentum!r}, must be true or false")
        super().__init__(params, {**numbers, "lr_in_momentum": lr_in_momentum, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for group in self.param_groups:
            learnt = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if learnt:
                self._update([p for p, _ in learnt], [grad for _, grad in learnt], group)
        return loss

    def _update(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        updates = list(torch._foreach_mul(params, group["weight_decay"]))
        torch._foreach_add_(updates, grads)
        if group["adapt"]:
            torch._foreach_mul_(updates, trust_ratios(params, updates, group["eta"]))
        for p in params:
            self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffers = [self.state[p]["momentum"] for p in params]
        if group["lr_in_momentum"]:
            torch._foreach_mul_(updates, group["lr"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        steps = buffers if group["lr_in_momentum"] else torch._foreach_mul(buffers, group["lr"])
        torch._foreach_sub_(params, steps)


def trust_ratios(params: list[Tensor], updates: list[Tensor], eta: float) -> list[Tensor]:
    """eta * |p| / |u| per tensor, 1 where either norm is zero; scalar tensors."""
    weights = torch.stack(torch._foreach_norm(params))
    sizes = torch.stack(torch._foreach_norm(updates))
    ratios = eta * weights / sizes
    return list(torch.where((weights > 0) & (sizes > 0), ratios, torch.ones_like(sizes)).unbind())
