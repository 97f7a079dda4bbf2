"""Optimizers by name, over groups of parameters with their own weight decay and learning rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.executors.lars import LARS
from vilmedic_ssl.executors.schedules import cosine_between
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.freezing import matching
from vilmedic_ssl.registry import closest


def parameter_groups(
    model: PretrainingModel,
    weight_decay: float,
    *,
    layer_decay: float | None = None,
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """The learnable parameters in up to four groups: weights, biases and norms, and the same two
    with a fixed rate. Empty groups are left out.

    Biases and norms are the parameters with one axis and the names of `model.no_decay()`: no
        decay, and no layer-wise rate.
    A fixed rate have the names of `model.fixed_rate()`: no schedule moves it.
    With `layer_decay` or `lr_scales` there are as many groups as factors, which each group has as
        `factor`; those nearest to 1 come first.

    Raises:
        ConfigError: the model lists a name, or there is a pattern, that none of its parameters has;
            `layer_decay` for an encoder whose blocks are not known.
    """
    listed, fixed = _listed(model, "no_decay"), _listed(model, "fixed_rate")
    factors = _factors(model, layer_decay, lr_scales or {})
    found: dict[tuple[bool, bool, float], list[torch.Tensor]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            plain = p.ndim <= 1 or name in listed
            found.setdefault((name in fixed, plain, factors.get(name, 1.0)), []).append(p)
    return [
        {
            "name": "fixed rate " * is_fixed
            + ("biases and norms" if plain else "weights")
            + (f" x {factor:.4g}" if factor != 1 else ""),
            "params": params,
            "weight_decay": 0.0 if plain else weight_decay,
            "adapt": not plain,
            "decays": not plain,
            "fixed_rate": is_fixed,
            **({"factor": factor} if factors else {}),
        }
        for (is_fixed, plain, factor), params in sorted(
            found.items(), key=lambda item: (*item[0][:2], abs(math.log(item[0][2])))
        )
    ]


def _factors(
    model: PretrainingModel, layer_decay: float | None, lr_scales: Mapping[str, float]
) -> dict[str, float]:
    """What the rate of each parameter is multiplied by; empty when nothing is asked for."""
    if layer_decay is None and not lr_scales:
        return {}
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    if layer_decay is not None:
        parts = model.parts()
        if not parts:
            raise ConfigError(
                "trainor.layer_decay: the blocks of this encoder are not known; leave it out, or "
                "name factors in trainor.lr_scales"
            )
        for distance, part in enumerate(reversed(parts), start=1):
            factors |= {name: layer_decay**distance for name in part.parameters}
    for pattern, factor in lr_scales.items():
        for name in matching(pattern, factors, "trainor.lr_scales"):
            factors[name] *= factor
    return factors


def _listed(model: PretrainingModel, method: str) -> set[str]:
    """The names that a method of the model gives, each of them a parameter."""
    names: set[str] = getattr(model, method)()
    known = {name for name, _ in model.named_parameters()}
    for name in sorted(names - known):
        raise ConfigError(
            f"{type(model).__name__}.{method}() lists {name!r}, which is no parameter of the "
            f"model; {closest(name, known)}"
        )
    return names


def build_optimizer(
    model: PretrainingModel,
    name: str,
    keys: dict[str, Any],
    *,
    scale: float = 1.0,
    lr_biases: float | None = None,
    layer_decay: float | None = None,
    lr_scales: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """A torch.optim optimizer or LARS over `parameter_groups`.

    Args:
        keys: arguments of the optimizer.
        scale: what both learning rates are multiplied by.
        lr_biases: learning rate of biases and norms; None = that of the weights.
        layer_decay, lr_scales: as in `parameter_groups`.

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
    groups = parameter_groups(model, decay, layer_decay=layer_decay, lr_scales=lr_scales)
    if not groups:
        raise ConfigError(
            "model: every parameter is frozen, so there is nothing to train; set freeze: false "
            "somewhere"
        )
    for group in groups:
        group["lr"] = scale * (lr if lr_biases is None or group["decays"] else lr_biases)
        group["lr"] *= group.get("factor", 1.0)
        if name != "LARS":
            del group["adapt"]
    try:
        return known[name](groups, **keys)
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"trainor.optim_params: {name} refuses {keys} ({error})") from error


def optimizer_of(model: PretrainingModel, settings: TrainorSettings) -> torch.optim.Optimizer:
    """The optimizer that the `trainor` section describes; raises as `build_optimizer` does."""
    return build_optimizer(
        model,
        settings.optimizer,
        settings.optim_params,
        scale=settings.lr_scale,
        lr_biases=settings.lr_biases,
        layer_decay=settings.layer_decay,
        lr_scales=settings.lr_scales,
    )


class Pace:
    """Learning rate and weight decay of every parameter group at a step, and the decay of the
    moving average of the weights.

    All are functions of the step and of where they start, so nothing of them is saved.

    Attributes:
        rates: the learning rate of each group before any schedule.
        base: that of the first group without its factor.

    Raises:
        ConfigError: a last weight decay for an optimizer that has none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainorSettings):
        self.optimizer, self.settings = optimizer, settings
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.base = self.rates[0] / optimizer.param_groups[0].get("factor", 1.0)
        self.decays = [float(group["weight_decay"]) for group in optimizer.param_groups]
        if settings.weight_decay_end is not None and "weight_decay" not in optimizer.defaults:
            raise ConfigError(
                f"trainor.weight_decay_end: {settings.optimizer} has no weight decay; leave the "
                "key out or choose AdamW, SGD or LARS"
            )

    def set(self, factor: float, step: int, total: int) -> None:
        """Give every group its values before step `step` of `total`; `factor` is the schedule's."""
        end = self.settings.weight_decay_end
        groups = self.optimizer.param_groups
        for group, rate, decay in zip(groups, self.rates, self.decays, strict=True):
            group["lr"] = rate if group["fixed_rate"] else rate * factor
            if end is not None and group["decays"]:
                group["weight_decay"] = cosine_between(decay, end, step, total)

    def average(self, step: int, total: int) -> float:
        """Decay of the moving average of the weights after step `step` of `total`."""
        start, end = self.settings.ema or 0.0, self.settings.ema_end
        return start if end is None else cosine_between(start, end, step, total)

    def describe(self) -> str:
        """The optimizer, and one line per parameter group: tensors, parameters, rate, decay."""
        settings, end = self.settings, self.settings.weight_decay_end
        lines = [f"optimizer {settings.optimizer}"]
        if settings.lr_scaling != "none":
            lines[0] += (
                f", learning rates times {settings.lr_scale:g} for {settings.images_per_step} "
                f"images per step ({settings.lr_scaling})"
            )
        for group, rate, decay in zip(
            self.optimizer.param_groups, self.rates, self.decays, strict=True
        ):
            size = sum(p.numel() for p in group["params"])
            last = f" to {end:g}" if end is not None and group["decays"] else ""
            lines.append(
                f"  {group['name']}: {len(group['params'])} tensors, {size:,} parameters, rate "
                f"{rate:g}, decay {decay:g}{last}"
            )
        return "\n".join(lines)
