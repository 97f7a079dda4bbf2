"""Names in YAML become classes and functions here: `@proto` registers them, `find` finds them.

The index of built-in protos is read from the source text, so listing or finding one imports none
of the others.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from vilmedic_ssl.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])
PACKAGE = Path(__file__).parent
FOLDERS = ("data/datasets", "nets", "models", "post_processing")
LISTED = 30  # names at most in a sentence
_plugins: dict[str, Callable[..., Any]] = {}


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
            text = path.read_text(encoding="utf-8-sig")
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
    folded = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(str(word).lower(), folded, n=3, cutoff=0.5)
    near = [folded[match] for match in matches]
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"known: {', '.join(known[:LISTED])}{more}" if known else "nothing is known here"


def find(
    name: str, *, folder: str | None = None, where: str = "proto", also: Iterable[str] = ()
) -> Callable[..., Any]:
    """The class or function registered under `name`.

    Raises:
        ConfigError: unknown name, with the closest known ones of `folder` and of `also`.
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
    raise ConfigError(f"{where}: there is no {name!r}; {closest(name, [*known, *also])}")


def is_plugin(name: str) -> bool:
    """True when a third-party module registered `name`."""
    return name in _plugins


def is_other_proto(one: Any, other: Any) -> bool:
    """True when both are names, of different classes, and one of them at least is registered."""
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    homes = [_plugins.get(name) or index().get(name) for name in (one, other)]
    return homes[0] != homes[1] if any(homes) else False
