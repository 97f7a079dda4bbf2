"""What the methods share that learn from images with reports: two towers, and what can be asked of
them afterwards.

B, K = pairs, N = images, M = texts, L = tokens, W = words, P = width of the shared space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.models.base import PretrainingModel, as_views
from vilmedic_ssl.nets.criteria import PairLoss
from vilmedic_ssl.nets.freezing import Freeze, keep_still
from vilmedic_ssl.nets.heads import Projection
from vilmedic_ssl.nets.text import TextEncoder
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.nets.words import words_of


@dataclass(frozen=True, kw_only=True)
class PairProjection(Projection):
    """The heads of both towers, alike but for their weights.

    Attributes:
        visual_embedding_dim, textual_embedding_dim: widths of the encoders' vectors; null takes
            them from the encoders.
        projection_dim, layers, hidden_dim, batch_norm: as in Projection; ConVIRT has two layers of
            projection_dim, one layer is CLIP's.
    """

    KEY: ClassVar[str] = "model.projection"

    textual_embedding_dim: int | None = None

    def text_head(self, width: int) -> nn.Sequential:
        """The module of the text tower, (B, width) -> (B, projection_dim).

        Raises:
            ConfigError: `textual_embedding_dim` contradicts the encoder.
        """
        if self.textual_embedding_dim not in (None, width):
            raise ConfigError(
                f"{self.KEY}.textual_embedding_dim: {self.textual_embedding_dim}, but the encoder "
                f"gives {width}; write {width} or leave the key out"
            )
        return replace(self, visual_embedding_dim=None).head(width)


class PairedModel(PretrainingModel):
    """An image tower and a text tower."""

    coupled = True
    views = 1
    takes: tuple[str, ...] = ("input_ids", "attention_mask", "words", "groups")

    def train(self, mode: bool = True) -> PairedModel:
        """Frozen parts stay in eval mode."""
        super().train(mode)
        keep_still(self)
        return self

    def similarity(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        """How well each image fits each text, (N, M): the cosine of their vectors."""
        image_NP = F.normalize(self.encode(images)["visual"], dim=1)
        text_MP = self.encode_text(input_ids, attention_mask, words)["linguistic"]
        return image_NP @ F.normalize(text_MP, dim=1).T

    def heat(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        """Where in image k text k is seen, (K, h, w): the cosine of each place with the text."""
        raise TypeError(f"{type(self).__name__} defines no heat()")

    def word_heat(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        """The same for every word of text k, (K, W, h, w)."""
        raise TypeError(f"{type(self).__name__} defines no word_heat()")

    @torch.no_grad()
    def zero_shot_classification(
        self,
        images: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        words: Tensor,
        *,
        reduce: Literal["max", "mean"] = "max",
        **batch: Any,
    ) -> Tensor:
        """How well each image fits the class that all the prompts describe, (N,): the largest
        `similarity`, or their mean.
        """
        found_NM = self.similarity(images, input_ids, attention_mask, words)
        return found_NM.amax(1) if reduce == "max" else found_NM.mean(1)

    def forward(
        self, images: Tensor | None = None, *, rows_only: bool = False, **batch: Any
    ) -> Any:
        """Training views with reports give the loss; plain images, texts or both their embeddings.

        Raises:
            UserError: another number of views, or an entry of the batch that is missing.
        """
        if images is not None and as_views(images) is not None:
            return super().forward(images, rows_only=rows_only, **batch)
        found = {} if images is None else self.encode(images)
        if "input_ids" in batch:
            found |= self.encode_text(batch["input_ids"], batch["attention_mask"], batch["words"])
        return found


class DualEncoder(PairedModel):
    """Two towers that meet in one vector per image and one per text: ConVIRT, CLIP, SigLIP.

    Raises:
        ConfigError: a projection that does not fit its encoder.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        cnn: VisualEncoder,
        projection: PairProjection,
        loss: PairLoss,
        freeze: Freeze,
        forward_batch_size: int | None,
    ):
        super().__init__()
        self.encoder: TextEncoder = encoder.pool_by("pooler")
        self.cnn: VisualEncoder = cnn
        self.projection = projection.head(cnn.out_dim)
        self.text_projection = projection.text_head(encoder.out_dim)
        self.loss, self.forward_batch_size = loss, forward_batch_size
        starts = loss.parameters()
        self.learned = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(value)) for name, value in starts.items()}
        )
        freeze.apply(self, self.parts())

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """(B, 1, C, H, W) and the reports -> visual (B, P), linguistic (B, P), groups (B, 3)."""
        text_BD = self.encoder.tokens_and_text(taken["input_ids"], taken["attention_mask"])[1]
        visual_BP = self.projection(self.cnn.vector(images[:, 0]))
        return visual_BP, self.text_projection(text_BD), taken["groups"]

    def score(self, *rows: Tensor) -> dict[str, Any]:
        visual, linguistic, groups = rows
        loss = self.loss(linguistic, visual, groups, **self.learned)
        return {"loss": loss, **self.loss.reference(groups)}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features = self.cnn.vector(images)
        return {"encoder": features, "visual": self.projection(features)}

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> dict[str, Tensor]:
        text_MD = self.encoder.tokens_and_text(input_ids, attention_mask)[1]
        return {"text": text_MD, "linguistic": self.text_projection(text_MD)}

    def heat(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        text_KP = self.encode_text(input_ids, attention_mask, words)["linguistic"]
        return torch.einsum("kphw,kp->khw", self._places(images), F.normalize(text_KP, dim=1))

    def word_heat(
        self, images: Tensor, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> Tensor:
        word_KWD = words_of(self.encoder(input_ids, attention_mask), words)
        word_KWP = F.normalize(self.text_projection(word_KWD.flatten(0, 1)), dim=1)
        word_KWP = word_KWP.unflatten(0, word_KWD.shape[:2])
        return torch.einsum("kphw,kqp->kqhw", self._places(images), word_KWP)

    def _places(self, images: Tensor) -> Tensor:
        """Each place of the last map in the shared space, unit length, (K, P, h, w)."""
        map_KDhw = self.cnn.places(images)[1]
        place_P = self.projection(map_KDhw.permute(0, 2, 3, 1).flatten(0, 2))
        place_KhwP = place_P.unflatten(0, (len(images), *map_KDhw.shape[2:]))
        return F.normalize(place_KhwP, dim=3).permute(0, 3, 1, 2)
