"""dalle-pytorch behind the interface of `DiscreteVAE` and `Dalle`: the same names of parameters,
the same numbers. It is optional: what it depends on can neither be built nor imported any more.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError, Unobtainable
from vilmedic_ssl.nets.dalle import padded
from vilmedic_ssl.nets.dalle_transformer import TransformerShape
from vilmedic_ssl.nets.dvae import VAEShape

INSTALL = (
    "write `pip install 'vilmedic_ssl[dalle]'` and `pip install --no-deps dalle-pytorch==1.6.6`, "
    "or model.implementation=native"
)
ABSENT = ("taming", "taming.models", "taming.models.vqgan", "pkg_resources")


@contextlib.contextmanager
def standing_in() -> Iterator[None]:
    """Stand-ins for what the package imports, and only needs for other models."""
    kept = {name: sys.modules.get(name) for name in ABSENT}
    made = {name: ModuleType(name) for name in ABSENT}
    for name in ("VQModel", "GumbelVQ"):
        setattr(made["taming.models.vqgan"], name, None)
    made["pkg_resources"].get_distribution = _distribution  # type: ignore[attr-defined]
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@cache
def package() -> Any:
    """The module.

    Raises:
        Unobtainable: it is not installed, or an older version, whose conv_like layers differ.
    """
    try:
        with standing_in():
            found = importlib.import_module("dalle_pytorch")
        version = importlib.metadata.version("dalle-pytorch")
    except ImportError as error:
        raise Unobtainable(
            f"model.implementation: dalle_pytorch cannot be imported ({error}); {INSTALL}"
        ) from error
    if not version.startswith("1.6."):
        raise Unobtainable(f"model.implementation: dalle-pytorch {version} is no 1.6; {INSTALL}")
    return found


def _distribution(name: str) -> SimpleNamespace:
    return SimpleNamespace(version=importlib.metadata.version(name))


def package_vae(shape: VAEShape) -> nn.Module:
    """A `DiscreteVAE` made by the package."""

    class DiscreteVAE(package().DiscreteVAE):  # type: ignore[misc]
        def normalised(self, images_BCHW: Tensor) -> Tensor:
            return self.norm(images_BCHW)

        def logits(self, images_BCHW: Tensor) -> Tensor:
            return self(images_BCHW, return_logits=True)

        def features(self, images_BCHW: Tensor) -> Tensor:
            return self.encoder[:-1](self.norm(images_BCHW))

        def mixed(self, weights_BKhw: Tensor) -> Tensor:
            return self.decoder(torch.einsum("bkhw,kd->bdhw", weights_BKhw, self.codebook.weight))

    made = DiscreteVAE(**vars(shape))
    made.shape = shape
    return made


def package_dalle(
    vae: nn.Module, shape: TransformerShape, num_text_tokens: int, text_seq_len: int, **options: Any
) -> nn.Module:
    """A `Dalle` made by the package; without a cache, which it drops anyway.

    Raises:
        ConfigError: a shape that it has not.
    """
    if shape.rotary_emb and shape.dim_head < 9:
        raise ConfigError(
            f"model.dalle.dim_head: {shape.dim_head}; dalle-pytorch's rotary positions need 9, "
            "write 24 or more"
        )
    if shape.checkpoint_layers:
        raise ConfigError(
            "model.dalle.checkpoint_layers: dalle-pytorch has reversible=true instead; write that, "
            "or model.implementation=native"
        )

    class DALLE(package().DALLE):  # type: ignore[misc]
        def padded(self, text_Bn: Tensor) -> Tensor:
            return padded(text_Bn, self.first_pad, self.text_seq_len)

        def forward(  # type: ignore[override]
            self, text_BT: Tensor, codes_Bn: Tensor | None = None
        ) -> tuple[Tensor, Tensor, Tensor]:
            seen: list[Tensor] = []
            hook = self.to_logits[0].register_forward_hook(lambda *told: seen.append(told[2]))
            logits = super().forward(text_BT.clone(), codes_Bn)
            hook.remove()
            words, codes = logits.tensor_split([self.text_seq_len], 1)
            return words[..., : self.text_ids], codes[..., self.text_ids :], seen[0]

        def cache(self, batch: int) -> None:
            return None

    names = {field.name for field in fields(TransformerShape)} - {"checkpoint_layers"}
    keys = {name: getattr(shape, name) for name in names}
    keys["attn_types"] = tuple(shape.attn_types)
    made = DALLE(
        vae=vae, num_text_tokens=num_text_tokens, text_seq_len=text_seq_len, **keys, **options
    )
    made.first_pad, made.text_ids = num_text_tokens, made.num_text_tokens
    made.image_ids = made.num_image_tokens
    return made
