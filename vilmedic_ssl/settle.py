"""Between text and schema: what is `Written` becomes what the type of its key says. Nothing is
checked, required or filled in; keys that no schema knows get what YAML alone makes of them.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import find
from vilmedic_ssl.scalars import Written, opened, plain, texts
from vilmedic_ssl.schema import Kind, conform, schema

NOTHING = type(None)


@dataclass(frozen=True)
class Part:
    """Annotation for some keys of a block, whose others come from elsewhere:
    `Annotated[dict, Part(TrainorSettings)]`, or `Part("models")` for one that names its proto.
    """

    of: type | str


class AsText:
    """Annotation for a node whose scalars are all text: `Annotated[dict, AsText()]`."""


def settle(node: Any, annotation: Any, where: str = "") -> Any:
    """Plain data for a node of `config.read`.

    Args:
        annotation: a type as in a signature, or a class whose signature is the schema.
        where: path of the node in the config, for error messages.

    Raises:
        ConfigError: a value cannot be read, and its key takes no text.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _marked(node, args, where)
    if origin in (typing.Union, types.UnionType):
        return _any_of(node, args, where)
    if isinstance(node, Written):
        return _scalar(node, annotation, where)
    if isinstance(node, list):
        item = args[0] if origin in (list, tuple) else Any
        return [settle(value, item, f"{where}.{i}") for i, value in enumerate(node)]
    if isinstance(node, Mapping):
        return _mapping(node, annotation, where)
    return node


def _scalar(node: Written, annotation: Any, where: str) -> Any:
    if annotation is str:
        return None if node.value is None else node.text
    if typing.get_origin(annotation) is Literal and node.text in typing.get_args(annotation):
        return node.text
    if isinstance(node.value, (list, dict)):
        return settle(node.value, annotation, where)
    return plain(node, where)


def _mapping(node: Mapping[str, Any], annotation: Any, where: str) -> dict[str, Any]:
    types_of: dict[str, Any] = {}
    every: Any = Any
    if typing.get_origin(annotation) is dict:
        every = typing.get_args(annotation)[1]
    elif _has_keys(annotation):
        types_of = _types(node, annotation)
    dot = "." if where else ""
    return {
        key: settle(value, types_of.get(key, every), f"{where}{dot}{key}")
        for key, value in node.items()
    }


def _has_keys(annotation: Any) -> bool:
    """True for a class or function of this project, whose signature is a schema."""
    own = inspect.isclass(annotation) or inspect.isfunction(annotation)
    return own and annotation.__module__ not in ("builtins", "typing")


def _types(node: Mapping[str, Any], cls: type | None, folder: str | None = None) -> dict[str, Any]:
    """Annotation per key, under every name of the key, of the class that a block is made of."""
    target: Any = cls
    if (cls is None or "proto" not in schema(cls)) and isinstance(node.get("proto"), str):
        try:
            target = find(node["proto"], folder=folder)
        except ConfigError:  # told when it is checked
            target = cls
    if target is None:
        return {}
    annotations = {name: key.annotation for name, key in schema(target).items()}
    aliases = getattr(target, "KEY_ALIASES", {})
    return annotations | {
        alias: annotations[name] for alias, name in aliases.items() if name in annotations
    }


def _marked(node: Any, args: tuple[Any, ...], where: str) -> Any:
    """A node under `Annotated`: one that names its proto, part of a block, or just the type."""
    inner = opened(node)
    mark = args[1]
    if isinstance(mark, AsText):
        return texts(node, where)
    if not isinstance(mark, (Kind, Part)) or not isinstance(inner, Mapping):
        return settle(node, args[0], where)
    if isinstance(mark, Kind) and mark.single_key:
        return {
            name: settle(keys, _class_of(name, mark.folder), f"{where}.{name}")
            for name, keys in inner.items()
        }
    if isinstance(mark, Part) and not isinstance(mark.of, str):
        return settle(inner, mark.of, where)
    types_of = _types(inner, None, mark.folder if isinstance(mark, Kind) else str(mark.of))
    return {
        key: settle(value, types_of.get(key, Any), f"{where}.{key}") for key, value in inner.items()
    }


def _class_of(name: str, folder: str) -> Any:
    try:
        return find(name, folder=folder)
    except ConfigError:
        return Any


def _any_of(node: Any, choices: tuple[Any, ...], where: str) -> Any:
    """By the first type that takes the node; text is the last of them."""
    if isinstance(node, Written) and node.value is None and NOTHING in choices:
        return None
    rest = [choice for choice in choices if choice not in (NOTHING, str)]
    settled = []
    for choice in rest:
        try:
            value = settle(node, choice, where)
            settled.append(value)
            conform(value, choice, where)
        except ConfigError:
            continue
        return value
    if str in choices and isinstance(node, Written):
        return settle(node, str, where)
    shaped = [value for value in settled if isinstance(value, (list, dict))]
    return shaped[0] if shaped else plain(node, where)


def annotation_at(node: Mapping[str, Any], cls: type, path: str) -> Any:
    """The type of a dotted key of a config, as far as the protos in it tell; else Any."""
    annotation: Any = cls
    value: Any = node
    for key in path.split("."):
        types_of: dict[str, Any] = {}
        for choice in _alternatives(annotation):
            if isinstance(choice, AsText):
                return Annotated[Any, choice]
            if isinstance(choice, (Kind, Part)) and isinstance(value, Mapping):
                folder = choice.folder if isinstance(choice, Kind) else None
                types_of |= _types(value, None, folder)
            elif typing.get_origin(choice) is dict:
                types_of.setdefault(key, typing.get_args(choice)[1])
            elif _has_keys(choice):
                types_of |= _types(value if isinstance(value, Mapping) else {}, choice)
        annotation = types_of.get(key, Any)
        value = value.get(key) if isinstance(value, Mapping) else None
    return annotation


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, and the marks of annotated ones."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(annotation) for one in _alternatives(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        inner, mark = typing.get_args(annotation)[:2]
        return [mark] if isinstance(mark, (Kind, Part, AsText)) else _alternatives(inner)
    return [annotation]
