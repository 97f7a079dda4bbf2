"""`python docs/generate.py`: the key tables of docs/configuration.md from the code's docstrings."""

import dataclasses
import inspect
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from vilmedic_ssl.describe import meanings  # noqa: E402
from vilmedic_ssl.executors.schedules import SCHEDULES  # noqa: E402
from vilmedic_ssl.experiment import Experiment  # noqa: E402
from vilmedic_ssl.experiment.flow_config import FlowExperiment  # noqa: E402
from vilmedic_ssl.registry import FOLDERS, find, index, protos  # noqa: E402
from vilmedic_ssl.schema import REQUIRED, Key, schema, spell  # noqa: E402

PAGE = REPOSITORY / "docs/configuration.md"


def escaped(text: str) -> str:
    """One line of Markdown in which `<word>` is no HTML, in code or out of it."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(p if i % 2 else p.replace("<", "&lt;") for i, p in enumerate(parts))


def nested(key: Key) -> list[Any]:
    """The settings classes and protos that a key's annotation names."""
    parts = typing.get_args(key.annotation) or (key.annotation,)
    return [c for c in parts if inspect.isclass(c) and c.__module__.startswith("vilmedic_ssl.")]


def row(name: str, key: Key, meaning: str) -> str:
    several = {list: "a list of ", dict: "by name: "}.get(typing.get_origin(key.annotation), "")
    kinds = [f"{several}[{c.__name__}](#{c.__name__.lower()})" for c in nested(key)]
    union = typing.get_origin(key.annotation) in (typing.Union, types.UnionType)
    kinds += ["text"] if kinds and union and str in typing.get_args(key.annotation) else []
    kind = " or ".join(kinds)
    default = "required" if key.default is REQUIRED else "its defaults"
    if key.default is not REQUIRED and not dataclasses.is_dataclass(key.default):
        default = f"`{json.dumps(key.default)}`"
    return f"| `{name}` | {kind or spell(key.annotation)} | {default} | {meaning} |"


def section(obj: Any) -> str:
    """Heading, first sentence and key table of one class or function."""
    told, first = meanings(obj), (inspect.getdoc(obj) or "").split("\n\n")[0]
    rows = [row(name, key, escaped(told.get(name, ""))) for name, key in schema(obj).items()]
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"### {obj.__name__}\n", escaped(first), "", *(head + rows if rows else [])])


def groups() -> dict[str, list[Any]]:
    """Name of a marked part -> what is described there; settings classes follow their users."""
    schedules = list(dict.fromkeys(SCHEDULES.values()))
    found = {"sections": [Experiment, FlowExperiment], "schedules": schedules}
    found |= {folder: [find(name) for name in protos(folder)] for folder in FOLDERS}
    for objects in found.values():
        for obj in objects:  # grows while it is read
            inner = [c for key in schema(obj).values() for c in nested(key)]
            own = [c for c in inner if dataclasses.is_dataclass(c) or c.__name__ not in index()]
            objects += [c for c in own if c not in objects]
    return found


def render(page: str) -> str:
    """The page with every marked part replaced by what the code says now."""
    for name, objects in groups().items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, after = page.split(begin)[0], page.split(end)[1]
        text = "\n\n".join(section(obj).rstrip() for obj in objects)
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
