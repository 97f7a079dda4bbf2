"""Optimizers by name, with weight decay off for parameters with one axis."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.registry import closest


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You et al. 2017), in the form of Barlow Twins and BYOL.

    Momentum buffer m <- momentum * m + q * (g + wd * p), p <- p - lr * m, with trust ratio q = eta
    * |p| / |g + wd * p|. Groups with `adapt` False (biases and norms) take q = 1. A zero parameter
    or zero update also takes q = 1.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,  # trust coefficient of the paper's ImageNet runs
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        update = grad + group["weight_decay"] * p
        if group["adapt"]:
            weight, size = p.norm(), update.norm()
            ratio = torch.where(
                (weight > 0) & (size > 0), group["eta"] * weight / size, torch.ones_like(size)
            )
            update = update * ratio
        buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffer.mul_(group["momentum"]).add_(update)
        p.sub_(group["lr"] * buffer)


def parameter_groups(model: PretrainingModel, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the learnable parameters: with decay, and without it.

    Without: parameters with one axis (biases, norms), and the names the model lists in
        `no_decay()`.
    """
    listed = model.no_decay()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [(n, p) for n, p in named if p.ndim <= 1 or n in listed]
    decayed = [(n, p) for n, p in named if not (p.ndim <= 1 or n in listed)]
    groups = [
        {"name": "weights", "params": [p for _, p in decayed], "weight_decay": weight_decay},
        {
            "name": "biases and norms",
            "params": [p for _, p in plain],
            "weight_decay": 0.0,
            "adapt": False,
        },
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: PretrainingModel, name: str, keys: dict[str, Any]
) -> torch.optim.Optimizer:
    """A torch.optim optimizer or LARS over `parameter_groups`.

    Raises:
        ConfigError: unknown optimizer or argument; no `lr`; nothing to learn.
    """
    known = {
        k: c
        for k, c in vars(torch.optim).items()
        if inspect.isclass(c)
        and issubclass(c, torch.optim.Optimizer)
        and c is not torch.optim.Optimizer
    } | {"LARS": LARS}
    if name not in known:
        raise ConfigError(f"trainor.optimizer: there is no {name!r}; {closest(name, known)}")
    parameters = set(inspect.signature(known[name]).parameters) - {"params"}
    for key in keys:
        if key not in parameters:
            raise ConfigError(
                f"trainor.optim_params.{key}: {name} has no such argument; "
                f"{closest(key, parameters)}"
            )
    lr = keys.get("lr")
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or lr <= 0:
        raise ConfigError(
            f"trainor.optim_params.lr: {lr!r}; write a positive number, for example 1e-3"
        )
    keys = {k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}
    default = inspect.signature(known[name]).parameters.get("weight_decay")
    decay = keys.get("weight_decay", default.default if default else 0.0)
    groups = parameter_groups(model, decay)
    if not groups:
        raise ConfigError(
            "model: every parameter is frozen, so there is nothing to train; set freeze: false "
            "somewhere"
        )
    if name != "LARS":
        for group in groups:
            group.pop("adapt", None)
    try:
        return known[name](groups, **keys)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainor.optim_params: {name} refuses {keys} ({error})") from error


def describe_groups(optimizer: torch.optim.Optimizer) -> str:
    """One line per parameter group: tensors, parameters, decay."""
    lines = []
    for group in optimizer.param_groups:
        size = sum(p.numel() for p in group["params"])
        decay = group["weight_decay"]
        lines.append(
            f"  {group['name']}: {len(group['params'])} tensors, {size:,} parameters, decay "
            f"{decay:g}"
        )
    return "\n".join(lines)
