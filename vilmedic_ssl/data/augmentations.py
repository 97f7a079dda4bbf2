"""Transforms that torchvision lacks, by name in the same lists.

All take and give float (C, H, W) in [0, 1], draw from torch's global generator, and raise
ValueError for arguments that make no sense.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vilmedic_ssl.data.kernels import uniform


def _in_order(low: float, high: float, smallest: float | None = None) -> None:
    if low > high or (smallest is not None and low < smallest):
        above = "" if smallest is None else f"{smallest:g} <= "
        raise ValueError(f"low {low} and high {high}: write {above}low <= high")


@dataclass(frozen=True)
class EqualizeLuma:
    """With probability p, the histogram of brightness made flat: of Y in YCbCr, so that colours
    stay. Done on 8 bits, as Pillow does; deeper values are rounded to them.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p {self.p}: write a probability from 0 to 1")

    def __call__(self, image: Tensor) -> Tensor:
        return equalize_luma(image) if torch.rand(1).item() < self.p else image


def equalize_luma(image_CHW: Tensor) -> Tensor:
    """(C, H, W) float in [0, 1], C = 1 or 3 -> the same shape, 8-bit values."""
    import numpy as np
    from PIL import Image, ImageOps

    levels = image_CHW.clamp(0, 1).mul(255).round().to(torch.uint8).expand(3, -1, -1)
    colour = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    luma, blue, red = colour.convert("YCbCr").split()
    flat = Image.merge("YCbCr", (ImageOps.equalize(luma), blue, red)).convert("RGB")
    done_CHW = torch.from_numpy(np.array(flat)).permute(2, 0, 1)[: len(image_CHW)]
    return done_CHW.to(image_CHW.dtype).div(255)


@dataclass(frozen=True)
class RandomSharpness:
    """Sharpness by a factor uniform in [low, high]: 0 smooths, 1 changes nothing. Pillow's filter,
    without its rounding to 8 bits, which a factor of 10 would make visible.
    """

    low: float = 1.0
    high: float = 10.0

    def __post_init__(self) -> None:
        _in_order(self.low, self.high, 0)

    def __call__(self, image: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        return functional.adjust_sharpness(image, uniform(self.low, self.high))


@dataclass(frozen=True)
class AdditiveBrightness:
    """One number, uniform in [low, high], added to all values; cut to [0, 1]."""

    low: float = -0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        _in_order(self.low, self.high)

    def __call__(self, image: Tensor) -> Tensor:
        return (image + uniform(self.low, self.high)).clamp_(0, 1)


@dataclass(frozen=True)
class ContrastAroundMean:
    """The distance of all values from their mean times a factor uniform in [low, high]; 1 changes
    nothing; cut to [0, 1].
    """

    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        _in_order(self.low, self.high, 0)

    def __call__(self, image: Tensor) -> Tensor:
        factor, mean = uniform(self.low, self.high), image.mean()
        return ((image - mean) * factor + mean).clamp_(0, 1)


@dataclass(frozen=True)
class SNRNoise:
    """Gaussian noise whose deviation is the image's mean times a share uniform in [low, high]. What
    leaves [0, 1] is cut when the view is normalised.
    """

    low: float = 0.06
    high: float = 0.1

    def __post_init__(self) -> None:
        _in_order(self.low, self.high, 0)

    def __call__(self, image: Tensor) -> Tensor:
        deviation = image.mean() * uniform(self.low, self.high)
        return image + deviation * torch.randn(image.shape, dtype=image.dtype)


@dataclass(frozen=True)
class CenterCropShare:
    """The middle of an image: `share` of the largest window with this aspect (width / height) that
    fits, as SimCLR evaluates (Chen et al. 2020, its published code's `center_crop`).
    """

    share: float = 0.875
    aspect: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and self.aspect > 0):
            raise ValueError(
                f"share {self.share} and aspect {self.aspect}: write a share above 0, at most 1, "
                "and an aspect above 0"
            )

    def __call__(self, image: Tensor) -> Tensor:
        height, width = self.size(*image.shape[-2:])
        top = (image.shape[-2] - height + 1) // 2
        left = (image.shape[-1] - width + 1) // 2
        return image[..., top : top + height, left : left + width]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the window in an image."""
        if self.aspect > width / height:
            inner = (round(self.share / self.aspect * width), round(self.share * width))
        else:
            inner = (round(self.share * height), round(self.share * self.aspect * height))
        return max(1, inner[0]), max(1, inner[1])


@dataclass(frozen=True)
class CropToAspect:
    """Images whose aspect (height / width) lies outside [low, high], cut to the limit: of what is
    too much, half on either side. The limits of the SimCLRv2 pneumonia project are the 5th and 90th
    percentile of its training films.
    """

    low: float = 0.535
    high: float = 0.870

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"low {self.low} and high {self.high}: write 0 < low <= high")

    def __call__(self, image: Tensor) -> Tensor:
        top, left, height, width = self.box(*image.shape[-2:])
        return image[..., top : top + height, left : left + width]

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what stays; whole pixels, never more than is too much."""
        top = max(0, int((height - width * self.high) / 2))
        left = max(0, int((width - height / self.low) / 2))
        return top, left, height - 2 * top, width - 2 * left


OWN = {
    cls.__name__: cls
    for cls in (
        *(EqualizeLuma, RandomSharpness, AdditiveBrightness),
        *(ContrastAroundMean, SNRNoise, CenterCropShare, CropToAspect),
    )
}
