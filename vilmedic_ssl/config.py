"""YAML files with includes, dotted overrides and interpolation, as one mapping; and its hash.

Types and signatures are the business of `settle.py` and `schema.py`; this module only knows text.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vilmedic_ssl import console, scalars
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest, is_other_proto
from vilmedic_ssl.scalars import Unreadable, Written, opened
from vilmedic_ssl.schema import default_proto

REPOSITORY = Path(__file__).parents[1]
TO_KEY = re.compile(r"\$\{\s*[\w.\[\]-]+\s*\}")
TABLES = (".csv", ".tsv", ".parquet")  # the audit takes these, too, so others are tried with them
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
            "a folder of images say config/SELFSUP/simclr-folder.yml "
            f"{shlex.quote(f'dataset.root={folder}')}"
        )
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML file as a mapping of plain values; syntax errors become one sentence with the
    line.
    """
    return scalars.plain(_read_file(path))  # type: ignore[no-any-return]


def read_texts(path: Path) -> dict[str, Any]:
    """One YAML file as a mapping all of whose values are text: `no` is a word."""
    return scalars.texts(_read_file(path))  # type: ignore[no-any-return]


def _read_file(path: Path) -> dict[str, Any]:
    """One YAML file, its scalars as they are written."""
    if path.suffix.lower() in TABLES:
        raise ConfigError(
            f"{path} is a table, no config; name a .yml file such as "
            "config/SELFSUP/simclr-phantom.yml, followed by "
            f"{shlex.quote(f'dataset.manifest={path}')} and the keys of its labels"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        scalars.refuse_line_ends(text)
        node = scalars.read_document(text)
        OmegaConf.create(node, flags={"allow_objects": True})  # is its interpolation readable?
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}: this is not readable YAML ({problem})") from error
    if node is not None and not isinstance(node, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level")
    return node or {}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; lists, scalars, null and a block of another `proto` replace."""
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _laid(merged.get(key), value, above.get("proto", below.get("proto")), key)
    return merged


def _laid(old: Any, new: Any, owner: Any, key: str) -> Any:
    """What stands for a key when `new` is written over `old`, in a block of the proto `owner`."""
    below, above = opened(old), opened(new)
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return new
    if "proto" in above:
        proto = below.get("proto")
        if proto is None and isinstance(owner, str):
            proto = default_proto(owner, key)
        if is_other_proto(proto, above["proto"]):
            return above
    return merge(below, above)


def read_with_includes(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file on top of its `includes` (a list, merged left to right; includes may include)."""
    here = path.resolve()
    if here in chain:
        loop = " -> ".join(p.name for p in (*chain, here))
        raise ConfigError(f"{path}: includes itself ({loop}); remove one of the `includes`")
    node = _read_file(path)
    includes = scalars.plain(node.pop("includes", None)) or []
    if not isinstance(includes, list) or not all(isinstance(entry, str) for entry in includes):
        raise ConfigError(f"{path}: `includes` must list files, for example `includes: [base.yml]`")
    merged: dict[str, Any] = {}
    for entry in includes:
        below = read_with_includes(find_file(entry, path.parent), (*chain, here))
        merged = merge(merged, below)
    return merge(merged, node)


def parse_override(text: str) -> tuple[list[str], Any]:
    """`a.b=c` as (["a", "b"], value), the value as `scalars.read_value` has it."""
    key, sign, typed = text.partition("=")
    if not sign or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key.strip()) or key.startswith("-"):
        raise ConfigError(
            f"{text!r} is not an override; write key=value, for example trainor.batch_size=16"
        )
    value = scalars.read_value(typed.strip() if key != key.strip() else typed)
    if isinstance(value, Written) and "${" in value.text:  # keys are looked up inside, not kept
        if isinstance(value.value, Unreadable):
            raise ConfigError(f"{text!r}: the value is not readable YAML ({value.value.problem})")
        value = value.value
    return key.strip().split("."), value


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
            has = scalars.plain(node)
            raise ConfigError(f"{text!r}: {'.'.join(keys[:depth])} is {has!r} and has no keys")
        elif not last and not isinstance(opened(node.get(key)), (dict, list)):
            node[key] = {}
        old = node[slot] if isinstance(node, list) else node.get(slot)
        owner = node.get("proto") if isinstance(node, dict) else None
        node[slot] = _laid(old, value, owner, key) if last else opened(old)
        if last:
            _tell_fallen(".".join(keys), opened(old), node[slot])
        node = node[slot]


def _tell_fallen(where: str, old: Any, new: Any) -> None:
    """Name the keys that a block of another proto does not keep."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        fallen = [str(key) for key in old if key not in new]
        if fallen:
            console.say_once(
                f"{where}: a block of another proto replaces the one of the file, whose keys "
                f"{', '.join(fallen)} do not count any more"
            )


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
    """Read a config with its includes, apply `a.b=c` overrides and resolve interpolation; values
    as YAML alone reads them.

    A run folder stands for the config in it.

    Raises:
        ConfigError: missing or unreadable file, bad override, resolver call, dangling `${...}`.
    """
    return scalars.plain(read(path, overrides))  # type: ignore[no-any-return]


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`load`, with values as they are written (`scalars.Written`), for `settle`."""
    path = Path(path)
    node = read_with_includes(of_folder(path) if path.is_dir() else find_file(path))
    node.pop("allow_env", None)
    allow_env = False
    for text in overrides:
        keys, value = parse_override(text)
        if keys == ["allow_env"]:
            allow_env = scalars.plain(value) is True
        else:
            apply_override(node, keys, value, text)
    refuse_resolvers(node, "", allow_env)
    try:
        loose = OmegaConf.create(node, flags={"allow_objects": True})
        resolved = OmegaConf.to_container(loose, resolve=True)
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
    return scalars.write_document(dict(node))


def digest(node: Any) -> str:
    """Sixteen hex digits that name a value: SHA-256 over its canonical JSON."""
    text = json.dumps(node, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
