"""DALL-E without its loss (Ramesh et al. 2021): one transformer that reads a text and goes on with
the codes of an image. Parameters are named as in dalle-pytorch.

B = pairs, T = text tokens, N = f * f codes of an image, D = width, V = text ids (T of them stand
for padding, one per place), K = tokens of the codebook, n = positions at hand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.nets.dalle_transformer import Cache, Transformer, TransformerShape


class SharedEmbedding(nn.Module):
    """Vectors that are rows of the output layer."""

    def __init__(self, linear: nn.Linear, begin: int, end: int):
        super().__init__()
        self.linear, self.rows = linear, slice(begin, end)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.linear.weight[self.rows])


class AxialPositions(nn.Module):
    """A vector for the row of a code plus one for its column."""

    def __init__(self, dim: int, side: int):
        super().__init__()
        axes = (1, side, 1, dim), (1, 1, side, dim)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(axis)) for axis in axes)

    def forward(self) -> Tensor:
        """(N, D)."""
        return (self.weights[0] + self.weights[1])[0].flatten(0, 1)


class Dalle(nn.Module):
    """
    Args:
        vae: the discrete VAE, whose weights stay as they are.
        shape: of the transformer.
        num_text_tokens: entries of the tokenizer.  text_seq_len: T.
        stable: scale the gradient of the embeddings by 0.1 and divide the last activations by their
            largest (Ding et al. 2021).
        share_input_output_emb: tokens have one vector for both.

    Attributes:
        text_ids, image_ids: V = num_text_tokens + T, and K.
        first_pad: id of padding in the first place, num_text_tokens.
    """

    def __init__(
        self,
        vae: nn.Module,
        shape: TransformerShape,
        num_text_tokens: int,
        text_seq_len: int,
        *,
        stable: bool = False,
        share_input_output_emb: bool = False,
    ):
        super().__init__()
        codes: Any = vae.shape
        dim, side, tokens = shape.dim, int(codes.side), int(codes.num_tokens)
        self.text_seq_len, self.image_seq_len = text_seq_len, side * side
        self.text_ids, self.image_ids = num_text_tokens + text_seq_len, tokens
        self.first_pad, self.stable = num_text_tokens, stable
        # Layers are made in the order of dalle-pytorch, so that a seed gives the same weights.
        if not shape.rotary_emb:
            self.text_pos_emb = nn.Embedding(text_seq_len + 1, dim)
            self.image_pos_emb = AxialPositions(dim, side)
        self.vae = vae.requires_grad_(False)
        self.transformer = Transformer(shape, text_seq_len + 1, side)
        linear = nn.Linear(dim, self.text_ids + tokens)
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), linear)
        self.text_emb: nn.Module
        self.image_emb: nn.Module
        if share_input_output_emb:
            self.text_emb = SharedEmbedding(linear, 0, self.text_ids)
            self.image_emb = SharedEmbedding(linear, self.text_ids, self.text_ids + tokens)
        else:
            self.text_emb = nn.Embedding(self.text_ids, dim)
            self.image_emb = nn.Embedding(tokens, dim)

    def padded(self, text_Bn: Tensor) -> Tensor:
        """Text tokens (B, n <= T) with a 0 for padding -> (B, n) with the id of its place instead.

        Raises:
            UserError: an id that there is no vector for, or a longer text.
        """
        return padded(text_Bn, self.first_pad, self.text_seq_len)

    def embedded(self, text_Bn: Tensor, codes_Bn: Tensor | None = None) -> Tensor:
        """<bos>, a text of `padded` and the first codes of an image as vectors, (B, n, D)."""
        x = self.text_emb(F.pad(text_Bn, (1, 0)))
        if hasattr(self, "text_pos_emb"):
            x = x + self.text_pos_emb.weight[: x.shape[1]]
        if codes_Bn is not None and codes_Bn.shape[1]:
            x = torch.cat([x, self.embedded_codes(codes_Bn, 0)], 1)
        return x

    def embedded_codes(self, codes_Bn: Tensor, at: int) -> Tensor:
        """Codes from the one of number `at` on as vectors, (B, n, D)."""
        x = self.image_emb(codes_Bn)
        if hasattr(self, "image_pos_emb"):
            x = x + self.image_pos_emb()[at : at + codes_Bn.shape[1]]
        return x

    def hidden(self, text_BT: Tensor, codes_Bn: Tensor | None = None) -> Tensor:
        """What predicts each text token and each code up to the one behind those given, (B, T + n +
        1, D), N codes at most; texts as of `padded`.
        """
        x = self.embedded(text_BT, codes_Bn)[:, : self.text_seq_len + self.image_seq_len]
        if self.stable:
            x = x * 0.1 + x.detach() * 0.9
        return self._normed(self.transformer(x))

    def grown(self, x_BnD: Tensor, cache: Cache) -> Tensor:
        """The same for the embedded positions behind those of a cache."""
        return self._normed(self.transformer.grow(x_BnD, cache))

    def _normed(self, x: Tensor) -> Tensor:
        if self.stable:
            x = x / x.amax(-1, keepdim=True).detach()
        return self.to_logits[0](x)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        linear: Any = self.to_logits[1]
        return F.linear(hidden, linear.weight[: self.text_ids], linear.bias[: self.text_ids])

    def image_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        linear: Any = self.to_logits[1]
        return F.linear(hidden, linear.weight[self.text_ids :], linear.bias[self.text_ids :])

    def forward(
        self, text_BT: Tensor, codes_Bn: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of each text token (B, T, V), and of each code up to the one behind those given
        (B, n + 1, K), N at most, each from what stands before it; and `hidden`, what they are made
        of. Texts as of `padded`.
        """
        hidden = self.hidden(text_BT, codes_Bn)
        words, codes = hidden.tensor_split([self.text_seq_len], 1)
        return self.text_logits(words), self.image_logits(codes), hidden

    def cache(self, batch: int) -> Cache | None:
        """An empty one for so many sequences."""
        return Cache(self.transformer, batch)


def padded(text_Bn: Tensor, first_pad: int, length: int) -> Tensor:
    """Text tokens (B, n <= length) with a 0 for padding -> with the id of its place instead.

    Raises:
        UserError: an id that there is no vector for, or a longer text.
    """
    n = text_Bn.shape[1]
    if n > length:
        raise UserError(
            f"DALLE: a text of {n} tokens, and it reads {length}; cut it, or train with a larger "
            "tokenizer_max_len"
        )
    low, high = (int(x) for x in text_Bn.aminmax()) if text_Bn.numel() else (0, 0)
    if low < 0 or high >= first_pad:
        raise UserError(
            f"DALLE: a text has the token id {low if low < 0 else high}, and there are vectors for "
            f"0 to {first_pad - 1}; take the tokenizer it was trained with, or train with "
            "model.dalle.num_text_tokens=null, for as many as the tokenizer has"
        )
    place_n = torch.arange(n, device=text_Bn.device) + first_pad
    return torch.where(text_Bn == 0, place_n, text_Bn)
