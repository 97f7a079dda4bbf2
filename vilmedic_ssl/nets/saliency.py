"""Where in an image a score comes from: Grad-CAM (Selvaraju et al. 2017) and occlusion (Zeiler and
Fergus 2014).

Both ask a function for scores, so what is explained may be a classifier's logit, or that of a
linear probe on an encoder that has no classifier. B = images, K = channels, h x w = positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.nets.vision import VisualEncoder, as_map

Score = Callable[[Tensor], Tensor]
"""(B, C, H, W) images -> (B,) scores, one per image."""


def grad_cam(
    model: nn.Module, score: Score, images_BCHW: Tensor, *, layer: str | None = None
) -> Tensor:
    """What a layer contributes to a score: the ReLU of its channels' sum, each weighted with the
    mean of its gradient (section 3), divided by the largest value.

    Args:
        model: holds the encoder that `score` runs: a `VisualEncoder`, or a timm network itself.
            In eval mode, so that images do not mix; frozen weights do no harm.
        layer: the last stage or block of the encoder (null), or the name of a part of it. A map is
            taken behind that part; tokens are taken before it, since behind the last block only
            the class token may reach the score. Class and register tokens are left out.

    Returns:
        (B, h, w) float32 in [0, 1]; zeros where nothing speaks for the score.

    Raises:
        UserError: no such layer, or one without positions, or one the score does not depend on.
    """
    nets = [part.net for part in model.modules() if isinstance(part, VisualEncoder)] or [model]
    seen: dict[str, Any] = {}

    def keep(net: Any) -> Callable[..., None]:
        def hook(part: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            is_map = isinstance(made, Tensor) and made.dim() == 4
            seen.update(net=net, at=made if is_map else given[0])

        return hook

    hooks = [part_of(net, layer).register_forward_hook(keep(net)) for net in nets]
    try:
        with torch.enable_grad():
            score_B = score(images_BCHW.detach().requires_grad_())
            given = seen.get("at", images_BCHW.new_zeros((), requires_grad=True))
            gradient = None
            if given.requires_grad and score_B.requires_grad:  # not through codes of an image
                (gradient,) = torch.autograd.grad(score_B.sum(), given, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    if gradient is None:
        raise UserError(
            f"layer: the score does not depend on {layer!r} by a gradient; name another, or null, "
            "or take the method occlusion"
        )
    size = images_BCHW.shape[-2], images_BCHW.shape[-1]
    at, slope = (as_map(x.detach().float(), seen["net"], size) for x in (seen["at"], gradient))
    return normalised((slope.mean((2, 3), keepdim=True) * at).sum(1))


def normalised(maps_Bhw: Tensor) -> Tensor:
    """The positive part of each map divided by its maximum; zeros stay zeros."""
    positive = maps_Bhw.clamp_min(0)
    return (positive / positive.amax((1, 2), keepdim=True)).nan_to_num(0)


def part_of(net: Any, layer: str | None) -> nn.Module:
    """A part of a timm network by name; null = its last stage or block.

    Raises:
        UserError: it has no such part.
    """
    parts = dict(net.named_modules())
    known = [info["module"] for info in getattr(net, "feature_info", None) or ()]
    known = [name for name in known or dict(net.named_children()) if name in parts]
    name = layer or (known[-1] if known else None)
    if name not in parts:
        raise UserError(f"layer: the encoder has no {name!r}; write one of {', '.join(known)}")
    return parts[name]


@torch.no_grad()
def occlusion(score: Score, images_BCHW: Tensor, *, size: int, stride: int) -> Tensor:
    """How far a score drops when a grey square, the image's mean, covers a place.

    Args:
        size, stride: side of the square and the distance between two of them, pixels, stride no
            more than size; squares are cut off at the border.

    Returns:
        (B, H, W) float32: for each pixel the mean over the squares that cover it, negative where
        the score rises.
    """
    height, width = images_BCHW.shape[-2:]
    grey = images_BCHW.mean((2, 3), keepdim=True)
    whole_B = score(images_BCHW).float()
    total = whole_B.new_zeros(len(images_BCHW), height, width)
    count = total.new_zeros(height, width)
    for top in _starts(height, size, stride):
        for left in _starts(width, size, stride):
            place = (..., slice(top, top + size), slice(left, left + size))
            covered = images_BCHW.clone()
            covered[place] = grey
            total[place] += (whole_B - score(covered).float())[:, None, None]
            count[place] += 1
    return total / count


def _starts(side: int, size: int, stride: int) -> range:
    """First pixels of squares that together cover a side."""
    return range(0, max(side - size, 0) + stride, stride)


def upscaled(maps_Bhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps in [0, 1] at `size` pixels, (B, H, W) in [0, 1]: cubic, without the ringing of the usual
    kernel (B = C = 1/3; Mitchell and Netravali 1988).
    """
    if maps_Bhw.shape[1:] == size:
        return maps_Bhw.clamp(0, 1)
    sides = zip(maps_Bhw.shape[1:], size, strict=True)
    rows, columns = (_mitchell(n, to).to(maps_Bhw) for n, to in sides)
    return (rows @ maps_Bhw @ columns.T).clamp(0, 1)


def _mitchell(n: int, to: int) -> Tensor:
    """(to, n) float64: the weights of n pixels in each of `to` larger or smaller ones."""
    step = max(1.0, n / to)
    centre = (torch.arange(to, dtype=torch.float64) + 0.5) * n / to - 0.5
    x = (centre[:, None] - torch.arange(n)).abs() / step
    near = (7 * x**3 - 12 * x**2 + 16 / 3) / 6
    far = (-7 / 3 * x**3 + 12 * x**2 - 20 * x + 32 / 3) / 6
    weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weight / weight.sum(1, keepdim=True)
