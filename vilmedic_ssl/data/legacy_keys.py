"""ViLMedic's keys of a dataset as today's: sizes and transforms in text, one normalisation."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from vilmedic_ssl.data.legacy import Steps, is_text, parse_transforms
from vilmedic_ssl.errors import ConfigError

NAMES = {"train": "custom_transform_train", "evaluate": "custom_transform_validate"}


def parse_size(size: Any, where: str) -> Any:
    """A size as pixels or [height, width]; ViLMedic writes pairs as text, "(224,224)".

    Raises:
        ConfigError: a text that is no size.
    """
    if not isinstance(size, str):
        return size
    try:
        found = ast.literal_eval(size.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        found = None
    pair = list(found) if isinstance(found, (list, tuple)) else [found]
    if len(pair) > 2 or not all(type(side) is int for side in pair):
        raise ConfigError(f"{where}: {size!r} is no size; write pixels, or [height, width]")
    return found if isinstance(found, int) else pair


def modern(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `Transform`, with ViLMedic's strings translated.

    A string brings its own sizes and normalisation, so `resize` becomes the largest leading
    Resize of the strings, and `mean` and `std` are theirs. Normalised by three different numbers,
    images are read in colour, as ViLMedic does. Evaluation has one view: a `custom_transform_val`
    that draws the two training views stands for the validation loss, which is made of those here
    anyway, and leaves the evaluation view at its default.

    Raises:
        ConfigError: see `parse_transforms`; strings, or a string and a key, that contradict.
    """
    sizes = {k: parse_size(keys[k], f"dataset.{k}") for k in ("resize", "crop") if k in keys}
    keys = {**keys, **sizes}
    steps = {
        k: parse_transforms(keys[k], f"dataset.{name}")
        for k, name in NAMES.items()
        if is_text(keys.get(k))
    }
    train, evaluate = steps.get("train"), steps.get("evaluate")
    if evaluate and evaluate.views > 1:
        if evaluate != train:
            raise ConfigError(
                "dataset.custom_transform_validate: draws views by other steps than "
                "custom_transform_train; write one deterministic pipeline, or leave it out"
            )
        keys["evaluate"] = None
        del steps["evaluate"]
    if train and train.views > 1 and keys.get("views") not in (None, train.views):
        raise ConfigError(
            f"dataset.views: {keys['views']}, but custom_transform_train draws {train.views}; "
            "leave views out"
        )
    if keys.get("views") is None:
        keys["views"] = train.views if train else 1
    for k, found in steps.items():
        keys[k] = found.items
    if steps:
        keys |= {**_normalisation(keys, list(steps.values())), "resize": _resize(keys, steps)}
    return keys


def _normalisation(keys: Mapping[str, Any], steps: list[Steps]) -> dict[str, Any]:
    """`mean`, `std` and `channels` as the strings want them."""
    wanted = {"mean": steps[0].mean, "std": steps[0].std}
    if any((other.mean, other.std) != (steps[0].mean, steps[0].std) for other in steps[1:]):
        raise ConfigError(
            "dataset: custom_transform_train and custom_transform_validate normalise differently; "
            "make them equal"
        )
    for key, value in wanted.items():
        if keys.get(key) is not None and not _same(keys[key], value):
            raise ConfigError(
                f"dataset.{key}: {keys[key]}, but the transform strings normalise by {value}; "
                "leave it out"
            )
    colour = len(steps[0].mean) == 3 and keys.get("channels", "auto") == "auto"
    return {**wanted, "channels": "rgb"} if colour else wanted


def _same(one: list[float], other: list[float]) -> bool:
    """Equal numbers, one standing for each of several channels."""
    return one == other or set(one) == set(other) and 1 in (len(one), len(other))


def _resize(keys: Mapping[str, Any], steps: Mapping[str, Steps]) -> Any:
    """The first resizing after reading: as large as the largest Resize a string begins with."""
    first = [found.items[0] for found in steps.values() if found.items]
    sizes = [
        item["Resize"]["size"]
        for item in first
        if isinstance(item, dict) and list(item.get("Resize", ())) == ["size"]
    ]
    sides = [size if isinstance(size, list) else [size] for size in sizes]
    whole = all(pair and all(type(side) is int for side in pair) for pair in sides)
    if not sides or not whole:  # torchvision says what is wrong with the others
        return keys["resize"]
    if len(sides[0]) == 2 and all(pair == sides[0] for pair in sides):
        return sides[0]
    return max(max(pair) for pair in sides)
