"""Text encoders: any transformers encoder behind ViLMedic's keys, or a new BERT.

B = texts, L = tokens, D = width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.nets import text_weights
from vilmedic_ssl.nets.architecture import text_config

Pool = Literal["pooler", "first", "mean", "max"]
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
)


class TextEncoder(nn.Module):
    """From tokens to vectors.

    Attributes:
        proto: a transformers folder or hub name, whose architecture and weights are taken; null = a
            new BERT of the sizes below.
        pretrained: false = the architecture of `proto` alone.
        last_n_layers: the vector of a token is the sum of its vectors behind so many layers
            (GLoRIA: 4).
        pool: the vector of a text: pooler = the pooling layer on the first token; first = that
            token; mean or max over the tokens; null = as the method has it (GLoRIA mean, others
            pooler).
        freeze: no gradient, and no dropout.
        freeze_layers: the same for the embeddings and so many layers from the start; null = none.
        vocab_size: of a new BERT; null = as many as the tokenizer has.
        hidden_size, num_hidden_layers, num_attention_heads: of a new BERT.
        intermediate_size, max_position_embeddings: likewise; intermediate_size null = four times
            hidden_size.
        hidden_dropout_prob, attention_probs_dropout_prob: of a new BERT.
        config: the whole architecture, as training writes it into the saved config; then `proto` is
            looked at for weights alone.

    Raises:
        ConfigError: no such layer, or no pooling layer where it is asked for; a network that is no
            text encoder.
        Unobtainable: `proto` cannot be had.
        UserError: the weights of `proto` are not those of the encoder.
    """

    def __init__(
        self,
        *,
        proto: str | None = None,
        pretrained: bool = True,
        last_n_layers: int = 1,
        pool: Pool | None = None,
        freeze: bool = False,
        freeze_layers: int | None = None,
        vocab_size: int | None = None,
        hidden_size: int = 256,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 512,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        config: dict[str, Any] | None = None,
    ):
        super().__init__()
        given = {name: value for name, value in locals().items() if name in SIZES}
        config = config or architecture({"proto": proto, **given})
        net, self.fresh_pooler = _create(config, proto if pretrained else None)
        self.net: Any = net
        self.pool, self.last_n_layers, self.freeze = pool, last_n_layers, freeze
        made: Any = self.net.config
        self.out_dim: int = made.hidden_size
        layers = made.num_hidden_layers
        if not 1 <= last_n_layers <= layers:
            raise ConfigError(
                f"model.encoder.last_n_layers: {last_n_layers}, but there are {layers}; write 1 to "
                f"{layers}"
            )
        self.still: list[nn.Module] = [self] if freeze else self._first(freeze_layers)
        for part in self.still:
            part.requires_grad_(False).eval()

    def pool_by(self, usual: Pool) -> TextEncoder:
        """Settle how texts are pooled, where no key says it; a pooling layer that is not used goes.

        Raises:
            ConfigError: the encoder has no pooling layer.
        """
        self.pool = self.pool or usual
        layer = getattr(self.net, "pooler", None)
        if self.pool == "pooler" and layer is None:
            raise ConfigError(
                f"model.encoder.pool: {self.net.config.model_type} has no pooling layer; write "
                "model.encoder.pool=mean"
            )
        if layer is not None and self.pool != "pooler":
            self.net.pooler = None
        elif self.fresh_pooler:
            console.warn(
                "model.encoder.pool: the pooling layer is not among the weights of "
                "model.encoder.proto and starts afresh; model.encoder.pool=mean needs none"
            )
        return self

    def _first(self, layers: int | None) -> list[nn.Module]:
        """The embeddings and the first layers."""
        if layers is None:
            return []
        stack = getattr(getattr(self.net, "encoder", None), "layer", None)
        if stack is None or not 0 <= layers <= len(stack):
            raise ConfigError(
                f"model.encoder.freeze_layers: {layers}; "
                + (
                    f"write 0 to {len(stack)}"
                    if stack is not None
                    else "the layers of this "
                    "encoder are not known; write model.freeze.names instead"
                )
            )
        return [self.net.embeddings, *stack[:layers]]

    def train(self, mode: bool = True) -> TextEncoder:
        """What is frozen stays in eval mode."""
        super().train(mode)
        for part in self.still:
            nn.Module.train(part, False)
        return self

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """(B, L) int64 twice -> the vector of each token, (B, L, D)."""
        return self.tokens_and_text(input_ids_BL, attention_mask_BL)[0]

    def tokens_and_text(self, input_ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The vector of each token (B, L, D) and, after `pool_by`, of each text (B, D)."""
        several = self.last_n_layers > 1
        out = self.net(input_ids_BL, attention_mask=mask_BL, output_hidden_states=several)
        tokens_BLD = out.last_hidden_state
        if several:
            tokens_BLD = torch.stack(out.hidden_states[-self.last_n_layers :]).sum(0)
        if self.pool == "pooler":
            return tokens_BLD, out.pooler_output
        return tokens_BLD, pooled(tokens_BLD, mask_BL, self.pool or "mean")


def pooled(tokens_BLD: Tensor, mask_BL: Tensor, how: str) -> Tensor:
    """first, mean or max over the tokens that `mask_BL` has, (B, D)."""
    if how == "first":
        return tokens_BLD[:, 0]
    real_BL1 = mask_BL[..., None].bool()
    if how == "max":
        return tokens_BLD.masked_fill(~real_BL1, -torch.inf).amax(1)
    return (tokens_BLD * real_BL1).sum(1) / real_BL1.sum(1)


def architecture(node: Mapping[str, Any], vocab_size: int | None = None) -> dict[str, Any]:
    """The transformers configuration of an encoder as plain data.

    Args:
        node: the YAML keys; those that are left out have their defaults.
        vocab_size: of a new BERT that names none.

    Raises:
        ConfigError: sizes that do not fit each other.
        Unobtainable: `proto` cannot be had.
    """
    from transformers import AutoConfig, BertConfig

    if node.get("config"):
        return dict(node["config"])
    if node.get("proto"):
        try:
            found = AutoConfig.from_pretrained(node["proto"], trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise text_weights.unobtainable(node["proto"]) from error
        except Exception as error:  # what a config.json may hold breaks it in any way
            raise ConfigError(
                f"model.encoder.proto: the config.json of {node['proto']} cannot be read "
                f"({' '.join(str(error).split())[:200]}); name the folder of a text encoder"
            ) from error
        return text_config(found.to_diff_dict()).to_diff_dict()
    sizes = {name: node[name] for name in SIZES if node.get(name) is not None}
    sizes.setdefault("vocab_size", vocab_size or BertConfig().vocab_size)
    sizes.setdefault("intermediate_size", 4 * sizes["hidden_size"])
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ConfigError(
            f"model.encoder: hidden_size {sizes['hidden_size']} is no multiple of "
            f"num_attention_heads {sizes['num_attention_heads']}; make it one"
        )
    return {"model_type": "bert", **BertConfig(**sizes).to_diff_dict(), **sizes}


def _create(config: dict[str, Any], weights: str | None) -> tuple[nn.Module, bool]:
    """(the encoder, whether its pooling layer is fresh although weights were loaded)."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    made = text_config(config)
    if weights is not None:
        return text_weights.load(made, weights)
    return AutoModel.from_config(made, trust_remote_code=False), False
