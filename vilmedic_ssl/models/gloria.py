"""GLoRIA: images and reports agree as wholes and, through attention, word by place (Huang et al.
2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import gloria
from vilmedic_ssl.losses.local_alignment import gloria_attention, local_similarity
from vilmedic_ssl.models.pairs import PairedModel
from vilmedic_ssl.nets.criteria import PairLoss
from vilmedic_ssl.nets.freezing import Freeze
from vilmedic_ssl.nets.text import TextEncoder
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.nets.words import cap_lens_of, words_of
from vilmedic_ssl.registry import proto


@dataclass(frozen=True, kw_only=True)
class GLoRIALoss(PairLoss):
    """Global and local contrastive losses, each in both directions.

    Attributes:
        local_loss_weight, global_loss_weight: of the local and the global cross entropies.
        temp1: sharpens the attention of a word over places.
        temp2: sharpens the sum over words.
        temp3: divides the softmax's temperature, in both losses.
        agg: the similarity of an image and a text adds up or averages what its words say.
        chunk: pairs of an image and a text that are scored at once, at most; null = as many as a
            small buffer holds. The numbers do not depend on it.
        duplicates, alike: as in PairLoss.
    """

    local_loss_weight: float = 1.0
    global_loss_weight: float = 1.0
    temp1: float = 4.0
    temp2: float = 5.0
    temp3: float = 10.0
    agg: Literal["sum", "mean"] = "sum"
    chunk: int | None = None

    def __post_init__(self) -> None:
        PairLoss.__post_init__(self)
        for name in ("temp1", "temp2", "temp3", "chunk"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"model.loss.{name}: {value}; write a number above 0")

    def terms(self) -> float:
        return 2 * (self.local_loss_weight + self.global_loss_weight)

    def keys(self) -> dict[str, Any]:
        """What `losses.gloria` takes by name."""
        names = ("local_loss_weight", "global_loss_weight", "temp1", "temp2", "temp3", "agg")
        return {name: getattr(self, name) for name in (*names, "chunk")}


@dataclass(frozen=True, kw_only=True)
class VisualEmbedder:
    """What takes image features into the space of the words.

    Attributes:
        feature_dim, interm_feature_dim: widths of the image's vector and of its local features;
            null takes them from the encoder.
        layer: the part whose map holds the local features; null = the last but one of a CNN's
            stages (layer3 of a ResNet), the last block of a transformer.
    """

    feature_dim: int | None = None
    interm_feature_dim: int | None = None
    layer: str | None = None


@proto
class GLoRIA(PairedModel):
    """Encoders, linear embeddings of the whole image and of its places, and the losses above.

    A word is the sum of its pieces, a text the mean of its tokens.

    Attributes:
        encoder: the text encoder; its width is that of the shared space.
        cnn: the image encoder, pooled at its end.
        visual_embedder: where local features come from.
        loss: weights and temperatures.
        image_size: side to which images are enlarged first, pixels (the paper's 299); null = as
            they come.
        freeze: which parts do not learn, by name.
        forward_batch_size: pairs per forward pass of one process; larger batches go through the
            gradient cache.
    """

    def __init__(
        self,
        *,
        encoder: TextEncoder,
        cnn: VisualEncoder,
        visual_embedder: VisualEmbedder = VisualEmbedder(),  # noqa: B008 (frozen)
        loss: GLoRIALoss = GLoRIALoss(),  # noqa: B008 (frozen)
        image_size: int | None = 299,
        freeze: Freeze = Freeze(),  # noqa: B008 (frozen)
        forward_batch_size: int = 12,
    ):
        super().__init__()
        self.encoder: TextEncoder = encoder.pool_by("mean")
        self.cnn: VisualEncoder = cnn
        self.layer = visual_embedder.layer or _usual_layer(cnn)
        local_dim = cnn.net.feature_info[cnn.number_of(self.layer)]["num_chs"]
        for name, found in (("feature_dim", cnn.out_dim), ("interm_feature_dim", local_dim)):
            if getattr(visual_embedder, name) not in (None, found):
                raise ConfigError(
                    f"model.visual_embedder.{name}: {getattr(visual_embedder, name)}, but the "
                    f"encoder gives {found}; write {found} or leave the key out"
                )
        self.global_embedder = nn.Linear(cnn.out_dim, encoder.out_dim)
        self.local_embedder = nn.Conv2d(local_dim, encoder.out_dim, 1, bias=False)
        self.loss, self.image_size, self.forward_batch_size = loss, image_size, forward_batch_size
        freeze.apply(self, self.parts())

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """(B, 1, C, H, W) and the reports -> image (B, D), text (B, D), places (B, D, h, w), words
        (B, D, L) and how many of them count (B,), groups (B, 3).
        """
        _, image_BD, place_BDhw = self._see(images[:, 0])
        text_BD, word_BDL, count_B = self._read(
            taken["input_ids"], taken["attention_mask"], taken["words"]
        )
        return image_BD, text_BD, place_BDhw, word_BDL, count_B, taken["groups"]

    def score(self, *rows: Tensor) -> dict[str, Any]:
        *features, groups = rows
        keys: dict[str, Any] = {**self.loss.keys(), **self.loss.matrices(groups)}
        loss = gloria(*features, **keys)  # type: ignore[misc]
        return {"loss": loss, **self.loss.reference(groups)}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features, image_BD, _ = self._see(images)
        return {"encoder": features, "visual": image_BD}

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> dict[str, Tensor]:
        text_MD, _, _ = self._read(input_ids, attention_mask, words)
        return {"text": text_MD, "linguistic": text_MD}

    def similarity(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        """The mean of the cosine of the wholes and the local similarity, temp2 times the cosine of
        the word that finds its place best; (N, M).
        """
        _, image_ND, place_NDhw = self._see(images)
        text_MD, word_MDL, count_M = self._read(input_ids, attention_mask, words)
        whole_NM = F.normalize(image_ND, dim=1) @ F.normalize(text_MD, dim=1).T
        word_MDL, count_M = word_MDL[:, :, 1:], (count_M - 1).clamp_min(1)  # without [CLS]
        local_NM = local_similarity(
            place_NDhw, word_MDL, count_M, temp1=self.loss.temp1, temp2=self.loss.temp2
        )
        return (whole_NM + local_NM) / 2

    def heat(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        """The cosine of each place with the mean of the words, (K, h, w)."""
        place_KDhw = F.normalize(self._see(images)[2], dim=1)
        _, word_KDL, count_K = self._read(input_ids, attention_mask, words)
        at_L = torch.arange(word_KDL.shape[2], device=word_KDL.device)
        counts_KL = (at_L >= 1) & (at_L < count_K[:, None])  # without [CLS]
        phrase_KD = torch.einsum("kdl,kl->kd", word_KDL, counts_KL.to(word_KDL))
        return torch.einsum("kdhw,kd->khw", place_KDhw, F.normalize(phrase_KD, dim=1))

    def word_heat(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        """The attention of each word over the places, summing to 1; (K, W, h, w)."""
        _, word_KDL, count_K = self._read(input_ids, attention_mask, words)
        return gloria_attention(self._see(images)[2], word_KDL, count_K, temp1=self.loss.temp1)

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images -> the encoder's vectors (B, D'), those in the shared space (B, D), and places
        there (B, D, h, w).
        """
        if self.image_size is not None:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=True)
        features, map_BChw = self.cnn.places(images, self.layer)
        return features, self.global_embedder(features), self.local_embedder(map_BChw)

    def _read(
        self, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Texts (B, D), words (B, D, L), and how many columns count: [CLS] and the words (B,)."""
        token_BLD, text_BD = self.encoder.tokens_and_text(input_ids, attention_mask)
        word_BDW = words_of(token_BLD, words).transpose(1, 2)
        word_BDL = F.pad(word_BDW, (0, words.shape[1] - word_BDW.shape[2]))
        return text_BD, word_BDL, cap_lens_of(words)


def _usual_layer(cnn: VisualEncoder) -> str:
    """The last but one of a CNN's stages, the last block of a transformer."""
    infos = cnn.net.feature_info
    same = infos[-1]["reduction"] == infos[-2]["reduction"]
    return str(infos[-1 if same else -2]["module"])
