"""MoCo v3: queries find the momentum encoder's key of their other view among the keys of the batch
(Chen, Xie and He 2021).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from vilmedic_ssl import dist
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import moco_v3
from vilmedic_ssl.models.base import passes
from vilmedic_ssl.models.siamese import WithTarget
from vilmedic_ssl.nets.heads import Predictor, Projector
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@proto
class MoCoV3(WithTarget):
    """Encoder, projector and predictor make queries; a momentum encoder and projector make keys.

    The momentum encoder's batch norms normalise with the batch's own statistics, as the encoder's
    do, and keep running statistics of their own.

    Attributes:
        cnn: the image encoder, a ResNet or a vision transformer.
        projector: 4096-4096-256 for transformers, 4096-256 for ResNets in the paper.
        predictor: 4096-256 in the paper.
        temperature: of the softmax over keys; 0.2 for transformers, 1 for ResNets in the paper.
        tau: decay of the momentum encoder at the start; it reaches 1 at the last step along a
            cosine.
        freeze_patches: keep the random patch projection of a vision transformer, for stability
            (section 4).
        forward_batch_size: images per forward pass of one process; larger batches go through the
            gradient cache.
    """

    coupled = True

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        projector: Projector = Projector(widths=(4096, 4096, 256), last_norm="plain"),  # noqa: B008 (frozen)
        predictor: Predictor = Predictor(widths=(4096, 256), last_norm="plain"),  # noqa: B008 (frozen)
        temperature: float = 0.2,
        tau: float = 0.99,
        freeze_patches: bool = False,
        forward_batch_size: int | None = None,
    ):
        if not temperature > 0:
            raise ConfigError(f"model.temperature: {temperature}; write a number above 0")
        if freeze_patches and not hasattr(cnn.net, "patch_embed"):
            raise ConfigError("model.freeze_patches: this encoder has no patches; write false")
        if freeze_patches:
            cnn.net.patch_embed.requires_grad_(False)
        super().__init__(cnn, projector, predictor, forward_batch_size, tau=tau, rising=True)
        self.temperature = temperature

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Queries of both views, then keys of both."""
        views = images.unbind(1)
        keys = passes(self.target, views, together=False)
        return *passes(self.predict, views, together=False), *keys

    def score(self, *rows: Tensor) -> dict[str, Any]:
        query1, query2, key1, key2 = rows
        n = sum(dist.counts_of(len(query1), query1.device))
        loss = moco_v3(query1, key2, tau=self.temperature)
        loss = loss + moco_v3(query2, key1, tau=self.temperature)
        return {"loss": loss, "chance": 4 * self.temperature * math.log(n)}
