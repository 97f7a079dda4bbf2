"""A signature is a schema: `complete` checks a YAML mapping against one, `build` calls it.

What stands before the `*` in a signature is supplied by the program; what stands after it is a
YAML key, with the type and default it has there.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest, find, index, is_plugin, protos

REQUIRED = inspect.Parameter.empty
PLURALS = {"an integer": "integers", "a number": "numbers", "a value": "values"}


@dataclass(frozen=True)
class Kind:
    """Annotation for a YAML node that names its own proto: `Annotated[dict, Kind("models")]`."""

    folder: str
    single_key: bool = False  # `{name: {keys}}` instead of `{proto: name, keys}`


@dataclass(frozen=True)
class Key:
    """One YAML key of a schema: its type annotation and default (REQUIRED when there is none)."""

    annotation: Any
    default: Any


@cache
def schema(obj: Callable[..., Any]) -> dict[str, Key]:
    """The YAML keys of a class or function: its keyword-only parameters."""
    made = inspect.isclass(obj) and not dataclasses.is_dataclass(obj)  # those know their bases'
    target = obj.__init__ if made else obj
    hints = typing.get_type_hints(target, include_extras=True)
    return {
        name: Key(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(obj).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def takes_context(obj: Callable[..., Any]) -> bool:
    """True when the program must supply positional arguments (a dataset's split, say)."""
    kinds = [p.kind for p in inspect.signature(obj).parameters.values()]
    return inspect.Parameter.POSITIONAL_OR_KEYWORD in kinds


def complete(node: Any, obj: Callable[..., Any], where: str) -> dict[str, Any]:
    """Check a YAML mapping against a signature and fill in its defaults.

    Raises:
        ConfigError: unknown, missing or mistyped key, with its full path and the closest known
            keys.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where or 'config'}: expected keys and values, found {node!r}")
    keys, aliases = schema(obj), getattr(obj, "KEY_ALIASES", {})
    result: dict[str, Any] = {}
    names = {given: aliases.get(given, str(given)) for given in node}
    for name in names.values():  # all, before any is missing: one may be misspelt
        if name not in keys and name != "proto":
            _refuse_key(name, obj, where)
    for given, value in node.items():
        name = names[given]
        path = f"{where}.{name}" if where else name
        if value == "???":  # OmegaConf's mark for a value the user must supply
            raise ConfigError(f"{path}: this key must be given, write {path}=...")
        named = name == "proto" and name not in keys  # some take a `proto` of their own
        if named and value is None:
            continue
        if name in result:
            raise ConfigError(f"{path}: given twice, also as {given!r}; keep one")
        if named and find(value, where=path) is obj:
            result[name] = value
        elif named:
            _refuse_key(name, obj, where)
        else:
            result[name] = conform(_joined(value, keys[name].default), keys[name].annotation, path)
    for name, key in keys.items():
        if name not in result:
            path = f"{where}.{name}" if where else name
            if key.default is REQUIRED:
                raise ConfigError(f"{path}: this key is required ({spell(key.annotation)})")
            result[name] = _filled(key, path)
    return result


def _refuse_key(name: str, obj: Callable[..., Any], where: str) -> None:
    """Raises:
    ConfigError: always, with the closest known keys.
    """
    refused = getattr(obj, "REFUSED_KEYS", {}).get(name)
    path = f"{where}.{name}" if where else name
    near = closest(name, schema(obj))
    raise ConfigError(f"{path}: {refused or f'there is no such key; {near}'}")


def _joined(value: Any, default: Any) -> Any:
    """Given keys over those of a default that is an instance: what a method sets differently from
    its settings' class stays when only some keys are written.
    """
    if not (dataclasses.is_dataclass(default) and isinstance(value, Mapping)):
        return value
    if value.get("proto") not in (None, type(default).__name__):
        return value
    aliases = getattr(default, "KEY_ALIASES", {})
    given = {aliases.get(name, name) for name in value}
    kept = _as_node(default).items()
    return {**{name: kept_value for name, kept_value in kept if name not in given}, **value}


def _as_node(settings: Any) -> dict[str, Any]:
    """An instance of a settings class as YAML keys, with its `proto` where it has one."""
    name = type(settings).__name__
    return {**({"proto": name} if name in index() else {}), **dataclasses.asdict(settings)}


def _filled(key: Key, path: str) -> Any:
    """A default as plain data: nested settings are spelled out so that a saved config says
    everything.
    """
    if dataclasses.is_dataclass(key.default):
        return conform(_as_node(key.default), key.annotation, path)
    return list(key.default) if isinstance(key.default, tuple) else key.default


def conform(value: Any, annotation: Any, where: str) -> Any:
    """`value` as the annotated type, or a ConfigError naming `where`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return (
            _named(value, args[1], where)
            if isinstance(args[1], Kind)
            else conform(value, args[0], where)
        )
    if annotation is Any or annotation is REQUIRED:
        return value
    if origin in (typing.Union, types.UnionType):
        return _any_of(value, args, where)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where}: {value!r} is not one of {', '.join(repr(a) for a in args)}")
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        return [conform(item, args[0], f"{where}.{i}") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {k: conform(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if annotation in (list, dict) and isinstance(value, annotation):
        return value
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation in (int, float, str, bool) and type(value) is annotation:
        return value
    if annotation is type(None) and value is None:
        return None
    if (
        inspect.isclass(annotation)
        and annotation.__module__ != "builtins"
        and isinstance(value, Mapping)
    ):
        return complete(value, _chosen(value, annotation, where), where)
    raise ConfigError(
        f"{where}: expected {spell(annotation)}, found {value!r}{_hint(value, annotation)}"
    )


def _hint(value: Any, annotation: Any) -> str:
    if annotation is str and (value is None or isinstance(value, (int, float))):
        return "; put quotes around it"
    if isinstance(value, str) and re.match(r"[\w-]+: ", value) and annotation is not str:
        return "; put braces around it"
    if typing.get_origin(annotation) is list and isinstance(value, str):
        return "; put square brackets around it"
    if annotation is float and isinstance(value, str) and value.endswith("%"):
        return "; write 1 % as 0.01"
    return ""


def _chosen(node: Mapping[str, Any], cls: Callable[..., Any] | None, where: str) -> Any:
    """The class a node is to be made of: its proto, which must be a kind of `cls` unless a plug-in
    registered it, or `cls` itself.
    """
    name = node.get("proto")
    if not name or (cls is not None and "proto" in schema(cls)):
        return cls
    found = find(name, where=f"{where}.proto")
    if inspect.isclass(cls) and not is_plugin(name) and not _is_a(found, cls):
        raise ConfigError(f"{where}.proto: {name!r} is no {cls.__name__}; leave `proto` out")
    return found


def _is_a(found: Any, cls: type) -> bool:
    return inspect.isclass(found) and issubclass(found, cls)


def _any_of(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    choices = tuple(c for c in choices if c is not type(None))
    problems = []
    for choice in choices:
        try:
            return conform(value, choice, where)
        except ConfigError as error:
            problems.append(error)
    if len(choices) == 1:
        raise problems[0]
    named = [a for c in choices if typing.get_origin(c) is Literal for a in typing.get_args(c)]
    words = [a for a in named if isinstance(a, str)]
    other = (f"{where}: expected", f"{where}: {value!r} is not one of")
    deeper = [p for p in problems if not str(p).startswith(other)]
    if len(deeper) == 1:  # one alternative had the value's shape, and says what is wrong inside
        raise deeper[0]
    near = f"; {closest(value, words)}" if words and isinstance(value, str) else ""
    raise ConfigError(
        f"{where}: expected {' or '.join(map(spell, choices))}, found {value!r}{near}"
    )


def _named(node: Any, kind: Kind, where: str) -> Any:
    """Check a node that names its proto, in either of the two spellings."""
    if not kind.single_key:
        if not isinstance(node, Mapping) or not node.get("proto"):
            raise ConfigError(f"{where}.proto: name one of {', '.join(protos(kind.folder))}")
        return complete(
            node, find(node["proto"], folder=kind.folder, where=f"{where}.proto"), where
        )
    if isinstance(node, str):
        node = {node: {}}
    if not isinstance(node, Mapping) or len(node) != 1:
        raise ConfigError(
            f"{where}: expected one plug-in per item, `name:` with its keys below, found {node!r}"
        )
    ((name, keys),) = node.items()
    return {
        name: complete(keys or {}, find(name, folder=kind.folder, where=where), f"{where}.{name}")
    }


def spell(annotation: Any) -> str:
    """A type as a user would say it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return spell(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spell(a) for a in args)
    if origin is Literal:
        return " or ".join(repr(a) for a in args)
    if origin in (list, tuple):
        item = spell(args[0])
        return f"a list of {PLURALS.get(item, item)}"
    if annotation is Any:
        return "a value"
    plain = {
        int: "an integer",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    if annotation in plain:
        return plain[annotation]
    return "keys and values" if origin is dict or inspect.isclass(annotation) else "a value"


def plain(node: Any) -> Any:
    """An OmegaConf node as plain lists and dicts; anything else unchanged."""
    if type(node).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(node, resolve=True)
    return node


def build(node: Any, *context: Any, cls: Callable[..., Any] | None = None, where: str = "") -> Any:
    """Make the object a YAML node describes.

    Args:
        node: mapping with a `proto` (optional when `cls` is given) and the keys of its signature.
        context: what the program supplies; handed to the object and to nested ones whose signature
            asks for it.
        cls: the class to use when the node names no proto.
        where: path of the node in the config, for error messages.

    Raises:
        ConfigError: unknown proto; unknown, missing or mistyped key.
    """
    node = plain(node)
    if not isinstance(node, Mapping) or not (cls or node.get("proto")):
        raise ConfigError(
            f"{where or 'build'}: expected keys and values with a `proto`, found {node!r}"
        )
    obj = _chosen(node, cls, where)
    values = complete(node, obj, where)
    if "proto" not in schema(obj):
        values.pop("proto", None)
    for name, key in schema(obj).items():
        nested = _nested_class(key.annotation)
        if nested and isinstance(values[name], Mapping):
            path = f"{where}.{name}" if where else name
            values[name] = build(values[name], *context, cls=nested, where=path)
    return obj(*context, **values) if takes_context(obj) else obj(**values)


def without_weights(node: Any) -> Any:
    """A model node that fetches no published weights."""
    if isinstance(node, Mapping):
        return {k: False if k == "pretrained" else without_weights(v) for k, v in node.items()}
    return node


def default_proto(owner: str, key: str) -> str | None:
    """The class that a block is made of where it names no proto, below a key of a proto; None
    where that is unknown, or the block has a `proto` of its own.
    """
    try:
        known = schema(find(owner)).get(key)
    except ConfigError:
        return None
    if known is None:
        return None
    made: Any = _nested_class(known.annotation)
    if dataclasses.is_dataclass(known.default):
        made = type(known.default)
    return made.__name__ if made and "proto" not in schema(made) else None


def _nested_class(annotation: Any) -> type | None:
    """The settings class or proto inside `X` or `X | None`, if that is what the annotation says."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    for choice in typing.get_args(annotation) if union else (annotation,):
        if inspect.isclass(choice) and choice.__module__ not in ("builtins", "typing", "pathlib"):
            return choice
    return None
