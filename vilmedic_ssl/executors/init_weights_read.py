"""Tensors from any file of weights: a checkpoint of ours, or what other programs write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl import registry
from vilmedic_ssl.errors import ConfigError, Unobtainable, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.init_weights_strangers import dropping, strangers_in
from vilmedic_ssl.executors.stored import refuse_malformed

# Where other programs keep the weights; a moving average and a teacher first, which are judged.
ENTRIES = (
    *("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model"),
    *("teacher", "student", "online_encoder", "encoder", "net", "module", "weights"),
)
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
REFUSED = re.compile(r"GLOBAL (\S+) was not")  # how torch names what `weights_only` refuses


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
    """

    path: Path
    tensors: dict[str, Tensor]
    judged: str | None
    trained_on: Tensor
    labels_of: Tensor
    encoder: Mapping[str, Any] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)


def read_weights(
    source: str | Path, seed: int | None = None, *, where: str = "init_from"
) -> Weights:
    """The weights of a run folder (best checkpoint, else the last), or of one file.

    Nothing in a file is executed. A checkpoint of ours gives its moving average where it has one.

    Args:
        seed: whose checkpoint is taken from a folder with those of several seeds; None = the best
            of all.
        where: the key that names the file.

    Raises:
        Unobtainable: nothing there, or a package to read it is missing.
        UserError: damaged; no weights in it; objects beside the weights; a folder with several
            seeds, and not this one.
    """
    path = _file(Path(source).expanduser(), seed, where)
    safe = path.suffix == ".safetensors"
    content: Any = _safetensors(path, where) if safe else _torch(path, where)
    if isinstance(content, dict) and set(content) >= checkpoint.OF_A_RUN:
        refuse_malformed(content, path)
        tensors = content["ema"] or content["model"]
        seen = content["trained_on"], checkpoint.labels_of(content)
        model = content["config"]["model"]
        encoder = model["cnn"] if isinstance(model.get("cnn"), Mapping) else {}
        return Weights(path, tensors, _judged(content["config"]), *seen, encoder, model)
    none = torch.empty(0, dtype=torch.int64)
    tensors = _tensors(content, path, where)
    return Weights(path, tensors, None, none, none, model=_sizes(content))


def tokenizer_in(source: str | Path, seed: int | None = None) -> dict[str, Any] | None:
    """The tokenizer that a checkpoint of ours, of a model that reads reports, was trained with;
    None for all other files. Its word vectors mean nothing under another one.

    Args:
        source, seed: as in `read_weights`.

    Raises:
        Unobtainable, UserError: as `read_weights`.
    """
    path = _file(Path(source).expanduser(), seed, "init_from")
    content = None if path.suffix == ".safetensors" else _torch(path, "init_from")
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


def _torch(path: Path, where: str) -> Any:
    checkpoint.verify(path, f"{where}: ")
    try:
        with torch.serialization.safe_globals(dropping(strangers_in(path))):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        found = REFUSED.search(str(error))
        if found is None:
            kind = "a TorchScript program" if "TorchScript" in str(error) else "damaged"
            raise UserError(
                f"{where}: {path} is not a readable file of weights ({kind}, or of another "
                "kind); save a state_dict with torch.save"
            ) from error
        raise UserError(
            f"{where}: {path} holds an object of {found[1]} beside the weights, and reading "
            "objects runs code, which is refused; where the file comes from, write its weights "
            'alone: torch.save(content["state_dict"], "weights.pth"), content["model"] of '
            "ViLMedic's, or content.state_dict() of a whole model"
        ) from error


def _tensors(content: Any, path: Path, where: str) -> dict[str, Tensor]:
    """The state dict in what another program saved, without what wrappers put before names."""
    found = _of(content)
    if not found and isinstance(content, Mapping):
        inner = [name for name in (*ENTRIES, *content) if _of(content.get(name))]
        found = _of(content[inner[0]]) if inner else {}
    if not found:
        keys = list(map(str, content))[:6] if isinstance(content, Mapping) else []
        told = f"its entries are {', '.join(keys)}" if keys else f"a {type(content).__name__}"
        raise UserError(f"{where}: no tensors with names in {path} ({told}); save a state_dict")
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return found


def _sizes(content: Any) -> dict[str, Any]:
    """What dalle-pytorch's training scripts write beside the weights: `hparams` of a VAE, of a
    DALLE that of its own and `vae_params`.
    """
    told = {} if not isinstance(content, Mapping) else content
    found = {name: told.get(name) for name in ("hparams", "vae_params")}
    return {name: dict(sizes) for name, sizes in found.items() if isinstance(sizes, Mapping)}


def _of(content: Any) -> dict[str, Tensor]:
    """The tensors with names in a mapping; empty for anything else."""
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _judged(config: Mapping[str, Any]) -> str | None:
    """Which encoder the model of a config is judged by; None for one of a plug-in not loaded."""
    try:
        return getattr(registry.find(config["model"]["proto"], folder="models"), "judged", None)
    except (ConfigError, KeyError):
        return None
