"""Lists of transforms, as YAML holds them, made into one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl.data.augmentations import OWN, CenterCropShare, CropToAspect
from vilmedic_ssl.data.kernels import Chain, quick
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

NESTING = ("RandomApply", "RandomChoice", "RandomOrder", "Compose")
RANDOM = ("Rand", "Jitter", "Noise", "Elastic", "Augment", "Mix", "Additive", "ContrastAround")
SMOOTH = ("nearest", "bilinear", "bicubic")


def compose(items: list[Any], where: str) -> Chain:
    """Build a transform from its list.

    Raises:
        ConfigError: unknown transform or argument, with the closest known names.
    """
    return Chain([quick(_one(item, f"{where}.{i}")) for i, item in enumerate(items)])


def refuse_failing(chain: Chain, items: list[Any], picture_CHW: Tensor, where: str) -> None:
    """Run each step once on a blank picture.

    Raises:
        ConfigError: a step fails on it, or gives something else than one picture.
    """
    shape, channels = " x ".join(map(str, picture_CHW.shape[-2:])), len(picture_CHW)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for i, (item, step) in enumerate(zip(items, chain.parts, strict=True)):
            name = item if isinstance(item, str) else next(iter(item))
            try:
                picture_CHW = step(picture_CHW)
                fits = picture_CHW.dim() == 3 and picture_CHW.is_floating_point()
                fits = fits and picture_CHW.numel() > 0 and len(picture_CHW) <= channels
                told = tuple(picture_CHW.shape)
                reason = "" if fits else f"gives {told} instead of one picture in float32"
            except Exception as error:  # torchvision raises all kinds
                reason = " ".join(str(error).split())[:200] or type(error).__name__
            if reason:
                raise ConfigError(
                    f"{where}.{i}.{name}: does not work on pictures of {shape} pixels ({reason}); "
                    "correct its arguments, or take it out"
                )


def _one(item: Any, where: str) -> Any:
    name, arguments = (item, {}) if isinstance(item, str) else _single(item, where)
    known = _known()
    if name not in known:
        raise ConfigError(f"{where}: there is no transform {name!r}; {closest(name, known)}")
    parameters = inspect.signature(known[name]).parameters
    for key in arguments:
        if key not in parameters:
            raise ConfigError(
                f"{where}.{name}.{key}: there is no such argument; {closest(key, parameters)}"
            )
    if name in NESTING:
        inner = arguments.get("transforms") or []
        parts = [_one(part, f"{where}.{name}.transforms.{i}") for i, part in enumerate(inner)]
        arguments = {**arguments, "transforms": parts}
    if "interpolation" in arguments:
        path = f"{where}.{name}.interpolation"
        arguments = {**arguments, "interpolation": _how(arguments["interpolation"], path)}
    try:
        return known[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}.{name}: {error}") from error


def _single(item: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise ConfigError(
            f"{where}: expected one transform, `Name` or `Name: {{arguments}}`, found {item!r}"
        )
    ((name, arguments),) = item.items()
    return str(name), dict(arguments or {})


def _known() -> dict[str, Any]:
    from torchvision.transforms import v2

    classes = {k: c for k, c in vars(v2).items() if inspect.isclass(c)}
    return {k: c for k, c in classes.items() if issubclass(c, v2.Transform)} | OWN


def _how(name: Any, where: str) -> Any:
    """An interpolation by its name, which torchvision takes as an enum only; numbers stay."""
    from torchvision.transforms.v2 import InterpolationMode

    if isinstance(name, int):
        return name
    if name not in SMOOTH:
        raise ConfigError(f"{where}: {name!r}; write {', '.join(SMOOTH[:-1])} or {SMOOTH[-1]}")
    return InterpolationMode(name)


def named(items: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, arguments) of each transform of a list, those inside others after them."""
    for item in items:
        name, arguments = (item, {}) if isinstance(item, str) else _single(item, "transforms")
        yield name, arguments
        yield from named(arguments.get("transforms") or [])


def placed(items: list[Any], mask_HW: Tensor) -> Tensor:
    """A mask (H, W) bool moved and cut as a deterministic list moves and cuts pictures; what it
    does to their brightness is left out.
    """
    from torchvision.transforms import v2
    from torchvision.tv_tensors import Mask

    for item in items:
        name, arguments = (item, {}) if isinstance(item, str) else _single(item, "transforms")
        if name == "Compose":
            mask_HW = placed(arguments["transforms"], mask_HW)
            continue
        step = _one(item, "transforms")
        if isinstance(step, v2.Transform | CenterCropShare | CropToAspect):
            mask_HW = step(Mask(mask_HW[None]))[0].as_subclass(Tensor)
    return mask_HW


def is_random(items: list[Any]) -> bool:
    """True when a list holds a transform that draws random numbers."""
    return any(_draws(name, arguments) for name, arguments in named(items))


def _draws(name: str, arguments: dict[str, Any]) -> bool:
    if name == "EqualizeLuma":
        return 0 < arguments.get("p", 0.5) < 1
    if name == "GaussianBlur":
        sigma = arguments.get("sigma", [0.1, 2.0])
        return isinstance(sigma, (list, tuple)) and min(sigma) < max(sigma)
    return any(word in name for word in RANDOM)
