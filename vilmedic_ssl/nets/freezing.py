"""The parts of an encoder from its images to its head, and which of a model's parts stay as they
are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any

from torch import nn

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import closest


@dataclass(frozen=True)
class Part:
    """The stem or one block: its name, and those of its parameters."""

    name: str
    parameters: list[str]


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """Which parts of a model stay as they are: no gradient, and eval mode throughout, so that batch
    norm keeps its statistics.

    Blocks are layer1 to layer4 of a ResNet, each block of a transformer, the stages of others. What
    stands before them is the stem; what stands behind them (a norm, projection layers) goes with
    the last block; the head is none of them.

    Attributes:
        names: patterns of parameter names, for example [cnn.net.layer1.*, "*.bias"].
        blocks: the stem and so many blocks from the start; 0 = the stem alone, null = nothing.
        last_n_layers: all but so many blocks at the end and the head; 0 = all but the head.
    """

    names: list[str] = ()  # type: ignore[assignment]
    blocks: int | None = None
    last_n_layers: int | None = None

    def __post_init__(self) -> None:
        if self.blocks is not None and self.last_n_layers is not None:
            raise ConfigError(
                "model.freeze: blocks counts from the start, last_n_layers from the end; keep one"
            )

    def apply(self, model: nn.Module, parts: Sequence[Part]) -> None:
        """Take the gradient from what is frozen; `keep_still` does the rest.

        Args:
            parts: of the model's encoder, the stem first.

        Raises:
            ConfigError: more blocks than there are, an encoder whose blocks are not known, or a
                pattern that no parameter matches.
        """
        known = dict(model.named_parameters())
        for part in parts[: self._frozen_parts(parts)]:
            for name in part.parameters:
                known[name].requires_grad_(False)
        for pattern in self.names:
            for name in matching(pattern, known, "model.freeze.names"):
                known[name].requires_grad_(False)

    def _frozen_parts(self, parts: Sequence[Part]) -> int:
        """How many parts from the start are frozen."""
        key = "last_n_layers" if self.blocks is None else "blocks"
        asked = self.last_n_layers if self.blocks is None else self.blocks
        if asked is None:
            return 0
        if not parts:
            raise ConfigError(
                f"model.freeze.{key}: the blocks of this encoder are not known; leave it out and "
                "list the parameters in model.freeze.names"
            )
        blocks = len(parts) - 1
        if not 0 <= asked <= blocks:
            raise ConfigError(
                f"model.freeze.{key}: {asked}, but this encoder has {blocks} blocks; write 0 to "
                f"{blocks}"
            )
        return 1 + (blocks - asked if self.blocks is None else asked)


def parts_of(cnn: VisualEncoder, prefix: str = "cnn.net.") -> list[Part]:
    """Stem and blocks of an encoder in order, every parameter of it in one of them; [] for networks
    whose blocks timm does not tell.

    Args:
        prefix: what stands before the names of `cnn.net` in the model.
    """
    net: Any = cnn.net
    pattern = _block_pattern(net)
    if pattern is None:
        return []
    found, name = {"stem": Part("stem", [])}, "stem"
    for own, _ in net.named_parameters():
        if match := pattern.match(own):
            name = match.group(0)
        found.setdefault(name, Part(name, [])).parameters.append(prefix + own)
    return list(found.values())


def _block_pattern(net: Any) -> re.Pattern[str] | None:
    """What the names of parameters in blocks begin with."""
    if isinstance(net, nn.Sequential):  # a ResNet that was cut, whose stages alone are nested
        stem = takewhile(lambda c: not any(list(x.children()) for x in c.children()), net)
        first = len(list(stem))
        return re.compile("|".join(rf"{i}(?=\.)" for i in range(first, len(net))) or "$^")
    matcher = getattr(net, "group_matcher", None)
    blocks = matcher(coarse=True).get("blocks") if matcher else None
    first_of = blocks[0][0] if isinstance(blocks, (list, tuple)) else blocks
    return re.compile(first_of) if isinstance(first_of, str) else None


def matching(pattern: str, names: Sequence[str] | dict[str, Any], where: str) -> list[str]:
    """The parameter names that a pattern (*, ?, [...]) matches.

    Raises:
        ConfigError: there are none.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(
            f"{where}: no parameter is called {pattern!r} (* stands for any letters); "
            f"{closest(pattern, names)}"
        )
    return found


def keep_still(module: nn.Module) -> None:
    """Put every module into eval mode whose parameters are all frozen."""
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            child.eval()
        else:
            keep_still(child)


def describe(model: nn.Module, parts: Sequence[Part]) -> str:
    """What is frozen and what learns, part by part with its number of parameters; "" when nothing
    is frozen.
    """
    owner = {name: part.name for part in parts for name in part.parameters}
    sizes: dict[bool, dict[str, int]] = {False: {}, True: {}}
    for name, p in model.named_parameters():
        side, part = sizes[p.requires_grad], owner.get(name, name.split(".")[0])
        side[part] = side.get(part, 0) + p.numel()
    told = [
        f"{what} {', '.join(f'{part} {size:,}' for part, size in sizes[learns].items())}"
        for learns, what in ((False, "frozen:"), (True, "learn:"))
    ]
    return "; ".join(told) if sizes[False] else ""
