"""What plug-ins yield, and results.json holds, read by tests."""

from __future__ import annotations

from typing import Any


def number(value: Any) -> float:
    """A number, whether or not it has an interval."""
    return float(value[0] if isinstance(value, tuple) else value)


def numbers(found: dict[str, Any]) -> set[str]:
    """The names of numbers, without those of words about them and of files."""
    return {name for name, value in found.items() if isinstance(value, float | int | tuple)}
