"""Discrete VAEs and DALLEs in files: ours, ViLMedic's, and those of dalle-pytorch, which we also
write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.checkpoint import load_weights
from vilmedic_ssl.executors.init_weights_read import Weights, read_weights
from vilmedic_ssl.models.dalle import DALLE
from vilmedic_ssl.models.vae import VAE
from vilmedic_ssl.nets.dalle_transformer import TransformerShape
from vilmedic_ssl.nets.dvae import VAEShape
from vilmedic_ssl.schema import build

MARK, FIRST = "codebook.weight", "encoder.0.0.weight"
VERSION = "1.6.6"  # of dalle-pytorch, whose numbers these are


@dataclass(frozen=True)
class VAEFile:
    """A discrete VAE in a file.

    Attributes:
        path: the file.
        weights: by their names in `DiscreteVAE`.
        told: what is known of it, by the keys of `VAE`: the sizes that weights tell, and what lies
            beside them, image_size for example.
        trained_on: members of the images it has learned from, (N,) int64; labels_of: of those whose
            labels it has.
    """

    path: Path
    weights: dict[str, Tensor]
    told: dict[str, Any]
    trained_on: Tensor
    labels_of: Tensor

    def load(self, vae: torch.nn.Module) -> None:
        """Fill a VAE of the same sizes.

        Raises:
            UserError: tensors are missing.
        """
        load_weights(vae, self.weights, self.path)


def read_vae(source: str | Path, seed: int | None = None, *, where: str) -> VAEFile:
    """The VAE in a run folder or checkpoint of ours (of a VAE, or of a DALLE around one), of
    ViLMedic, or of dalle-pytorch (`vae.pt`, `dalle.pt`).

    Args:
        seed: whose checkpoint is taken from a folder with those of several seeds.
        where: the key that names the file.

    Raises:
        Unobtainable, UserError: as `read_weights`; no discrete VAE in it.
    """
    found = read_weights(source, seed, where=where)
    homes = [name.removesuffix(MARK) for name in found.tensors if name.endswith(MARK)]
    homes = [home for home in homes if f"{home}{FIRST}" in found.tensors]
    if not homes:
        raise UserError(
            f"{where}: {found.path} holds no discrete VAE (no {MARK} beside {FIRST}); name the run "
            "folder of a VAE, or one of its checkpoints"
        )
    home = min(homes, key=lambda name: (len(name), name))
    weights = {
        name.removeprefix(home): tensor
        for name, tensor in found.tensors.items()
        if name.startswith((f"{home}codebook.", f"{home}encoder.", f"{home}decoder."))
    }
    told = {**_beside(found.model), **_sizes(weights)}
    return VAEFile(found.path, weights, told, found.trained_on, found.labels_of)


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What the shapes of a VAE's weights tell."""
    first = weights[FIRST]
    return {
        "num_tokens": weights[MARK].shape[0],
        "codebook_dim": weights[MARK].shape[1],
        "hidden_dim": first.shape[0],
        "channels": first.shape[1],
        "num_layers": sum(f"encoder.{i}.0.weight" in weights for i in range(len(weights))),
        "num_resnet_blocks": sum(
            f"encoder.{i}.net.0.weight" in weights for i in range(len(weights))
        ),
    }


def _beside(model: Mapping[str, Any]) -> dict[str, Any]:
    """What is written beside the weights of a VAE: in our config, or in dalle-pytorch's
    parameters.
    """
    blocks = [model.get(name) for name in ("vae", "vae_params", "hparams")]
    keys = next((block for block in blocks if block and isinstance(block, Mapping)), model)
    names = ("image_size", "temperature", "straight_through")
    return {name: keys[name] for name in names if keys.get(name) is not None}


def write_dalle_pytorch(model: VAE | DALLE, path: str | Path) -> Path:
    """Save a model as dalle-pytorch's training scripts do (`vae.pt`, `dalle.pt`): `hparams`, of a
    DALLE also `vae_params`, and `weights`.
    """
    made: Any = model.vae if isinstance(model, VAE) else model.dalle
    content: dict[str, Any] = {"weights": {k: v.cpu() for k, v in made.state_dict().items()}}
    sizes = {field.name for field in fields(VAEShape)}
    vae: Any = made if isinstance(model, VAE) else made.vae
    told = {name: getattr(vae.shape, name) for name in sorted(sizes)}
    if isinstance(model, VAE):
        content["hparams"] = told
    else:
        content |= {"hparams": _hparams(model), "vae_params": told, "epoch": 0, "version": VERSION}
        content["vae_class_name"] = "DiscreteVAE"
    path = Path(path)
    torch.save(content, path)
    return path


NOT_THEIRS = ("checkpoint_layers",)
ALSO = ("num_text_tokens", "text_seq_len", "loss_img_weight", "stable", "share_input_output_emb")


def _hparams(model: DALLE) -> dict[str, Any]:
    names = [f.name for f in fields(TransformerShape) if f.name not in NOT_THEIRS]
    found = {name: getattr(model.keys, name) for name in (*names, *ALSO)}
    return {**found, "attn_types": list(model.keys.attn_types)}


def read_dalle_pytorch(path: Path) -> VAE | DALLE | None:
    """A model of dalle-pytorch, with its weights; None for any other file.

    Raises:
        UserError: parameters that say something else than the weights.
    """
    found = read_weights(path, where=str(path))
    theirs = found.model.get("hparams")
    if theirs is None or found.trained_on.numel():
        return None
    vae = read_vae(path, where=str(path))
    sizes = {f.name: vae.told[f.name] for f in fields(VAEShape) if f.name in vae.told}
    if "image_size" not in sizes:
        raise UserError(f"{path}: hparams tell no image_size; write it into the file")
    if "vae_params" not in found.model:
        model: VAE = build({"proto": "VAE", **sizes}, where=f"{path}: hparams")
        vae.load(model.get_submodule("vae"))
        return model
    return _dalle(path, found, theirs, sizes)


def _dalle(path: Path, found: Weights, theirs: Mapping[str, Any], sizes: dict[str, Any]) -> DALLE:
    names = {f.name for f in fields(TransformerShape)} | set(ALSO)
    keys = {name: value for name, value in theirs.items() if name in names and value is not None}
    if isinstance(keys.get("attn_types"), str):
        keys["attn_types"] = keys["attn_types"].split(",")
    node = {"proto": "DALLE", "vae": sizes, "dalle": keys}
    model: DALLE = build(node, where=f"{path}: hparams")
    tensors = {f"{DALLE.core}{name}": tensor for name, tensor in found.tensors.items()}
    load_weights(model, tensors, path)
    return model
