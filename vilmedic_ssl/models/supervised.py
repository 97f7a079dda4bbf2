"""Supervised training of the same encoder: the row that pretraining is compared with."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import label_entropy
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@proto
class Supervised(PretrainingModel):
    """Encoder and one linear layer, with cross entropy; for several findings per image, binary
    cross entropy over those that are known.

    Attributes:
        cnn: the image encoder.
        classes: number of classes or findings; null = those of the training split.
        forward_batch_size: images per forward pass of one process; null = the whole batch.
    """

    views = 1
    takes = ("labels",)

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        classes: int | None = None,
        forward_batch_size: int | None = None,
    ):
        super().__init__()
        if classes is None or classes < 1:
            raise ConfigError(f"model.classes: {classes}; write how many classes there are")
        self.cnn, self.forward_batch_size = cnn, forward_batch_size
        self.head = nn.Linear(cnn.out_dim, classes)

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Embeddings (B, D), scores (B, classes), and the labels."""
        features = self.cnn.vector(images[:, 0])
        return features, self.head(features), taken["labels"]

    def score(self, *rows: Tensor) -> dict[str, Any]:
        out: dict[str, Any] = {"loss": label_entropy(rows[1], rows[2])}
        return {**out, "chance": math.log(rows[1].shape[1])} if rows[2].dim() == 1 else out

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features = self.cnn.vector(images)
        return {"encoder": features, "visual": self.head(features)}
