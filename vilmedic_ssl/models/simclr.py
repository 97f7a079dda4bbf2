"""SimCLR: two views of an image agree, everything else in the batch repels (Chen et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.losses import nt_xent
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.heads import Projection
from vilmedic_ssl.nets.vision import VisualEncoder, pooled
from vilmedic_ssl.registry import proto


@dataclass(frozen=True, kw_only=True)
class NTXent:
    """The normalised, temperature-scaled cross entropy of SimCLR.

    Attributes:
        tau: temperature, > 0.
    """

    tau: float = 0.5

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ConfigError(f"model.loss.tau: {self.tau}; write a number above 0")


@proto
class SimCLR(PretrainingModel):
    """Encoder, two-layer projection and NT-Xent.

    Attributes:
        cnn: the image encoder.
        projection: the head whose output the loss compares.
        loss: temperature of NT-Xent.
        forward_batch_size: images per forward pass of one process; larger batches go through the
            gradient cache.
    """

    coupled = True

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        projection: Projection = Projection(),  # noqa: B008 (frozen)
        loss: NTXent = NTXent(),  # noqa: B008 (frozen)
        forward_batch_size: int = 256,
    ):
        super().__init__()
        if forward_batch_size < 1:
            raise ConfigError(f"model.forward_batch_size: {forward_batch_size}; write 1 or more")
        self.cnn, self.tau, self.forward_batch_size = cnn, loss.tau, forward_batch_size
        self.projection = projection.head(cnn.out_dim)

    def rows(self, images: Tensor) -> tuple[Tensor, ...]:
        """Both views in one pass, so that batch norm sees them together: (B, 2, C, H, W) -> two
        (B, P).
        """
        if images.shape[1] != 2:
            raise UserError(
                f"SimCLR compares two views of an image, found {images.shape[1]}; write views: 2 "
                "where the transform stands: dataset.views=2, dataset.image.views=2 for pairs, or "
                "dataset.transform.views=2 for a dataset with such a block"
            )
        stacked = images.transpose(0, 1).flatten(0, 1)  # all first views, then all second views
        return tuple(self.projection(pooled(self.cnn(stacked))).chunk(images.shape[1]))

    def score(self, *rows: Tensor) -> dict[str, Any]:
        n = sum(dist.counts_of(len(rows[0]), rows[0].device))
        return {"loss": nt_xent(rows[0], rows[1], tau=self.tau), "chance": math.log(2 * n - 1)}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features = pooled(self.cnn(images))
        return {"encoder": features, "visual": self.projection(features)}
