"""Write the key tables of docs/configuration.md from signatures and docstrings:
`python docs/generate.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from vilmedic_ssl.executors import schedules, settings  # noqa: E402
from vilmedic_ssl.experiment import Experiment  # noqa: E402
from vilmedic_ssl.registry import REQUIRED, find, protos, schema, spell  # noqa: E402

PAGE = REPOSITORY / "docs/configuration.md"
BEGIN, END = "<!-- begin {} -->", "<!-- end {} -->"
EXECUTORS = (settings.TrainorSettings, settings.ValidatorSettings, settings.EnsemblorSettings)
GROUPS: dict[str, Callable[[], list[Any]]] = {
    "top level": lambda: [Experiment],
    "executors": lambda: list(EXECUTORS),
    "schedules": lambda: list(dict.fromkeys(schedules.SCHEDULES.values())),
    **{folder: lambda folder=folder: [find(name) for name in protos(folder)]  # type: ignore
       for folder in ("data/datasets", "models", "nets", "post_processing")},
}  # fmt: skip


def described(obj: Any) -> dict[str, str]:
    """Key -> meaning, from the `Attributes:` or `Args:` section of a docstring."""
    text = inspect.getdoc(obj) or ""
    section = re.search(r"^(?:Attributes|Args):\n((?:(?: {4}.*)?(?:\n|\Z))+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", section[1].rstrip() if section else ""):
        for names, meaning in re.findall(r"(\w+(?:, \w+)*): (.+?)(?=; \w+: |$)", flat(entry)):
            found |= dict.fromkeys(names.split(", "), meaning)
    return found


def flat(text: str) -> str:
    return " ".join(text.split())


def nested(annotation: Any) -> list[Any]:
    """The settings classes inside an annotation."""
    parts = typing.get_args(annotation) or (annotation,)
    return [c for c in parts if inspect.isclass(c) and c.__module__.startswith("vilmedic_ssl.")]


def row(name: str, key: Any, meaning: str) -> str:
    inner = nested(key.annotation)
    kind = f"keys of {inner[0].__name__}" if inner else spell(key.annotation)
    default = "its defaults" if dataclasses.is_dataclass(key.default) else json.dumps(key.default) \
        if key.default is not REQUIRED else "required"  # fmt: skip
    return f"| `{name}` | {kind} | {default} | {meaning} |"


def table(obj: Any) -> str:
    """Heading, first sentence and keys of one class or function."""
    meanings = described(obj)
    rows = [row(name, key, meanings.get(name, "")) for name, key in schema(obj).items()]
    head = ["| key | type | default | meaning |", "|---|---|---|---|", *rows] if rows else []
    summary = flat((inspect.getdoc(obj) or "").split("\n\n")[0])
    return "\n".join([f"### {obj.__name__}", "", summary, "", *head, *([""] if head else [])])


def with_nested(objects: list[Any], seen: set[Any]) -> Iterator[Any]:
    """Each object once, followed by the settings classes its keys ask for."""
    for obj in objects:
        if obj not in seen:
            seen.add(obj)
            yield obj
            inner = [c for key in schema(obj).values() for c in nested(key.annotation)]
            yield from with_nested([c for c in inner if dataclasses.is_dataclass(c)], seen)


def render(page: str) -> str:
    """The page with every marked part replaced by what the code says now."""
    seen: set[Any] = set(EXECUTORS)  # they have a part of their own
    for name, objects in GROUPS.items():
        begin, end = BEGIN.format(name), END.format(name)
        if name == "executors":
            seen -= set(EXECUTORS)
        text = "\n".join(table(obj) for obj in with_nested(objects(), seen))
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n{text}{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
