"""What may stand in a config, as YAML: the names there are, and the keys of each with their
defaults and meanings.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from vilmedic_ssl.registry import FOLDERS, PACKAGE, find, index, protos
from vilmedic_ssl.schema import REQUIRED, Key, Kind, schema, spell

WIDTH = 90
TITLES = {
    "data/datasets": "dataset",
    "models": "model",
    "nets": "parts of models",
    "post_processing": "ensemblor.post_processing",
}
# Section of a config -> where its class is.
SECTIONS = {
    "audit": "executors.settings.AuditSettings",
    "trainor": "executors.settings.TrainorSettings",
    "validator": "executors.settings.ValidatorSettings",
    "ensemblor": "executors.settings.EnsemblorSettings",
    "budget": "data.budget.Budget",
    "sweep": "executors.sweep_settings.SweepSettings",
    "flow": "executors.flow.FlowSettings",
}
# Whitespace behind a sentence, not behind an abbreviation.
ENDS = re.compile(r"(?<=\.)(?<!\bet al\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\beq\.)\s")
HOMES = {"MedicalDataset": "dataset", "PretrainingModel": "model"}  # base class -> key of a config


def listing() -> str:
    """All built-in protos by kind with their first sentence, read from the source text."""
    aliases: dict[str, list[str]] = {}
    for key, (_, _, name) in index().items():
        aliases.setdefault(name, []).extend([key] if key != name else [])
    lines = []
    for folder in FOLDERS:
        lines.append(f"{TITLES[folder]}:")
        for name in protos(folder):
            also = f" (also {', '.join(aliases[name])})" if aliases[name] else ""
            lines.append(f"  {name:22}{_first_sentence(name)}{also}")
    return "\n".join([*lines, f"sections: {', '.join(SECTIONS)}"])


@cache
def _documents(path: Path) -> dict[str, str]:
    """Definition -> docstring of one source file."""
    body = ast.parse(path.read_text(encoding="utf-8-sig")).body
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name: ast.get_docstring(node) or "" for node in body if isinstance(node, kinds)}


def _first_sentence(name: str) -> str:
    _, module, attribute = index()[name]
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return opening(_documents(path)[attribute])


def opening(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    return ENDS.split(" ".join(text.split("\n\n")[0].split()))[0]


def meanings(obj: Any) -> dict[str, str]:
    """Key -> meaning on one line, from the `Attributes:` or `Args:` section of a docstring."""
    section = re.split(r"(?m)^(?:Attributes|Args):\n", inspect.getdoc(obj) or "")[-1]
    entries = re.findall(r"(?m)^ {4}(\w+(?:, \w+)*): (.+(?:\n {8}.+)*)", section.split("\n\n")[0])
    return {key: " ".join(t.split()) for names, t in entries for key in names.split(", ")}


def describe(name: str) -> str:
    """The YAML of one proto or section, to paste into a config: every key with its default, `???`
    where one is required, and its meaning as a comment. A dataset stands under `dataset:`, a model
    under `model:`; a part of a model has no fixed place.

    Raises:
        ConfigError: no such proto.
    """
    section = name in SECTIONS
    obj = _section(name) if section else find(name, where="describe", also=SECTIONS)
    keys = list(_keys(obj, {}))
    home = name
    if inspect.isclass(obj) and not section:
        keys = [f"proto: {name}", *keys]
        home = next((HOMES[c.__name__] for c in obj.__mro__ if c.__name__ in HOMES), "")
    if home:
        head = f"{home}:" if keys else f"{home}: {{}}"
        keys = [head, *(f"  {line}" for line in keys)]
    return "\n".join([*_comment(opening(inspect.getdoc(obj) or "")), *keys])


def _section(name: str) -> Callable[..., Any]:
    module, _, attribute = SECTIONS[name].rpartition(".")
    made: Callable[..., Any] = getattr(import_module(f"vilmedic_ssl.{module}"), attribute)
    return made


def _keys(obj: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[str]:
    """The lines of an object's keys; `given` replaces defaults."""
    told = meanings(obj)
    for name, key in schema(obj).items():
        default = given.get(name, key.default)
        if block := _block(key):
            several = _several(key)
            if several is list:
                items = f"a list, each item with keys of {block.__name__}"
                yield from _comment(f"{told.get(name, '')} ({items})")
                yield f"{name}: {_plain(default)}"
                continue
            made = dataclasses.is_dataclass(default)
            values = dataclasses.asdict(default) if made else {}  # type: ignore[arg-type]
            block = type(default) if made else block
            if default is None:
                others = [spell(c) for c in typing.get_args(key.annotation) if c is not block]
                kind = ", or ".join([f"keys of {block.__name__}", *others])
                yield from _comment(f"{told.get(name, '')} ({kind})")
                yield f"{name}: null"
                continue
            yield from _comment(told.get(name, ""))
            yield f"{name}:"
            named = [f"  proto: {block.__name__}"] if made and block.__name__ in index() else []
            inner = [*named, *(f"  {line}" for line in _keys(block, values))]
            yield from ["  NAME:", *(f"  {line}" for line in inner)] if several else inner
        else:
            yield from _comment(f"{told.get(name, '')} ({_kind(key.annotation)})")
            yield f"{name}: {'???' if default is REQUIRED else _plain(default)}"


def _block(key: Key) -> Callable[..., Any] | None:
    """The settings class or proto whose keys stand below this one, if any."""
    choices = typing.get_args(key.annotation) or (key.annotation,)
    mine = [c for c in choices if inspect.isclass(c) and c.__module__.split(".")[0] != "builtins"]
    return next((c for c in mine if schema(c)), None)  # type: ignore[arg-type]


def _several(key: Key) -> Any:
    """list or dict where a key takes many blocks, else None."""
    origin = typing.get_origin(key.annotation)
    return origin if origin in (list, dict) else None


def _kind(annotation: Any) -> str:
    """A type in words; one that names protos lists them."""
    for part in (annotation, *typing.get_args(annotation)):
        for mark in getattr(part, "__metadata__", ()):
            if isinstance(mark, Kind):
                return f"a list of {', '.join(protos(mark.folder))}"
    return spell(annotation)


def _plain(value: Any) -> str:
    """A default on one line of YAML 1.1, which reads 1.0e-05 as a number and 1e-05 as text."""
    import yaml

    value = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text.strip(), WIDTH)]
