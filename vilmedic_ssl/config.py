"""YAML files with includes, dotted overrides and interpolation, as one plain mapping; and its hash.

Checking against signatures happens in the registry; this module only knows text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

REPOSITORY = Path(__file__).parents[1]
TO_KEY = re.compile(r"\$\{\s*[\w.\[\]-]+\s*\}")
TO_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:[^{}]*\}")


def find_file(name: str | Path, beside: Path | None = None) -> Path:
    """A config file as given, beside the including file, or below the repository.

    ViLMedic moved `config/CLIP` to `config/SELFSUP/CLIP`, and files from there one folder up; all
    three spellings are found.

    Raises:
        ConfigError: no such file.
    """
    name = Path(name)
    moved = re.sub(r"(^|/)config/(?!SELFSUP/)", r"\1config/SELFSUP/", name.as_posix())
    flat = re.sub(r"(^|/)config/SELFSUP/CLIP/", r"\1config/SELFSUP/", moved)
    folders = [Path(), *([beside] if beside else []), REPOSITORY]
    for candidate in (name, Path(moved), Path(flat)):
        for folder in folders:
            if (folder / candidate).is_file():
                return folder / candidate
    siblings = [p.as_posix() for p in name.parent.glob("*.yml")] if name.parent.is_dir() else []
    near = closest(name.as_posix(), siblings) if siblings else "name a .yml file or a run folder"
    raise ConfigError(f"there is no config file {name}; {near}")


def config_in(folder: Path) -> Path | None:
    """The saved config of a run folder; None where there is none.

    Raises:
        ConfigError: there are several, of several seeds.
    """
    found = sorted(folder.glob("config_[0-9]*.yml"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"{folder} holds {names}; name one of these files instead of the folder")
    return found[0] if found else None


def of_folder(folder: Path) -> Path:
    """`config_in`, or ConfigError."""
    found = config_in(folder)
    if found is None:
        raise ConfigError(
            f"{folder} is a folder without config_0.yml, so no trained run; name a .yml file, for "
            f"a folder of images say config/SELFSUP/simclr-folder.yml dataset.root={folder}"
        )
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML file as a mapping; syntax errors become one sentence with the line."""
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}: this is not readable YAML ({problem})") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path}: expected keys and values at the top level")
    return OmegaConf.to_container(node, resolve=False)  # type: ignore[return-value]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; lists, scalars and null replace."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_with_includes(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file on top of its `includes` (a list, merged left to right; includes may include)."""
    here = path.resolve()
    if here in chain:
        loop = " -> ".join(p.name for p in (*chain, here))
        raise ConfigError(f"{path}: includes itself ({loop}); remove one of the `includes`")
    node = read_yaml(path)
    includes = node.pop("includes", None) or []
    if not isinstance(includes, list) or not all(isinstance(entry, str) for entry in includes):
        raise ConfigError(f"{path}: `includes` must list files, for example `includes: [base.yml]`")
    merged: dict[str, Any] = {}
    for entry in includes:
        below = read_with_includes(find_file(entry, path.parent), (*chain, here))
        merged = merge(merged, below)
    return merge(merged, node)


def parse_override(text: str) -> tuple[list[str], Any]:
    """`a.b=c` as (["a", "b"], value), the value read as YAML."""
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key) or key.startswith("-"):
        raise ConfigError(
            f"{text!r} is not an override; write key=value, for example trainor.batch_size=16"
        )
    try:
        parsed = OmegaConf.from_dotlist([f"value={value}"])
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{text!r}: the value is not readable YAML; put quotes around it inside those of the "
            f"""shell, for example "{key}='*a*'\" or "{key}=['*a*', '*b*']\""""
        ) from error
    return key.split("."), OmegaConf.to_container(parsed, resolve=False)["value"]  # type: ignore[index,call-overload]


def apply_override(node: Any, keys: Sequence[str], value: Any, text: str) -> None:
    """Set one dotted key in place; list items are addressed by number."""
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        slot: Any = key
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise ConfigError(
                    f"{text!r}: {'.'.join(keys[:depth])} has {len(node)} items, numbered from 0"
                )
            slot = int(key)
        elif not isinstance(node, dict):
            raise ConfigError(f"{text!r}: {'.'.join(keys[:depth])} is {node!r} and has no keys")
        elif not last and not isinstance(node.get(key), (dict, list)):
            node[key] = {}
        if last:
            old = node[slot] if isinstance(node, list) else node.get(slot)
            both = isinstance(old, dict) and isinstance(value, dict)
            node[slot] = merge(old, value) if both else value
        else:
            node = node[slot]


def refuse_resolvers(node: Any, where: str, allow_env: bool) -> None:
    """Interpolation may name config keys and nothing else: resolver calls such as
    `${oc.env:HOME}`, also in pieces (`${${a}:HOME}`), are off.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            refuse_resolvers(value, f"{where}.{key}" if where else str(key), allow_env)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            refuse_resolvers(value, f"{where}.{i}", allow_env)
    elif isinstance(node, str):
        rest = TO_KEY.sub("", node)
        if allow_env:
            rest = TO_ENVIRONMENT.sub("", rest)
        if "${" in rest:
            hint = "; environment variables need allow_env=true on the command line"
            raise ConfigError(
                f"{where}: {node!r} is not allowed, only ${{a.config.key}}"
                f"{hint if 'oc.env' in rest else ''}"
            )


def load(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config with its includes, apply `a.b=c` overrides and resolve interpolation.

    A run folder stands for the config in it.

    Raises:
        ConfigError: missing or unreadable file, bad override, resolver call, dangling `${...}`.
    """
    path = Path(path)
    node = read_with_includes(of_folder(path) if path.is_dir() else find_file(path))
    node.pop("allow_env", None)
    allow_env = False
    for text in overrides:
        keys, value = parse_override(text)
        if keys == ["allow_env"]:
            allow_env = value is True
        else:
            apply_override(node, keys, value, text)
    refuse_resolvers(node, "", allow_env)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    refuse_resolvers(resolved, "", False)  # what pieces add up to would be resolved by its reader
    return resolved  # type: ignore[return-value]


def freeze(node: Mapping[str, Any]) -> DictConfig:
    """A checked mapping as a read-only config with attribute access."""
    config = OmegaConf.create(dict(node))
    OmegaConf.set_struct(config, True)
    OmegaConf.set_readonly(config, True)
    return config


def dump(node: Mapping[str, Any]) -> str:
    """The config as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(node)))


def digest(node: Any) -> str:
    """Sixteen hex digits that name a value: SHA-256 over its canonical JSON."""
    text = json.dumps(node, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
