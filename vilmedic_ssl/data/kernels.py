"""Quick counterparts of the torchvision transforms that views are mostly made of.

Each draws the same random numbers in the same order as its original and computes the same picture,
so a list gives equal views with and without them: bit for bit where only copies, resizing and
blending are involved, to float rounding where a blur is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

View = Callable[[Tensor], Tensor]


def quick(transform: Any) -> View:
    """The counterpart of a torchvision v2 transform of float (C, H, W) images, or, where there is
    none, the transform itself.
    """
    from torchvision.transforms import v2

    t = transform
    how = getattr(t, "interpolation", None)  # an enum or its value, by version of torchvision
    how = str(getattr(how, "value", how))
    smooth = how in ("bilinear", "bicubic")
    match t:
        case v2.Compose():
            return Chain([quick(part) for part in t.transforms])
        case v2.RandomApply():
            return Sometimes(t.p, Chain([quick(part) for part in t.transforms]))
        case v2.RandomHorizontalFlip():
            return Sometimes(t.p, lambda x: x.flip(-1))
        case v2.RandomVerticalFlip():
            return Sometimes(t.p, lambda x: x.flip(-2))
        case v2.RandomGrayscale():
            return Sometimes(t.p, lambda x: _grey(x).expand_as(x))
        case v2.RandomResizedCrop() if smooth and t.antialias:
            return Zoom(t.size, t.scale, t.ratio, how)
        case v2.Resize() if smooth and t.antialias and t.size and len(t.size) == 2:
            return lambda x: resize(x, t.size, how)
        case v2.ColorJitter():
            return Jitter(t)
        case v2.GaussianBlur():
            return Blur(t.kernel_size, t.sigma)
    return transform


@dataclass(frozen=True)
class Chain:
    """One after the other; none gives the picture as it is."""

    parts: Sequence[View]

    def __call__(self, image: Tensor) -> Tensor:
        for part in self.parts:
            image = part(image)
        return image


@dataclass(frozen=True)
class Sometimes:
    """With probability p."""

    p: float
    then: View

    def __call__(self, image: Tensor) -> Tensor:
        return self.then(image) if torch.rand(1).item() < self.p else image


def resize(image_CHW: Tensor, size: Sequence[int], how: str = "bilinear") -> Tensor:
    """Antialiased, bilinear or bicubic; an image of that size already comes back as it is."""
    if list(image_CHW.shape[-2:]) == list(size):
        return image_CHW
    return F.interpolate(
        image_CHW[None], size=list(size), mode=how, antialias=True, align_corners=False
    )[0]


def uniform(low: float, high: float) -> float:
    """One number drawn from torch's global generator."""
    return torch.empty(1).uniform_(low, high).item()


@dataclass(frozen=True)
class Zoom:
    """A crop of random area and aspect, resized: Inception's crop (Szegedy et al. 2015)."""

    size: Sequence[int]
    scale: Sequence[float]
    ratio: Sequence[float]
    how: str = "bilinear"

    def __call__(self, image: Tensor) -> Tensor:
        top, left, height, width = self.box(*image.shape[-2:])
        return resize(image[..., top : top + height, left : left + width], self.size, self.how)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width); after ten misses the largest central box that may be."""
        area = height * width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            target = area * uniform(*self.scale)
            # in float32 like the original, whose box would else differ by a pixel now and then
            aspect = torch.exp(torch.empty(1).uniform_(low, high)).item()
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(0, height - h + 1, (1,)).item())
                return top, int(torch.randint(0, width - w + 1, (1,)).item()), h, w
        shape = width / height
        w, h = width, height
        if shape < min(self.ratio):
            h = round(width / min(self.ratio))
        elif shape > max(self.ratio):
            w = round(height * max(self.ratio))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class Jitter:
    """Brightness (a factor) and contrast (distance from the mean grey), in random order.

    Saturation and hue are drawn, and mean nothing to a grey picture; one in colour goes to the
    original.
    """

    original: Any

    def __call__(self, image: Tensor) -> Tensor:
        t = self.original
        if image.shape[-3] != 1 and (t.saturation or t.hue):
            return t(image)
        order = torch.randperm(4).tolist()  # of brightness, contrast, saturation and hue
        ranges = (t.brightness, t.contrast, t.saturation, t.hue)
        brightness, contrast, *_ = (uniform(*r) if r else None for r in ranges)
        for step in order:
            if step == 0 and brightness is not None:
                image = (image * brightness).clamp_(0, 1)
            elif step == 1 and contrast is not None:
                mean = _grey(image).mean()
                image = (image * contrast).add_(mean * (1 - contrast)).clamp_(0, 1)
        return image


def _grey(image_CHW: Tensor) -> Tensor:
    """(1, H, W): BT.601 luma of a colour image, with torchvision's digits."""
    if len(image_CHW) == 1:
        return image_CHW
    red, green, blue = image_CHW.unbind(0)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[None]


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with reflected borders, sigma uniform in its range."""

    kernel_size: Sequence[int]  # (x, y)
    sigma: Sequence[float]

    def __call__(self, image: Tensor) -> Tensor:
        sigma = uniform(*self.sigma)
        x, y = self.kernel_size[0] // 2, self.kernel_size[1] // 2
        padded = F.pad(image, (x, x, y, y), mode="reflect")
        height, width = image.shape[-2:]
        down = _band(height, y, sigma)
        across = down if (width, x) == (height, y) else _band(width, x, sigma)
        return _weigh(across, _weigh(down, padded).transpose(-1, -2)).transpose(-1, -2)


def _band(height: int, reach: int, sigma: float) -> Tensor:
    """(block, block + 2 reach): row r holds the weights of rows r to r + 2 reach, which sum to 1.

    A block is the whole height, or, of tall pictures, a part that all blocks share.
    """
    divisors = (b for b in (32, 28, 24) if height % b == 0 and height > 96)
    block = next(divisors, height)
    weights = torch.softmax(_squares(reach).mul(-0.5 / sigma**2), 0)  # exp, summing to 1
    band = torch.zeros(block, block + 2 * reach)
    band.as_strided((block, 2 * reach + 1), (block + 2 * reach + 1, 1)).copy_(weights)
    return band


@cache
def _squares(reach: int) -> Tensor:
    """(2 reach + 1,): squared distances from the middle."""
    return torch.arange(-reach, reach + 1).square()


def _weigh(band: Tensor, padded_CHW: Tensor) -> Tensor:
    """(C, H + 2 reach, W) -> (C, H, W): each row a weighted sum of those within reach, as a product
    with a banded matrix. One channel is too little for a convolution to be quick.
    """
    block, window = band.shape
    if window == padded_CHW.shape[-2]:
        return band @ padded_CHW
    windows = padded_CHW.unfold(-2, window, block)  # (C, blocks, W, window)
    return (band @ windows.transpose(-1, -2)).flatten(-3, -2)
