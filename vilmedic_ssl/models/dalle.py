"""DALLE: a report, and then the codes of its image, as one sequence (Ramesh et al. 2021, section
2.2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.losses.discrete import token_entropy
from vilmedic_ssl.models.pairs import PairedModel
from vilmedic_ssl.models.vae import Implementation, codes_of, fitted, pictures, vae_of
from vilmedic_ssl.nets.dalle import Dalle
from vilmedic_ssl.nets.dalle_package import package_dalle
from vilmedic_ssl.nets.dalle_sampling import Sampling, draw_codes, draw_text
from vilmedic_ssl.nets.dalle_transformer import TransformerShape
from vilmedic_ssl.nets.dvae import VAEShape
from vilmedic_ssl.nets.freezing import Part
from vilmedic_ssl.registry import proto

AT_ONCE = 64  # sequences in a pass without gradient
BLOCK = re.compile(r"dalle\.transformer\.layers\.\w+\.\d+")
LONGEST = 256  # tokens of a text, where no key says how many


@dataclass(frozen=True, kw_only=True)
class FrozenVAE:
    """The VAE whose codes are learned.

    Attributes:
        ckpt: run folder (its best checkpoint) or checkpoint of a VAE, of ours, of ViLMedic or of
            dalle-pytorch. Training cannot do without; afterwards its weights are in the checkpoints
            of DALLE.
        image_size, num_layers, num_tokens: null = as the checkpoint says; a number must agree with
            it. A file that does not tell its image_size needs it here.
        codebook_dim, hidden_dim, num_resnet_blocks, channels: likewise.
        temperature, straight_through: of the VAE's training, compared where the checkpoint knows
            them; codes do not depend on them.
    """

    ckpt: str | None = None
    image_size: int | None = None
    num_layers: int | None = None
    num_tokens: int | None = None
    codebook_dim: int | None = None
    hidden_dim: int | None = None
    num_resnet_blocks: int | None = None
    channels: int | None = None
    temperature: float | None = None
    straight_through: bool | None = None

    def shape(self) -> VAEShape:
        """
        Raises:
            ConfigError: no checkpoint was read, and the keys do not say all.
        """
        names = [field.name for field in fields(VAEShape)]
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ConfigError(
                f"model.vae.ckpt: DALLE needs a trained VAE; write model.vae.ckpt=FOLDER, the run "
                f"folder of one (or model.vae.{missing[0]}, to build DALLE without)"
            )
        return VAEShape(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class DalleKeys(TransformerShape):
    """The transformer and what it reads.

    Attributes:
        dim, depth, heads, dim_head, attn_dropout, ff_dropout: as in TransformerShape.
        attn_types, rotary_emb, shift_tokens, sandwich_norm: likewise.
        reversible, checkpoint_layers, shared_attn_ids, shared_ff_ids: likewise.
        num_text_tokens: ids of the tokenizer; null = as many as it has.
        text_seq_len: tokens of a text; shorter ones are padded, each place with a token of its own.
            null = tokenizer_max_len, or without that the longest training report (256 at most).
        pad_token_id: what the tokenizer pads with; training writes it.
        unique_pads: false = all places are padded with the tokenizer's own token, as ViLMedic does
            by accident; a tokenizer that pads with 0 has unique ones all the same.
        loss_img_weight: of the codes' cross entropy, against 1 of the text's.
        text_dropout: share of training texts that are left blank, so that cond_scale works when
            images are drawn (Ho and Salimans 2022).
        stable: scale the gradient of the embeddings by 0.1 and divide the last activations by their
            largest (Ding et al. 2021).
        share_input_output_emb: tokens have one vector for both ends.
    """

    num_text_tokens: int | None = None
    text_seq_len: int | None = None
    pad_token_id: int | None = None
    unique_pads: bool = True
    loss_img_weight: float = 7.0
    text_dropout: float = 0.0
    stable: bool = False
    share_input_output_emb: bool = False

    def __post_init__(self) -> None:
        TransformerShape.__post_init__(self)
        if not 0 <= self.text_dropout < 1:
            raise ConfigError(
                f"model.dalle.text_dropout: {self.text_dropout}; write a share from 0 to below 1"
            )
        if not self.loss_img_weight > 0:
            raise ConfigError(
                f"model.dalle.loss_img_weight: {self.loss_img_weight}; write a number above 0"
            )
        for name in ("num_text_tokens", "text_seq_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"model.dalle.{name}: {value}; write 1 or more, or null")


@proto
class DALLE(PairedModel):
    """A causal transformer over the tokens of a report and the codes of its image; the loss is the
    weighted mean of both cross entropies.

    `chance` is the loss of a model for which all tokens are equally likely.

    Attributes:
        vae: where codes come from; it does not learn.
        dalle: the transformer.
        implementation: native, or dalle_pytorch, whose modules then hold the weights.
        forward_batch_size: pairs per forward pass of one process; null = the whole batch.
    """

    coupled = False
    takes: tuple[str, ...] = ("input_ids", "attention_mask", "seeds")
    judged = "dalle."
    spreads = False
    pixels = True
    core = "dalle."

    def __init__(
        self,
        *,
        vae: FrozenVAE = FrozenVAE(),  # noqa: B008 (frozen)
        dalle: DalleKeys = DalleKeys(),  # noqa: B008 (frozen)
        implementation: Implementation = "native",
        forward_batch_size: int | None = 256,
    ):
        super().__init__()
        if dalle.num_text_tokens is None or dalle.text_seq_len is None:
            raise ConfigError(
                "model.dalle.num_text_tokens, text_seq_len: only training from a config finds "
                "them; write both"
            )
        make = Dalle if implementation == "native" else package_dalle
        self.dalle: Any = make(
            vae_of(vae.shape(), implementation),
            dalle,
            dalle.num_text_tokens,
            dalle.text_seq_len,
            stable=dalle.stable,
            share_input_output_emb=dalle.share_input_output_emb,
        )
        self.keys, self.forward_batch_size = dalle, forward_batch_size

    @classmethod
    def settle_text(
        cls, node: dict[str, Any], tokenizer: Any, said: Sequence[str], most: int | None
    ) -> int | None:
        """
        Raises:
            ConfigError: fewer ids than the tokenizer has, or another length of texts.
        """
        keys, found = node["dalle"], len(tokenizer)
        if keys["num_text_tokens"] is not None and keys["num_text_tokens"] < found:
            raise ConfigError(
                f"model.dalle.num_text_tokens: {keys['num_text_tokens']}, but the tokenizer has "
                f"{found} entries; leave the key out, or write dataset vocab_size for a smaller one"
            )
        if most is not None and keys["text_seq_len"] not in (None, most):
            raise ConfigError(
                f"model.dalle.text_seq_len: {keys['text_seq_len']}, but tokenizer_max_len is "
                f"{most}; write the same number, or leave text_seq_len out"
            )
        keys["num_text_tokens"] = keys["num_text_tokens"] or found
        if keys["text_seq_len"] is None:
            longest = max(map(len, tokenizer(list(said)).input_ids))
            keys["text_seq_len"] = most or min(LONGEST, longest)
        keys["pad_token_id"] = tokenizer.pad_token_id
        return int(keys["text_seq_len"])

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Mean of the last activations at the codes (B, D), without gradient; cross entropy of text
        and of codes, (B,) each.
        """
        text_BT = self.ids(taken["input_ids"], taken["attention_mask"])
        if self.training and self.keys.text_dropout:
            text_BT = text_BT.masked_fill(self._blank(taken["seeds"])[:, None], 0)
        text_BT, codes_BN = self.dalle.padded(text_BT), self.codes(images[:, 0])
        words, codes, hidden_BnD = self.dalle(text_BT, codes_BN)
        seen_BD = hidden_BnD[:, text_BT.shape[1] :].mean(1).detach()
        return seen_BD, token_entropy(words, text_BT), token_entropy(codes, codes_BN)

    def score(self, *rows: Tensor) -> dict[str, Any]:
        _, text_B, image_B = rows
        weight = self.keys.loss_img_weight
        text, image = dist.global_mean(text_B), dist.global_mean(image_B)
        known = math.log(self.dalle.text_ids), math.log(self.dalle.image_ids)
        return {
            "loss": (text + weight * image) / (weight + 1),
            "chance": (known[0] + weight * known[1]) / (weight + 1),
            "text_loss": float(text.detach()),
            "image_loss": float(image.detach()),
        }

    def ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens as `Dalle` takes them, (B, T): 0 for padding, and nothing else is 0."""
        real, pad = attention_mask.bool(), self.keys.pad_token_id or 0
        if self.keys.unique_pads:
            ids = input_ids.masked_fill(input_ids == 0, pad).masked_fill(~real, 0)
        else:
            ids = input_ids.masked_fill(~real, pad)
        rest = max(0, self.dalle.text_seq_len - ids.shape[1])
        return F.pad(ids, (0, rest), value=0 if self.keys.unique_pads else pad)

    def _blank(self, seeds_B: Tensor) -> Tensor:
        """Which texts are left out, (B,) bool, by their seeds alone."""
        generator = torch.Generator()
        dice = [float(torch.rand((), generator=generator.manual_seed(s))) for s in seeds_B.tolist()]
        return torch.tensor(dice, device=seeds_B.device) < self.keys.text_dropout

    def parts(self) -> list[Part]:
        found: dict[str, list[str]] = {"vae": [], "embeddings": []}
        for name, _ in self.named_parameters():
            block, begin = BLOCK.match(name), name.split(".")[1]
            if block or begin != "to_logits":
                part = block[0] if block else "vae" if begin == "vae" else "embeddings"
                found.setdefault(part, []).append(name)
        return [Part(name, parameters) for name, parameters in found.items()]

    @property
    def codebook(self) -> int:
        """How many codes there are."""
        return int(self.dalle.vae.shape.num_tokens)

    def refuse_images(self, images: Tensor) -> None:
        fitted(images, self.dalle.vae.shape)

    def no_decay(self) -> set[str]:
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if name.endswith(".scale") or "_pos_emb." in name}

    # -- what an image and a text come to ----------------------------------------------------------

    def codes(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, N) int64."""
        return codes_of(self.dalle.vae, images)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """The mean of the last activations at the codes, behind no text (as iGPT, Chen et al.
        2020).
        """
        codes_BN = self.codes(images)
        blank_BT = codes_BN.new_zeros(len(images), self.dalle.text_seq_len)
        hidden_BnD = self.dalle(self.dalle.padded(blank_BT), codes_BN)[2]
        seen_BD = hidden_BnD[:, self.dalle.text_seq_len :].mean(1)
        return {"encoder": seen_BD, "visual": seen_BD}

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> dict[str, Tensor]:
        """The mean of the last activations at the tokens."""
        hidden_BnD = self.dalle(self.dalle.padded(self.ids(input_ids, attention_mask)))[2]
        real_Bn1 = attention_mask[..., None].to(hidden_BnD.dtype)
        token_BnD = hidden_BnD[:, 1 : input_ids.shape[1] + 1]  # behind <bos>
        read_BD = (token_BnD * real_Bn1).sum(1) / real_Bn1.sum(1)
        return {"text": read_BD, "linguistic": read_BD}

    @torch.no_grad()
    def likelihood(self, text_BT: Tensor, codes_BN: Tensor) -> tuple[Tensor, Tensor]:
        """log p(text) and log p(codes | text), (B,) each, nats; texts as of `ids`."""
        text_BT = self.dalle.padded(text_BT)
        words, codes, _ = self.dalle(text_BT, codes_BN)
        text_B, image_B = token_entropy(words, text_BT), token_entropy(codes, codes_BN)
        return -text_B * text_BT.shape[1], -image_B * codes_BN.shape[1]

    def similarity(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        """log p(image | text) per code, nats, (N, M); where texts were left out in training, less
        what it is without one.
        """
        codes_NK, text_MT = self.codes(images), self.ids(input_ids, attention_mask)
        found_NM = self.of_images(codes_NK, text_MT)[1] / codes_NK.shape[1]
        if self.keys.text_dropout:
            blank_1T = torch.zeros_like(text_MT[:1])
            found_NM = found_NM - self.of_images(codes_NK, blank_1T)[1] / codes_NK.shape[1]
        return found_NM

    def heat(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        """
        Raises:
            UserError: there is no such map.
        """
        raise UserError(
            "DALLE does not tell where in an image a text is seen; take grounding and word_heatmap "
            "out of ensemblor.post_processing"
        )

    word_heat = heat

    def of_images(self, codes_NK: Tensor, text_MT: Tensor) -> tuple[Tensor, Tensor]:
        """`likelihood` of every image with every text: log p(text) and log p(image | text), both
        (N, M); their sum, compared between texts, is how likely each is given the image (Bayes).
        """
        n, m = len(codes_NK), len(text_MT)
        image, text = torch.meshgrid(torch.arange(n), torch.arange(m), indexing="ij")
        pairs = zip(image.flatten().split(AT_ONCE), text.flatten().split(AT_ONCE), strict=True)
        found = [self.likelihood(text_MT[t], codes_NK[i]) for i, t in pairs]
        both = [torch.cat(parts).view(n, m) for parts in zip(*found, strict=True)]
        return both[0], both[1]

    # -- what it draws -----------------------------------------------------------------------------

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        how: Sampling = Sampling(),  # noqa: B008 (frozen)
        *,
        first: Tensor | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> tuple[Tensor, Tensor]:
        """An image for each text: (B, C, H, W) in [0, 1], and its codes (B, N) int64.

        Args:
            first: codes (B, n) that it begins with.  tick: called after each code.
        """
        text_BT = self.ids(input_ids, attention_mask)
        codes_BN = draw_codes(self.dalle, text_BT, how, first_Bn=first, tick=tick)
        return pictures(self.dalle.vae, codes_BN), codes_BN

    def complete(
        self,
        begin: Tensor,
        how: Sampling = Sampling(),  # noqa: B008 (frozen)
        *,
        end: int | None = None,
        never: int | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Texts that begin with the tokens (B, n), up to T of them: (B, T), padded with the
        tokenizer's token.

        Args:
            end: the token that ends a text.  never: one that is not drawn.  tick: called after each
                token.
        """
        pad = self.keys.pad_token_id or 0
        begin = begin.masked_fill(begin == 0, pad)
        text_BT = draw_text(self.dalle, begin, how, end=end, never=never, tick=tick)
        return text_BT.masked_fill(text_BT == 0, pad).masked_fill(text_BT == pad, 0)
