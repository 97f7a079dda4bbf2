"""Files that hold configs and numbers of other programs beside their weights, read without running
what is in them.

A pickled object is made by calling what the file names. Here such names stand for an empty object
that takes whatever it is given and does nothing, so the weights come out and the rest is dropped.
ViLMedic keeps its OmegaConf config and NumPy numbers in each checkpoint, GLoRIA its Lightning
hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Packages whose objects beside the weights are not needed; whatever else a file names is refused.
DROPPED = (
    *("omegaconf.", "numpy.", "typing.", "builtins.", "_operator.", "operator."),
    *("pytorch_lightning.", "lightning.", "lightning_fabric."),
)
MAPPINGS = ("collections.defaultdict",)  # are filled item by item
StandIn = Callable[..., Any] | tuple[Callable[..., Any], str]


class Nothing:
    """Takes any arguments and any state, and is empty."""

    def __new__(cls, *_: object, **__: object) -> Nothing:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _mapping(*_: object) -> dict[Any, Any]:
    """Stands for what is filled like a dict."""
    return {}


def strangers_in(path: Path) -> list[str]:
    """What a file names that torch does not read by itself; [] where that cannot be told."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, RuntimeError, OSError):  # of another kind than torch.save's, or damaged
        return []


def dropping(names: list[str]) -> list[StandIn]:
    """What stands for each name while the file is read; [] if one of them is not known here."""
    if not all(name.startswith(DROPPED) or name in MAPPINGS for name in names):
        return []
    return [(_mapping if name in MAPPINGS else Nothing, name) for name in names]
