"""The values that a sweep tries: their names, their combinations, and the words that set them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.executors.sweep_settings import Axis
from vilmedic_ssl.scalars import write_value

Space = Mapping[str, Axis]


def label_of(value: Any) -> str:
    """A value as a person reads it in a table; numbers to six digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False)


def listed(axis: Axis) -> dict[str, Any]:
    """Name -> value of an axis that is finite, in order.

    Raises:
        ConfigError: two values have the same name.
    """
    if isinstance(axis.choices, dict):
        return {str(name): value for name, value in axis.choices.items()}
    values = evenly(axis, axis.points or 0) if axis.choices is None else axis.choices
    names = [label_of(value) for value in values]
    for name in names:
        if names.count(name) > 1 and axis.choices is not None:
            raise ConfigError(f"sweep.space: the choice {name} is there twice; keep one")
    return dict(zip(names, values, strict=True))


def evenly(axis: Axis, count: int) -> list[int | float]:
    """`count` values from low to high; whole ones are rounded, and may then be fewer."""
    assert axis.low is not None and axis.high is not None
    shares = [i / (count - 1) for i in range(count)]
    if axis.log:
        ratio = math.log(axis.high / axis.low)
        inner = [axis.low * math.exp(ratio * share) for share in shares]
    else:
        inner = [axis.low + (axis.high - axis.low) * share for share in shares]
    values = [axis.low, *inner[1:-1], axis.high]
    return list(dict.fromkeys(map(round, values))) if axis.whole else list(map(float, values))


def examples(axis: Axis) -> list[Any]:
    """Every listed value, or both ends of a range: what must be a value that the config takes."""
    return list(listed(axis).values()) if axis.finite else [axis.low, axis.high]


def grid(space: Space) -> list[dict[str, str]]:
    """Every combination as key -> name of the value; the last key varies fastest."""
    names = [list(listed(axis)) for axis in space.values()]
    return [dict(zip(space, row, strict=True)) for row in itertools.product(*names)]


def values_of(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Names of listed values, and numbers of ranges, as values."""
    return {
        key: listed(axis)[drawn[key]] if axis.finite else drawn[key] for key, axis in space.items()
    }


def words_of(parameters: Mapping[str, Any]) -> list[str]:
    """Values as overrides of the command line, `key=value`."""
    return [f"{key}={write_value(value)}" for key, value in parameters.items()]
