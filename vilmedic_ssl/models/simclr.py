"""SimCLR: two views of an image agree, everything else in the batch repels (Chen et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import nt_xent
from vilmedic_ssl.models.base import PretrainingModel, passes
from vilmedic_ssl.nets.heads import Projection, up_to
from vilmedic_ssl.nets.vision import VisualEncoder
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
    """Encoder, projection and NT-Xent; with three projection layers, batch norm in them and
    `selector: 1` the SimCLRv2 of Chen et al. 2020b.

    Attributes:
        cnn: the image encoder.
        projection: the head whose output the loss compares.
        loss: temperature of NT-Xent.
        selector: what is judged and shipped as the encoder: 0 = the image encoder's vector, 1 =
            after the first projection layer and so on, -1 = the projection's output.
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
        selector: int = 0,
        forward_batch_size: int = 256,
    ):
        super().__init__()
        self.cnn, self.tau, self.forward_batch_size = cnn, loss.tau, forward_batch_size
        self.projection = projection.head(cnn.out_dim)
        self.selector = selector
        up_to(self.projection, selector)  # refuses a layer that is not there

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Both views in one pass, so that batch norm sees them together: (B, 2, C, H, W) -> two
        (B, P).
        """
        return passes(
            lambda x: self.projection(self.cnn.vector(x)), images.unbind(1), together=True
        )

    def score(self, *rows: Tensor) -> dict[str, Any]:
        n = sum(dist.counts_of(len(rows[0]), rows[0].device))
        return {"loss": nt_xent(rows[0], rows[1], tau=self.tau), "chance": math.log(2 * n - 1)}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features = self.cnn.vector(images)
        chosen = up_to(self.projection, self.selector)(features)
        return {"encoder": chosen, "visual": self.projection(features)}
