"""What SimCLRv2 changes in a ResNet: width, selective kernels, stem (Chen et al. 2020b, section 2).

The network stays timm's; it is made with other channel counts and then partly rebuilt.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError

Stem = Literal["standard", "small", "cifar", "deep"]
PLAIN = re.compile(r"resnet\d+(\..+)?")  # timm's names of ResNets without further changes
RATIO, NARROWEST = 1 / 16, 32  # of the squeezed vector: Chen et al. 2020b, appendix; their code


class SelectiveKernel(nn.Module):
    """Two streams of a 3x3 convolution, mixed per channel and image (Li et al. 2019 in the form of
    Chen et al. 2020b): (B, C, H, W) -> (B, channels, H / stride, W / stride).

    s = spatial mean of the streams' sum; weights = softmax over the streams of a two-layer
    perceptron of s; output = weighted sum. Batch norm and ReLU are inside.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        squeezed = max(int(channels * RATIO), NARROWEST)
        self.streams = nn.Sequential(
            nn.Conv2d(in_channels, 2 * channels, 3, stride, dilation, dilation, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(inplace=True),
        )
        self.mixing = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1, bias=False),
            nn.BatchNorm2d(squeezed),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, 2 * channels, 1, bias=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise(module)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        streams = self.streams(x_BCHW).unflatten(1, (2, -1))
        mean = streams.sum(1).mean((2, 3), keepdim=True)
        weights = torch.softmax(self.mixing(mean).unflatten(1, (2, -1)), dim=1)
        return (streams * weights).sum(1)


def changes(
    backbone: str, *, width: int, selective_kernels: bool, stem: Stem, pretrained: bool
) -> dict[str, Any]:
    """Arguments of timm.create_model for these keys; empty where they ask for timm's own network.

    Raises:
        ConfigError: a value out of range, or the backbone cannot have it.
    """
    if width < 1:
        raise ConfigError(f"cnn.width: {width}; write 1 or more")
    asked = {"width": width > 1, "selective_kernels": selective_kernels, "stem": stem == "deep"}
    keys = [f"cnn.{key}" for key, is_asked in asked.items() if is_asked]
    if not keys:
        return {}
    if not PLAIN.fullmatch(backbone):
        raise ConfigError(
            f"{keys[0]}: {backbone} is no plain ResNet; write backbone: resnet50 (or resnet18, "
            "resnet34, resnet101, resnet152), or leave the key out"
        )
    if pretrained:
        raise ConfigError(
            f"{keys[0]}: the published weights of {backbone} do not fit it; write pretrained: "
            "false, or leave the key out"
        )
    return {
        "channels": tuple(width * planes for planes in (64, 128, 256, 512)),
        "stem_type": "deep",  # the only one that timm makes in any width
        "stem_width": 32 * width,
        "avg_down": selective_kernels or stem == "deep",
    }


def rebuild(
    net: Any, backbone: str, *, width: int, selective_kernels: bool, stem: Stem, in_chans: int
) -> None:
    """Give a ResNet of timm, made with `changes`, its stem and its selective kernels, in place.

    Raises:
        ConfigError: the network has no such stem, or no bottleneck blocks.
    """
    if selective_kernels:
        _select_kernels(net, backbone)
    if stem in ("small", "cifar"):
        _small_stem(net, backbone, 2 if stem == "small" else 1, in_chans)
    elif stem == "standard" and width > 1 and not selective_kernels:
        net.conv1 = _first(in_chans, 64 * width, kernel=7, stride=2)


def _select_kernels(net: Any, backbone: str) -> None:
    """Selective kernels for the 3x3 convolution of every bottleneck block; in the first stage the
    shortcut is pooled too, with stride 1 and without padding in the mean, as in SimCLRv2's code.
    """
    from timm.models.resnet import Bottleneck

    blocks: list[Any] = [module for module in net.modules() if isinstance(module, Bottleneck)]
    if not blocks:
        raise ConfigError(
            f"cnn.selective_kernels: {backbone} has no bottleneck blocks; write backbone: "
            "resnet50, resnet101 or resnet152, or selective_kernels: false"
        )
    for block in blocks:
        conv, behind = block.conv2, (type(block.bn2), type(block.act2))
        if conv.groups > 1 or behind != (nn.BatchNorm2d, nn.ReLU):
            raise ConfigError(
                "cnn.selective_kernels: they replace a convolution without groups, batch norm and "
                "ReLU; leave cardinality, norm_layer and act_layer out of cnn.options"
            )
        size = (conv.in_channels, conv.out_channels, conv.stride[0], conv.dilation[0])
        block.conv2, block.bn2, block.act2 = SelectiveKernel(*size), nn.Identity(), nn.Identity()
    blocks[0].downsample[0] = nn.Sequential(  # repeating the border leaves it out of the mean
        nn.ReplicationPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, stride=1)
    )


def _small_stem(net: Any, backbone: str, stride: int, in_chans: int) -> None:
    """A first convolution for small images: 3x3, no pooling (SimCLR, Chen et al. 2020, appendix
    B.9).
    """
    first = getattr(net, "conv1", None)
    last = first[-1] if isinstance(first, nn.Sequential) else first
    if not isinstance(last, nn.Conv2d) or not hasattr(net, "maxpool"):
        raise ConfigError(
            f"cnn.stem: {backbone} has no ResNet stem to replace; write stem: standard"
        )
    net.conv1 = _first(in_chans, last.out_channels, kernel=3, stride=stride)
    net.maxpool = nn.Identity()


def _first(in_chans: int, channels: int, *, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_chans, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    _initialise(conv)
    return conv


def _initialise(conv: nn.Conv2d) -> None:
    """As timm does in its ResNets."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
