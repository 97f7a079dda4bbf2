"""Barlow Twins: the two views' features correlate one to one and with nothing else (Zbontar et al.
2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import barlow_twins
from vilmedic_ssl.models.base import passes
from vilmedic_ssl.models.siamese import Siamese
from vilmedic_ssl.nets.heads import Projector
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@dataclass(frozen=True, kw_only=True)
class RedundancyReduction:
    """Weights of the loss.

    Attributes:
        lambda_: weight of the off-diagonal part; 0.0051 in the paper.
        scale: factor on the whole; 0.024 in the authors' first release, 1 since.
    """

    lambda_: float = 0.0051
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.lambda_ > 0 and self.scale > 0):
            raise ConfigError(
                f"model.loss: lambda_ {self.lambda_} and scale {self.scale}; write numbers above 0"
            )


@proto
class BarlowTwins(Siamese):
    """Encoder, projector and the redundancy-reduction loss, standardised over the global batch.

    Attributes:
        cnn: the image encoder.
        projector: the head whose output the loss compares; 8192-8192-8192 in the paper.
        loss: its weights.
        forward_batch_size: images per forward pass of one process; larger batches go through the
            gradient cache.
    """

    coupled = True

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        projector: Projector = Projector(),  # noqa: B008 (frozen)
        loss: RedundancyReduction = RedundancyReduction(),  # noqa: B008 (frozen)
        forward_batch_size: int | None = None,
    ):
        super().__init__(cnn, projector, forward_batch_size)
        self.loss = loss

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        return passes(self.project, images.unbind(1), together=False)

    def score(self, *rows: Tensor) -> dict[str, Any]:
        return {"loss": barlow_twins(*rows, lambda_=self.loss.lambda_, scale=self.loss.scale)}
