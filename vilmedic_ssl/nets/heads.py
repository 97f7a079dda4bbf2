"""Heads on top of encoders: multi-layer perceptrons, and prototypes.

Shapes: B = rows, D = width of the input, K = prototypes. Each dataclass holds the YAML keys of one
kind of head and makes the module with `head(width)`. A method with other defaults subclasses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError

Norm = Literal["none", "batch", "plain"]


def mlp(
    widths: Sequence[int],
    *,
    norm: bool = True,
    last_norm: Norm | Literal["scale"] = "none",
    bias: bool = False,
    last_bias: bool = False,
) -> nn.Sequential:
    """Linear, batch norm and ReLU per hidden layer; Linear and `last_norm` at the end.

    Args:
        widths: of the input, of every hidden layer, of the output.
        norm: batch norm in hidden layers.
        last_norm: batch norm behind the last layer: none; batch = with scale and shift; scale =
            without shift; plain = without both.
        bias: hidden linear layers have one. `last_bias`: the last one has.

    Returns:
        A module (B, widths[0]) -> (B, widths[-1]).
    """
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-2], widths[1:-1], strict=True):
        layers.append(nn.Linear(before, after, bias=bias))
        layers += [nn.BatchNorm1d(after)] if norm else []
        layers.append(nn.ReLU())
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm != "plain"))
    if last_norm == "scale":
        layers[-1].register_parameter("bias", None)
    return nn.Sequential(*layers)


def widths_of(head: nn.Sequential) -> list[int]:
    """Width of an `mlp`'s input and of each layer's output: entry k belongs to `up_to(head, k)`."""
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


def up_to(head: nn.Sequential, layer: int, where: str = "model.selector") -> nn.Sequential:
    """The first layers of an `mlp`, each with its norm and ReLU; the weights are shared.

    Args:
        layer: how many; 0 = none, so that the result is the identity; -1 = all.
        where: YAML key that `layer` comes from, for the error message.

    Raises:
        ConfigError: the head has no such layer.
    """
    starts = [i for i, module in enumerate(head) if isinstance(module, nn.Linear)]
    if not -1 <= layer <= len(starts):
        raise ConfigError(
            f"{where}: {layer}, but the head has {len(starts)} layers; write 0 for the encoder's "
            f"output, 1 to {len(starts)} for that layer's, -1 for the last"
        )
    return nn.Sequential(*list(head)[: [*starts, len(head)][layer]])


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Linear, ReLU, Linear: from the encoder's vector to the space of the loss.

    Attributes:
        visual_embedding_dim: width of the encoder's vector; null takes it from the encoder.
        projection_dim: width of the output.
        layers: linear layers, with ReLU between them.
        hidden_dim: width of hidden layers; null = projection_dim, encoder = the encoder's width.
        batch_norm: the head of SimCLRv2 (Chen et al. 2020b): batch norm after every layer, after
            the last without shift; linear layers without bias start from N(0, 0.01).
    """

    KEY: ClassVar[str] = "model.projection"

    visual_embedding_dim: int | None = None
    projection_dim: int = 128
    layers: int = 2
    hidden_dim: int | Literal["encoder"] | None = None
    batch_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("projection_dim", "layers", "hidden_dim"):
            _positive(getattr(self, name), f"{self.KEY}.{name}")

    @property
    def out_dim(self) -> int:
        """Width of the output."""
        return self.projection_dim

    def head(self, width: int) -> nn.Sequential:
        """The module, (B, width) -> (B, projection_dim).

        Raises:
            ConfigError: `visual_embedding_dim` contradicts the encoder.
        """
        if self.visual_embedding_dim not in (None, width):
            raise ConfigError(
                f"{self.KEY}.visual_embedding_dim: {self.visual_embedding_dim}, but the encoder "
                f"gives {width}; write {width} or leave the key out"
            )
        hidden = width if self.hidden_dim == "encoder" else self.hidden_dim or self.projection_dim
        widths = [width, *[hidden] * (self.layers - 1), self.projection_dim]
        if not self.batch_norm:
            return mlp(widths, norm=False, bias=True, last_bias=True)
        head = mlp(widths, last_norm="scale")
        for layer in head:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
        return head


@dataclass(frozen=True, kw_only=True)
class Projector:
    """Linear, batch norm, ReLU per hidden layer, then Linear: the projector of Barlow Twins
    (Zbontar et al. 2021, section 2.2) as it stands.

    Attributes:
        widths: width of each layer's output; the encoder's own width is not among them.
        last_norm: batch norm behind the last layer: none; batch = with scale and shift; plain =
            without both.
        bias: hidden linear layers have a bias, which the batch norm behind them takes away again.
        last_bias: the last linear layer has a bias.
    """

    KEY: ClassVar[str] = "model.projector"

    widths: tuple[int, ...] = (8192, 8192, 8192)
    last_norm: Norm = "none"
    bias: bool = False
    last_bias: bool = False

    def __post_init__(self) -> None:
        if not self.widths:
            raise ConfigError(f"{self.KEY}.widths: []; write the width of each layer, as [512]")
        for width in self.widths:
            _positive(width, f"{self.KEY}.widths")

    @property
    def out_dim(self) -> int:
        """Width of the output."""
        return self.widths[-1]

    def head(self, width: int) -> nn.Sequential:
        """The module, (B, width) -> (B, widths[-1])."""
        return mlp(
            [width, *self.widths],
            last_norm=self.last_norm,
            bias=self.bias,
            last_bias=self.last_bias,
        )


@dataclass(frozen=True, kw_only=True)
class Predictor(Projector):
    """What turns one view's projection into a guess of the other's: a further `Projector`.

    Attributes:
        widths: width of each layer's output; the last equals that of the projector.
        last_norm: batch norm behind the last layer: none; batch = with scale and shift; plain =
            without both.
        bias: hidden linear layers have a bias, which the batch norm behind them takes away again.
        last_bias: the last linear layer has a bias.
    """

    KEY: ClassVar[str] = "model.predictor"

    widths: tuple[int, ...] = (4096, 256)


@dataclass(frozen=True, kw_only=True)
class DINOHead:
    """Linear and GELU layers down to a narrow vector, whose cosines with prototypes are the output
    (Caron et al. 2021, section 3.1 and appendix C).

    Attributes:
        layers: linear layers before the prototypes.
        hidden_dim: width of hidden layers.
        bottleneck_dim: width of the vector that is compared with the prototypes.
        prototypes: how many; a few thousand do for small data.
        batch_norm: batch norm in hidden layers, as the paper has for ResNets.
    """

    KEY: ClassVar[str] = "model.head"

    layers: int = 3
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    prototypes: int = 65536
    batch_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "hidden_dim", "bottleneck_dim", "prototypes"):
            _positive(getattr(self, name), f"{self.KEY}.{name}")

    @property
    def out_dim(self) -> int:
        """Width of the output."""
        return self.prototypes

    def head(self, width: int) -> Prototypes:
        """The module, (B, width) -> (B, prototypes)."""
        widths = [width, *[self.hidden_dim] * (self.layers - 1), self.bottleneck_dim]
        return Prototypes(widths, self.prototypes, self.batch_norm)


class Prototypes(nn.Module):
    """The module of `DINOHead`. Weights start from a normal distribution with deviation 0.02 cut
    off at two units.
    """

    def __init__(self, widths: Sequence[int], prototypes: int, batch_norm: bool):
        super().__init__()
        relu = mlp(widths, norm=batch_norm, bias=True, last_bias=True)
        self.mlp = nn.Sequential(*(nn.GELU() if isinstance(x, nn.ReLU) else x for x in relu))
        self.prototypes = nn.Linear(widths[-1], prototypes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def bottleneck(self, x_BD: Tensor) -> Tensor:
        """(B, D) -> unit vectors (B, bottleneck_dim), in float32 at least."""
        x = self.mlp(x_BD)
        return F.normalize(x.float() if x.element_size() < 4 else x, dim=1)

    def forward(self, x_BD: Tensor, frozen: bool = False) -> Tensor:
        """(B, D) -> cosines (B, K) in [-1, 1], in float32 at least: losses divide them by as little
        as 0.04, where bfloat16 would be off by 0.1.

        Args:
            frozen: the prototypes get no gradient. They stay in the graph with a gradient of zero,
                which processes that wait for each other's gradients need. Weight decay changes
                nothing, since only their direction counts; this holds with AdamW, SGD and LARS,
                not with Adam, whose decay is divided per entry like a gradient.
        """
        weight = self.prototypes.weight
        if frozen:
            weight = weight.detach() + 0 * weight
        narrow = self.bottleneck(x_BD)
        with torch.autocast(narrow.device.type, enabled=False):
            return F.linear(narrow, F.normalize(weight, dim=1))


def _positive(value: int | str | None, where: str) -> None:
    if isinstance(value, int) and value < 1:
        raise ConfigError(f"{where}: {value}; write 1 or more")
