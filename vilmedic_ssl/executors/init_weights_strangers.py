"""Files that hold configs and numbers of other programs beside their weights, read without running
what is in them.

A pickled object is made by calling what the file names. Here every name that torch does not read by
itself stands for a `Placeholder`, which takes whatever it is given and does nothing, so the weights
come out and the rest is left out: an argparse.Namespace of a training script, ViLMedic's OmegaConf
config and NumPy numbers, hyperparameters of Lightning. Nothing that a file names is looked up or
imported, and torch refuses names of `os` and `sys` even so.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

# How torch names what `weights_only` refuses, by itself and whatever stands for it.
REFUSED = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")
UNFILLED = re.compile(r"Can only (SETITEM|append|extend).* got <class '\S*_strangers\.(\S+)'>")
MOST = 100  # names that are replaced; a file with more is not one of weights


class NeedsObjects(Exception):
    """Weights that cannot be read without the objects in a file; the arguments are their names."""


class Placeholder:
    """Takes any arguments and any state, and is empty.

    Attributes:
        stands_for: the name in the file.
    """

    stands_for = ""

    def __new__(cls, *_: object, **__: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class Items(Placeholder):
    """Stands for a mapping, which is filled item by item; torch fills none but its own kinds."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


class Row(Placeholder):
    """Stands for a list or queue, which is appended to."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return []


def load_inert(path: Path) -> tuple[Any, list[str]]:
    """(what torch.save wrote, on the CPU, names of objects that are left out).

    Raises:
        NeedsObjects: torch stops at an object that nothing can stand for.
        Exception: whatever torch raises for a file that is damaged or of another kind.
    """
    kinds: dict[str, type[Placeholder]] = dict.fromkeys(objects_in(path), Placeholder)
    while True:
        try:
            with torch.serialization.safe_globals(_stand_ins(kinds)):
                content = torch.load(path, map_location="cpu", weights_only=True)
            return content, [name for name, kind in kinds.items() if kind is Placeholder]
        except Exception as error:
            name, kind = _wanted_by(str(error))
            if not name or kinds.get(name) is kind or len(kinds) >= MOST:
                if not kinds and not name:
                    raise
                raise NeedsObjects(*kinds or (name,)) from error
            kinds[name] = kind


def objects_in(path: Path) -> list[str]:
    """What a file names that torch does not read by itself; [] where torch cannot tell at once, as
    for files from before its zip format.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))[:MOST]
    except (ValueError, RuntimeError, OSError):  # of another kind than torch.save's, or damaged
        return []


def _stand_ins(kinds: dict[str, type[Placeholder]]) -> list[Any]:
    """One class for each name, called by it, so that torch's messages name it."""
    return [(type(name, (kind,), {"stands_for": name}), name) for name, kind in kinds.items()]


def _wanted_by(message: str) -> tuple[str, type[Placeholder]]:
    """(a name that torch stopped at, what is to stand for it); "" where it stopped for another
    reason.
    """
    if match := REFUSED.search(message):  # torch leaves `builtins.` out
        return (match[1] if "." in match[1] else f"builtins.{match[1]}"), Placeholder
    if match := UNFILLED.search(message):
        return match[2], Items if match[1] == "SETITEM" else Row
    return "", Placeholder
