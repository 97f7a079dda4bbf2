"""Image transforms as data: lists of torchvision v2 names and arguments, and named presets.

An item is a name, or `{Name: {arguments}}`; `RandomApply` and `RandomChoice` nest. Everything
works on float tensors (C, H, W) in [0, 1]; grey images stay one channel. Randomness comes from
torch's global generator, which the loader seeds per sample.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vilmedic_ssl.data.kernels import Chain, quick
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

Size = int | list[int]
NESTING = ("RandomApply", "RandomChoice", "RandomOrder", "Compose")
IMAGENET = {"gray": ([0.449], [0.226]), "rgb": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}


@dataclass(frozen=True, kw_only=True)
class Transform:
    """From a file to the tensor a model sees.

    Attributes:
        resize: short side after reading, pixels (or [height, width]).
        crop: side of what the network sees, pixels (or [height, width]).
        train: preset name or list of transforms; null = resize, random crop, horizontal flip.
        evaluate: the same for evaluation, must be deterministic; null = resize to `crop`.
        views: random views per image in training and for the validation loss; evaluation always
            has one.
        channels: gray, rgb, or auto = rgb when the first files hold true colour.
        mean, std: per channel, on [0, 1] values; null = ImageNet's (their average for grey).
        load_memory: decode and resize once, keep the pictures in memory (8 bits per value, 16 for
            deeper files).
        cache: the same in a memory-mapped file below $VILMEDIC_SSL_CACHE (~/.cache/vilmedic_ssl),
            shared by processes and runs.
        cache_gb: most that all caches there may take, 10^9 bytes; what was not used for a day makes
            room, and where that is not enough images are decoded each time.
    """

    resize: int | list[int] = 256
    crop: int | list[int] = 224
    train: str | list[Any] | None = None
    evaluate: str | list[Any] | None = None
    views: int = 1
    channels: Literal["auto", "gray", "rgb"] = "auto"
    mean: list[float] | None = None
    std: list[float] | None = None
    load_memory: bool = False
    cache: bool = False
    cache_gb: float = 50


def _sides(size: Size) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _blur(crop: Size) -> dict[str, Any]:
    """Gaussian blur whose kernel is a tenth of the image (SimCLR, Chen et al. 2020, appendix A),
    odd.
    """
    kernel = max(3, min(_sides(crop)) // 10 | 1)
    return {"GaussianBlur": {"kernel_size": kernel, "sigma": [0.1, 2.0]}}


def _maybe(p: float, *items: Any) -> dict[str, Any]:
    return {"RandomApply": {"p": p, "transforms": list(items)}}


def preset(name: str, crop: Size) -> list[Any]:
    """The list behind a preset name.

    simclr: medical SimCLR (crop area 0.5 to 1, flip, brightness and contrast 0.5, blur).
    simclr-natural: the published recipe for photographs (crop 0.08 to 1, colour jitter, grey,
    blur).
    convirt: crop 0.6 to 1, rotation 20 degrees, shift 0.1, scale 0.95 to 1.05, brightness and
        contrast 0.4, blur; without a horizontal flip, which would contradict a report that names a
        side.
    evaluate: resize to the crop.

    Raises:
        ConfigError: unknown name.
    """
    size = _sides(crop)
    jitter = {"ColorJitter": {"brightness": 0.5, "contrast": 0.5}}
    colour = {"ColorJitter": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}}
    affine = {"RandomAffine": {"degrees": 20, "translate": [0.1, 0.1], "scale": [0.95, 1.05]}}
    soft = {"ColorJitter": {"brightness": 0.4, "contrast": 0.4}}
    flip = "RandomHorizontalFlip"
    presets: dict[str, list[Any]] = {
        "simclr": [_zoom(size, 0.5), flip, _maybe(0.8, jitter), _maybe(0.5, _blur(crop))],
        "simclr-natural": [
            *(_zoom(size, 0.08), flip, _maybe(0.8, colour)),
            *({"RandomGrayscale": {"p": 0.2}}, _maybe(0.5, _blur(crop))),
        ],
        "convirt": [_zoom(size, 0.6), affine, soft, _maybe(0.5, _blur(crop))],
        "evaluate": [{"Resize": {"size": size}}],
    }
    if name not in presets:
        raise ConfigError(f"there is no transform preset {name!r}; {closest(name, presets)}")
    return presets[name]


def _zoom(size: list[int], smallest: float) -> dict[str, Any]:
    return {"RandomResizedCrop": {"size": size, "scale": [smallest, 1.0]}}


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
    from torchvision.transforms import v2

    name, arguments = (item, {}) if isinstance(item, str) else _single(item, where)
    known = {
        k: c for k, c in vars(v2).items() if inspect.isclass(c) and issubclass(c, v2.Transform)
    }
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


def _items(chosen: str | list[Any] | None, default: Any, transform: Transform) -> list[Any]:
    wanted = default if chosen is None else chosen
    return preset(wanted, transform.crop) if isinstance(wanted, str) else wanted


def is_random(items: list[Any]) -> bool:
    """True when a list holds a transform that draws random numbers."""
    text = str(items)
    return any(word in text for word in ("Rand", "Jitter", "Noise", "Elastic", "Augment", "Mix"))


class Pipeline:
    """The steps between a decoded image and the tensor handed out, for one split and purpose.

    Args:
        transform: the settings.
        channels: "gray" or "rgb".
        random: draw `views` training views (True), or give the one evaluation view.
    """

    def __init__(
        self, transform: Transform, *, channels: str, random: bool, where: str = "dataset.transform"
    ):
        from torchvision.transforms import v2

        self.views = transform.views if random else 0
        if transform.cache and transform.load_memory:
            raise ConfigError(f"{where}: cache and load_memory exclude each other; keep one")
        if not transform.cache_gb > 0:
            raise ConfigError(f"{where}.cache_gb: {transform.cache_gb}; write a number above 0")
        for key, size in (("resize", transform.resize), ("crop", transform.crop)):
            if len(_sides(size)) != 2 or min(_sides(size)) < 1:
                raise ConfigError(f"{where}.{key}: {size}; write pixels, or [height, width]")
        crop = {"RandomCrop": {"size": _sides(transform.crop), "pad_if_needed": True}}
        train = _items(transform.train, [crop, "RandomHorizontalFlip"], transform)
        evaluate = _items(transform.evaluate, "evaluate", transform)
        if is_random(evaluate):
            raise ConfigError(
                f"{where}.evaluate: evaluation must be deterministic; take the random transforms "
                "out of the list"
            )
        # Both are made, so that a mistake in the second is not found after days of training.
        views, view = compose(train, f"{where}.train"), compose(evaluate, f"{where}.evaluate")
        if transform.views < 1:
            raise ConfigError(f"{where}.views: {transform.views}; write 1 or more")
        self.first = v2.Resize(transform.resize, antialias=True)
        self.views_of, self.evaluation = views, view
        blank = torch.zeros(len(IMAGENET[channels][0]), *_sides(transform.resize))
        refuse_failing(views, train, blank, f"{where}.train")
        refuse_failing(view, evaluate, blank, f"{where}.evaluate")
        mean, std = IMAGENET[channels]
        mean, std = transform.mean or mean, transform.std or std
        if (
            len(mean) not in (1, len(IMAGENET[channels][0]))
            or len(std) != len(mean)
            or min(std) <= 0
        ):
            raise ConfigError(f"{where}.mean: {mean} and std {std} do not fit {channels} images")
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def prepare(self, image_CHW: Tensor) -> Tensor:
        """The part without randomness, worth keeping."""
        return self.first(image_CHW)

    def __call__(self, image_CHW: Tensor, seed: int) -> Tensor:
        """Prepared image -> random views (V, C, H, W), or the evaluation view (C, H, W).

        Equal seeds give equal views.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # that of the CPU alone
            if not self.views:
                return self._normalised(self.evaluation(image_CHW))
            return torch.stack(
                [self._normalised(self.views_of(image_CHW)) for _ in range(self.views)]
            )

    def _normalised(self, image_CHW: Tensor) -> Tensor:
        return image_CHW.clamp(0, 1).sub_(self.mean).div_(self.std)
