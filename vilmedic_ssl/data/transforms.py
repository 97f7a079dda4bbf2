"""Image transforms as data: lists of names and arguments (torchvision v2's, own ones), or presets.

An item is a name, or `{Name: {arguments}}`; `RandomApply` and `RandomChoice` nest. Everything
works on float tensors (C, H, W) in [0, 1]; grey images stay one channel. Randomness comes from
torch's global generator, which the loader seeds per sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vilmedic_ssl.data.compose import compose, is_random, placed, refuse_failing
from vilmedic_ssl.data.kernels import Chain
from vilmedic_ssl.data.presets import preset, sides
from vilmedic_ssl.errors import ConfigError

IMAGENET = {"gray": ([0.449], [0.226]), "rgb": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}


@dataclass(frozen=True, kw_only=True)
class Transform:
    """From a file to the tensor a model sees.

    Attributes:
        before: list of deterministic transforms of the whole picture, before `resize`; what they
            make is what is kept in memory or cache.
        resize: short side after reading, pixels (or [height, width]).
        crop: side of what the network sees, pixels (or [height, width]).
        train: preset name or list of transforms; null = resize, random crop, horizontal flip.
        evaluate: the same for evaluation, must be deterministic; null = resize to `crop`.
        views: random views per image in training and for the validation loss; evaluation always
            has one.
        second: what the second of two views is drawn by, where that is not `train`: a preset name
            or list (BYOL's pair is train: byol-first, second: byol-second); needs views: 2.
        local: what further, smaller crops are drawn by (multi-crop): a preset name or list; null =
            dino-local where local_views is above 0.
        local_views: how many of those an image has in training.
        local_crop: their side, pixels (or [height, width]), for presets.
        channels: gray, rgb, or auto = rgb when the first files hold true colour.
        mean, std: per channel, on [0, 1] values; null = ImageNet's (their average for grey).
        load_memory: decode and resize once, keep the pictures in memory (8 bits per value, 16 for
            deeper files).
        cache: the same in a memory-mapped file below $VILMEDIC_SSL_CACHE (~/.cache/vilmedic_ssl),
            shared by processes and runs.
        cache_gb: most that all caches there may take, 10^9 bytes; what was not used for a day makes
            room, and where that is not enough images are decoded each time.
    """

    before: list[Any] = ()  # type: ignore[assignment]
    resize: int | list[int] = 256
    crop: int | list[int] = 224
    train: str | list[Any] | None = None
    evaluate: str | list[Any] | None = None
    views: int = 1
    second: str | list[Any] | None = None
    local: str | list[Any] | None = None
    local_views: int = 0
    local_crop: int | list[int] = 96
    channels: Literal["auto", "gray", "rgb"] = "auto"
    mean: list[float] | None = None
    std: list[float] | None = None
    load_memory: bool = False
    cache: bool = False
    cache_gb: float = 50


def lists_of(transform: Transform, where: str) -> dict[str, list[Any]]:
    """The key of each list of transforms there is, and the list.

    Raises:
        ConfigError: unknown preset; a random evaluation.
    """
    crop, local_crop = transform.crop, transform.local_crop
    usual = [{"RandomCrop": {"size": sides(crop), "pad_if_needed": True}}, "RandomHorizontalFlip"]
    usual_local = "dino-local" if transform.local_views else None
    chosen = {
        "train": (usual if transform.train is None else transform.train, crop),
        "second": (transform.second, crop),
        "local": (usual_local if transform.local is None else transform.local, local_crop),
        "evaluate": ("evaluate" if transform.evaluate is None else transform.evaluate, crop),
    }
    lists = {
        key: preset(items, size) if isinstance(items, str) else items
        for key, (items, size) in chosen.items()
        if items is not None
    }
    if is_random(lists["evaluate"]):
        raise ConfigError(
            f"{where}.evaluate: evaluation must be deterministic; take the random transforms "
            "out of the list"
        )
    return lists


def _refuse_contradictions(t: Transform, where: str) -> None:
    """Keys that do not fit each other, or out of range.

    Raises:
        ConfigError: the first of them.
    """
    if t.cache and t.load_memory:
        raise ConfigError(f"{where}: cache and load_memory exclude each other; keep one")
    if not t.cache_gb > 0:
        raise ConfigError(f"{where}.cache_gb: {t.cache_gb}; write a number above 0")
    for key, size in (("resize", t.resize), ("crop", t.crop), ("local_crop", t.local_crop)):
        if len(sides(size)) != 2 or min(sides(size)) < 1:
            raise ConfigError(f"{where}.{key}: {size}; write pixels, or [height, width]")
    if t.views < 1:
        raise ConfigError(f"{where}.views: {t.views}; write 1 or more")
    if t.second is not None and t.views != 2:
        raise ConfigError(
            f"{where}.second: views is {t.views}, not 2; write views: 2, or leave second out"
        )
    if t.local_views < 0:
        raise ConfigError(f"{where}.local_views: {t.local_views}; write 0 or more")
    if t.local is not None and not t.local_views:
        raise ConfigError(
            f"{where}.local: local_views is 0; write how many there are, or leave local out"
        )


class Pipeline:
    """The steps between a decoded image and the tensor handed out, for one split and purpose.

    Args:
        transform: the settings.
        channels: "gray" or "rgb".
        random: draw `views` training views (True), or give the one evaluation view.

    Attributes:
        views, local_views: how many a sample has; 0 and 0 for evaluation.

    Raises:
        ConfigError: settings that contradict each other, or views of different sizes.
    """

    def __init__(
        self, transform: Transform, *, channels: str, random: bool, where: str = "dataset.transform"
    ):
        from torchvision.transforms import v2

        self.where, self.views = where, transform.views if random else 0
        self.local_views = transform.local_views if random else 0
        _refuse_contradictions(transform, where)
        blank = torch.zeros(len(IMAGENET[channels][0]), *sides(transform.resize))
        self.before = list(transform.before)
        if is_random(self.before):
            raise ConfigError(
                f"{where}.before: what is kept must be deterministic; put random transforms into "
                f"{where}.train"
            )
        whole = compose(self.before, f"{where}.before")
        refuse_failing(whole, self.before, blank, f"{where}.before")
        lists = lists_of(transform, where)
        made = {}  # all of them, so that a mistake in one is not found after days of training
        for key, items in lists.items():
            made[key] = compose(items, f"{where}.{key}")
            refuse_failing(made[key], items, blank, f"{where}.{key}")
        self.resize = v2.Resize(transform.resize, antialias=True)
        self.first = Chain([whole, self.resize])
        self.evaluation, self.local = made["evaluate"], made.get("local")
        self.geometry = lists["evaluate"]
        self.drawn_by = [made["train"]] * transform.views
        if "second" in made:
            self.drawn_by[1] = made["second"]
        mean, std = IMAGENET[channels]
        mean, std = transform.mean or mean, transform.std or std
        if (
            len(mean) not in (1, len(IMAGENET[channels][0]))
            or len(std) != len(mean)
            or min(std) <= 0
        ):
            raise ConfigError(f"{where}.mean: {mean} and std {std} do not fit {channels} images")
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))
        self.sample(blank, seed=0)

    def prepare(self, image_CHW: Tensor) -> Tensor:
        """The part without randomness, worth keeping."""
        return self.first(image_CHW)

    def mask(self, mask_HW: Tensor) -> Tensor:
        """(H, W) bool over a decoded image -> (h, w) bool over its evaluation view."""
        from torchvision.tv_tensors import Mask

        whole_HW = placed(self.before, mask_HW)
        return placed(self.geometry, self.resize(Mask(whole_HW[None]))[0].as_subclass(Tensor))

    def __call__(self, image_CHW: Tensor, seed: int) -> Tensor:
        """`images` of a sample alone."""
        return self.sample(image_CHW, seed)["images"]

    def sample(self, image_CHW: Tensor, seed: int) -> dict[str, Tensor]:
        """Prepared image -> `images`, random views (V, C, H, W) or the evaluation view (C, H, W);
        where there are local views also `local` (L, C, h, w).

        Equal seeds give equal views; local ones are drawn after the others and change nothing.

        Raises:
            ConfigError: views of different sizes.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # that of the CPU alone
            if not self.views:
                return {"images": self._normalised(self.evaluation(image_CHW))}
            views = [draw(image_CHW) for draw in self.drawn_by]
            pair = self.drawn_by[0] is not self.drawn_by[-1]
            sample = {"images": self._together(views, "train", *["second"] * pair)}
            if self.local is not None and self.local_views:
                crops = [self.local(image_CHW) for _ in range(self.local_views)]
                sample["local"] = self._together(crops, "local")
            return sample

    def _together(self, views: list[Tensor], *keys: str) -> Tensor:
        """Views as one tensor, normalised; `keys` name the lists they were drawn by, for the error
        message.
        """
        found = dict.fromkeys(" x ".join(map(str, view.shape[-2:])) for view in views)
        if len(found) > 1:
            names = " and ".join(f"{self.where}.{key}" for key in keys)
            size = next(iter(found)).replace(" x ", ", ")
            raise ConfigError(
                f"{names}: views of one image have {' and '.join(found)} pixels; end in one size, "
                f"for example with RandomResizedCrop: {{size: [{size}]}}"
            )
        # all views at once: small ones cost as many calls as large ones
        return torch.stack(views).clamp_(0, 1).sub_(self.mean).div_(self.std)

    def _normalised(self, image_CHW: Tensor) -> Tensor:
        return image_CHW.clamp(0, 1).sub_(self.mean).div_(self.std)
