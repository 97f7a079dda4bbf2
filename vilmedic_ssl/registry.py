"""Names in YAML become objects here: `@proto` registers, the constructor signature is the schema,
`build` makes it.

What stands before the `*` in a signature is supplied by the program; what stands after it is a
YAML key. The index of built-in protos is read from the source text, so listing or building one
imports none of the others.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from vilmedic_ssl.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])
REQUIRED = inspect.Parameter.empty
PACKAGE = Path(__file__).parent
FOLDERS = ("data/datasets", "nets", "models", "post_processing")
_plugins: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Kind:
    """Annotation for a YAML node that names its own proto: `Annotated[dict, Kind("models")]`."""

    folder: str
    single_key: bool = (
        False  # a list item of the form {name: {keys}} instead of {proto: name, keys}
    )


def proto(*args: Any) -> Any:
    """Register a class or function under its own name: `@proto`, or with further names,
    `@proto("CNN")`.
    """
    if args and callable(args[0]):
        return _register(args[0], ())
    return lambda obj: _register(obj, args)


def _register(obj: T, aliases: tuple[str, ...]) -> T:
    if not obj.__module__.startswith("vilmedic_ssl."):  # built-ins are found by the index
        for name in (obj.__name__, *aliases):
            _plugins[name] = obj
    return obj


def _decorated(source: str) -> Iterator[tuple[str, list[str]]]:
    """(definition name, aliases) of every `@proto` in a source text."""
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for mark in node.decorator_list:
            arguments = mark.args if isinstance(mark, ast.Call) else []
            name = mark.func if isinstance(mark, ast.Call) else mark
            if isinstance(name, ast.Name) and name.id == "proto":
                yield node.name, [str(a.value) for a in arguments if isinstance(a, ast.Constant)]


@cache
def index() -> dict[str, tuple[str, str, str]]:
    """name or alias -> (folder, module, attribute) for every built-in proto, without importing
    any.
    """
    found = {}
    for folder in FOLDERS:
        for path in sorted((PACKAGE / folder).glob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "@proto" not in text:
                continue
            module = "vilmedic_ssl." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            for name, aliases in _decorated(text):
                for key in (name, *aliases):
                    found[key] = (folder, module, name)
    return found


def protos(folder: str) -> list[str]:
    """The built-in names of one folder ("models", "data/datasets", "nets", "post_processing"),
    aliases left out.
    """
    return sorted(key for key, (home, _, name) in index().items() if home == folder and key == name)


def load_plugins(modules: Iterable[str]) -> None:
    """Import third-party modules so that their `@proto`s register (`plugins:
    [my_package.my_module]`).
    """
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"plugins: {name!r} is no module; write for example my_package.my")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"plugins: cannot import {name!r} ({error}); install it or put its folder on "
                "PYTHONPATH"
            ) from error


def closest(word: str, known: Iterable[str]) -> str:
    """The end of a did-you-mean sentence."""
    known = sorted(known)
    near = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    return f"known: {', '.join(known)}" if known else "nothing is known here"


def find(name: str, *, folder: str | None = None, where: str = "proto") -> Callable[..., Any]:
    """The class or function registered under `name`.

    Raises:
        ConfigError: unknown name, with the closest known ones of `folder`.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{where}: expected a name, found {name!r}")
    if name in _plugins:
        return _plugins[name]
    if name in index():
        home, module, attribute = index()[name]
        if folder is None or home == folder:
            return getattr(importlib.import_module(module), attribute)
    known = [key for key, entry in index().items() if folder in (None, entry[0])] + list(_plugins)
    raise ConfigError(f"{where}: there is no {name!r}; {closest(name, known)}")


@dataclass(frozen=True)
class Key:
    """One YAML key of a schema: its type annotation and default (REQUIRED when there is none)."""

    annotation: Any
    default: Any


@cache
def schema(obj: Callable[..., Any]) -> dict[str, Key]:
    """The YAML keys of a class or function: its keyword-only parameters."""
    target = obj.__init__ if inspect.isclass(obj) else obj
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
    for given, value in node.items():
        name = aliases.get(given, str(given))
        path = f"{where}.{name}" if where else name
        if value == "???":  # OmegaConf's mark for a value the user must supply
            raise ConfigError(f"{path}: this key must be given, write {path}=...")
        if name == "proto" and value is None:
            continue
        if name == "proto" and find(value, where=path) is obj:
            result[name] = value
        elif name not in keys:
            raise ConfigError(f"{path}: there is no such key; {closest(name, keys)}")
        else:
            result[name] = conform(value, keys[name].annotation, path)
    for name, key in keys.items():
        if name not in result:
            path = f"{where}.{name}" if where else name
            if key.default is REQUIRED:
                raise ConfigError(f"{path}: this key is required ({spell(key.annotation)})")
            result[name] = _filled(key, path)
    return result


def _filled(key: Key, path: str) -> Any:
    """A default as plain data: nested settings are spelled out so that a saved config says
    everything.
    """
    if dataclasses.is_dataclass(key.default):
        return conform(dataclasses.asdict(key.default), key.annotation, path)  # type: ignore[arg-type]
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
    hint = "; put quotes around it" if annotation is str and isinstance(value, (int, float)) else ""
    raise ConfigError(f"{where}: expected {spell(annotation)}, found {value!r}{hint}")


def _chosen(node: Mapping[str, Any], cls: Callable[..., Any] | None, where: str) -> Any:
    """The class a node is to be made of: its proto, which must be a kind of `cls` unless a plug-in
    registered it, or `cls` itself.
    """
    name = node.get("proto")
    if not name:
        return cls
    found = find(name, where=f"{where}.proto")
    if inspect.isclass(cls) and name not in _plugins and not _is_a(found, cls):
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
    deeper = [p for p in problems if not str(p).startswith(f"{where}: expected")]
    if (
        len(deeper) == 1
    ):  # the value had the shape of one alternative, and that one says what is wrong inside
        raise deeper[0]
    raise ConfigError(f"{where}: expected {' or '.join(map(spell, choices))}, found {value!r}")


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
        return f"a list of {spell(args[0])}"
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
    values.pop("proto", None)
    for name, key in schema(obj).items():
        nested = _nested_class(key.annotation)
        if nested and isinstance(values[name], Mapping):
            path = f"{where}.{name}" if where else name
            values[name] = build(values[name], *context, cls=nested, where=path)
    return obj(*context, **values) if takes_context(obj) else obj(**values)


def _nested_class(annotation: Any) -> type | None:
    """The settings class or proto inside `X` or `X | None`, if that is what the annotation says."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    for choice in typing.get_args(annotation) if union else (annotation,):
        if inspect.isclass(choice) and choice.__module__ not in ("builtins", "typing", "pathlib"):
            return choice
    return None
