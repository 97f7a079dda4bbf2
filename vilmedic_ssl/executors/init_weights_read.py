"""Tensors from any file of weights: a checkpoint of ours, or what other programs write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl import registry
from vilmedic_ssl.errors import ConfigError, Unobtainable, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.init_weights_strangers import NeedsObjects, load_inert
from vilmedic_ssl.executors.stored import refuse_malformed

# Entries that hold no weights: states of optimizers and schedules, random states.
NO_WEIGHTS = re.compile(r"(opt(_.*)?|.*optim.*|.*sched.*|.*scaler.*|rng.*|random.*|loops)$")
# An entry of its own with the moving average is what was scored.
AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?)($|_)")
# Words that DistributedDataParallel, torch.compile, FSDP and activation checkpoints put into names.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
DEEPEST = 8  # entries within entries
PART = "::"  # FILE::PREFIX, what of a file is meant


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
        path: the file.
        tensors: by name, on the CPU.
        judged: where the encoder is that the model was judged by, `cnn.` for example; None in
            files of other programs.
        trained_on: members of the images it has learned from, (N,) int64; empty where unknown;
            labels_of: of those whose labels it has learned from.
        encoder: `model.cnn` of a checkpoint of ours; None in files of other programs.
        model: `model` of the config in a checkpoint of ours, or the sizes that dalle-pytorch keeps
            beside its weights; empty where nothing is told.
        notes: what was chosen and left out while reading, in words.
    """

    path: Path
    tensors: dict[str, Tensor]
    judged: str | None
    trained_on: Tensor
    labels_of: Tensor
    encoder: Mapping[str, Any] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_weights(
    source: str | Path, seed: int | None = None, *, where: str = "init_from"
) -> Weights:
    """The weights of a run folder (best checkpoint, else the last), or of one file; `FILE::PREFIX`
    means those whose names begin so.

    Nothing in a file is executed; objects beside the weights are left out. A checkpoint of ours
    gives its moving average where it has one, and so does a file of another program that keeps one
    in an entry of its own (`state_dict_ema`, `model_ema`).

    Args:
        seed: whose checkpoint is taken from a folder with those of several seeds; None = the best
            of all.
        where: the key that names the file.

    Raises:
        Unobtainable: nothing there, or a package to read it is missing.
        UserError: damaged; no weights in it outside of objects; a folder with several seeds, and
            not this one; no name that begins so.
    """
    file, part = _split(source)
    path = _file(file, seed, where)
    content, left_out = _content(path, where)
    if isinstance(content, dict) and set(content) >= checkpoint.OF_A_RUN:
        if part:
            raise UserError(f"{where}: {path} is a checkpoint of ours; leave out {PART}{part}")
        refuse_malformed(content, path)
        tensors = content["ema"] or content["model"]
        seen = content["trained_on"], checkpoint.labels_of(content)
        model = content["config"]["model"]
        encoder = model["cnn"] if isinstance(model.get("cnn"), Mapping) else {}
        return Weights(path, tensors, _judged(content["config"]), *seen, encoder, model)
    held = _tensors(content, path, where, left_out)
    scored, notes = _scored(held)
    tensors = _named(scored)
    if part:  # what a note or a message named, also of what is not scored
        tensors, notes = _part_of({**_named(held), **tensors}, part, path, where), []
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        notes.append(f"objects beside the weights left out: {', '.join(left_out[:3])}{more}")
    none = torch.empty(0, dtype=torch.int64)
    sizes = _sizes(content)
    return Weights(path, tensors, None, none, none, model=sizes, notes=tuple(notes))


def _content(path: Path, where: str) -> tuple[Any, list[str]]:
    """(what a file holds, names of objects that were left out)."""
    if path.suffix == ".safetensors":
        return _safetensors(path, where), []
    return _torch(path, where)


def _split(source: str | Path) -> tuple[Path, str]:
    """FILE::PREFIX as its two parts; a file that has `::` in its name is one."""
    path = Path(source).expanduser()
    file, sign, part = str(source).rpartition(PART)
    return (Path(file).expanduser(), part) if sign and not path.exists() else (path, "")


def _part_of(tensors: dict[str, Tensor], part: str, path: Path, where: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `part`."""
    chosen = {name: tensor for name, tensor in tensors.items() if name.startswith(part)}
    if not chosen:
        first = sorted({name.split(".")[0] for name in tensors})[:6]
        raise UserError(
            f"{where}: no name in {path} begins with {part!r}; they begin with {', '.join(first)}"
        )
    return chosen


def tokenizer_in(source: str | Path, seed: int | None = None) -> dict[str, Any] | None:
    """The tokenizer that a checkpoint of ours, of a model that reads reports, was trained with;
    None for all other files. Its word vectors mean nothing under another one.

    Args:
        source, seed: as in `read_weights`.

    Raises:
        Unobtainable, UserError: as `read_weights`.
    """
    path = _file(_split(source)[0], seed, "init_from")
    content, _ = _content(path, "init_from")
    return content.get("tokenizer") if isinstance(content, dict) else None


def _file(path: Path, seed: int | None, where: str) -> Path:
    if path.is_dir():
        return checkpoint.best_or_last(path, seed, where=where)
    if not path.is_file():
        raise Unobtainable(
            f"{where}: there is no {path}; write a run folder, a checkpoint or a file of "
            "weights (.pth, .pt, .bin, .ckpt, .safetensors)"
        )
    return path


def _safetensors(path: Path, where: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise Unobtainable(
            f"{where}: {path.name} needs the package safetensors; install it (pip install "
            "safetensors)"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises a class of its own
        raise UserError(
            f"{where}: {path} is no readable safetensors file ({error}); take another one"
        ) from error


def _torch(path: Path, where: str) -> tuple[Any, list[str]]:
    """(what torch.save wrote, names of objects that were left out)."""
    checkpoint.verify(path, f"{where}: ")
    try:
        return load_inert(path)
    except NeedsObjects as error:
        raise _objects(path, error.args[0], where) from error
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        kind = "a TorchScript program" if "TorchScript" in str(error) else "damaged"
        raise UserError(
            f"{where}: {path} is not a readable file of weights ({kind}, or of another "
            "kind); save a state_dict with torch.save"
        ) from error


def _objects(path: Path, name: str, where: str) -> UserError:
    """What to say of a file whose weights cannot be had without its objects."""
    return UserError(
        f"{where}: {path} holds an object of {name} and no tensors with names that can be read "
        "without it; reading objects runs code, which is refused; where the file comes from, "
        'write its weights alone: torch.save(content["state_dict"], "weights.pth"), '
        'content["model"] of ViLMedic\'s, or content.state_dict() of a whole model'
    )


def _tensors(
    content: Any, path: Path, where: str, left_out: list[str]
) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """The state dicts in what another program saved, by the entries they lie in.

    Numbers and vectors that lie alone (a best score, mean and deviation of the images, a count) are
    no state dict where there is a matrix elsewhere.
    """
    state_dicts = dict(_state_dicts(content))
    large = {
        way: held for way, held in state_dicts.items() if any(t.dim() > 1 for t in held.values())
    }
    if not state_dicts and left_out:
        raise _objects(path, getattr(content, "stands_for", left_out[0]), where)
    if not state_dicts:
        keys = list(map(str, content))[:6] if isinstance(content, Mapping) else []
        content_is = f"its entries are {', '.join(keys)}" if keys else f"a {type(content).__name__}"
        raise UserError(
            f"{where}: no tensors with names in {path} ({content_is}); save a state_dict"
        )
    return large or state_dicts


def _state_dicts(
    content: Any, way: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """(entries on the way, the tensors with names there) of every mapping that holds some."""
    if not isinstance(content, Mapping) or len(way) > DEEPEST:
        return
    held = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if held:
        yield way, _unwrapped(held)
    for name, inner in content.items():
        if not NO_WEIGHTS.match(str(name).lower()):
            yield from _state_dicts(inner, (*way, str(name)))


def _unwrapped(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the words of wrappers, at any depth, where they stay different."""
    short = [".".join(w for w in name.split(".") if w not in WRAPPERS) or name for name in held]
    return dict(zip(short, held.values(), strict=True)) if len(set(short)) == len(held) else held


def _named(held: Mapping[tuple[str, ...], dict[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors under names of their own: those of the largest state dict by theirs, others with
    the entries that they lie in before them.
    """
    sizes = sorted((len(tensors) for tensors in held.values()), reverse=True)
    alone = len(sizes) == 1 or sizes[0] > sizes[1]
    shared = len(os.path.commonprefix(list(held)))
    result: dict[str, Tensor] = {}
    for way, tensors in sorted(held.items(), key=lambda item: -len(item[1])):
        main = alone and not result
        before = "" if main else "".join(f"{entry}." for entry in way[shared:])
        result |= {before + name: tensor for name, tensor in tensors.items()}
    return result


def _scored(
    held: dict[tuple[str, ...], dict[str, Tensor]],
) -> tuple[dict[tuple[str, ...], dict[str, Tensor]], list[str]]:
    """(without the state dicts of which there is a moving average in an entry of its own, a
    sentence about it).
    """
    averages = [way for way in held if any(AVERAGE.search(entry) for entry in way)]
    same = [
        way
        for way in held
        if way not in averages and any(set(held[way]) == set(held[a]) for a in averages)
    ]
    if not same:
        return held, []
    average, other = (".".join(ways[0]) for ways in (averages, same))
    hint = f" ({PART}{other}. behind the file takes that)" if other else ""
    note = f'the moving average in "{average}" is taken, not "{other}"{hint}'
    return {way: tensors for way, tensors in held.items() if way not in same}, [note]


def _sizes(content: Any) -> dict[str, Any]:
    """What dalle-pytorch's training scripts write beside the weights: `hparams` of a VAE, of a
    DALLE that of its own and `vae_params`.
    """
    told = {} if not isinstance(content, Mapping) else content
    found = {name: told.get(name) for name in ("hparams", "vae_params")}
    return {name: dict(sizes) for name, sizes in found.items() if isinstance(sizes, Mapping)}


def _judged(config: Mapping[str, Any]) -> str | None:
    """Which encoder the model of a config is judged by; None for one of a plug-in not loaded."""
    try:
        return getattr(registry.find(config["model"]["proto"], folder="models"), "judged", None)
    except (ConfigError, KeyError):
        return None
