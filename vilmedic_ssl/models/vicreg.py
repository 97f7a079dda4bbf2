"""VICReg: views agree (invariance), dimensions stay alive (variance) and say different things
(covariance) (Bardes et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import vicreg
from vilmedic_ssl.models.base import passes
from vilmedic_ssl.models.siamese import Siamese
from vilmedic_ssl.nets.heads import Projector
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@dataclass(frozen=True, kw_only=True)
class VICRegWeights:
    """Weights of the three parts; 25, 25 and 1 in the paper.

    Attributes:
        sim_loss_weight: of the squared distance between the views.
        var_loss_weight: of the hinge that keeps each dimension's standard deviation at 1.
        cov_loss_weight: of the squared covariances between dimensions.
    """

    sim_loss_weight: float = 25.0
    var_loss_weight: float = 25.0
    cov_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or not any(vars(self).values()):
            raise ConfigError(
                f"model.loss: {vars(self)}; write weights of 0 or more, at least one above 0"
            )


@proto
class VICReg(Siamese):
    """Encoder, expander and the three-part loss, with the statistics of the global batch.

    Attributes:
        cnn: the image encoder.
        projector: the expander whose output the loss compares; 8192-8192-8192 in the paper.
        loss: weights of its parts.
        forward_batch_size: images per forward pass of one process; larger batches go through the
            gradient cache.
    """

    coupled = True

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        projector: Projector = Projector(bias=True),  # noqa: B008 (frozen)
        loss: VICRegWeights = VICRegWeights(),  # noqa: B008 (frozen)
        forward_batch_size: int | None = None,
    ):
        super().__init__(cnn, projector, forward_batch_size)
        self.weights = vars(loss).copy()

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        return passes(self.project, images.unbind(1), together=False)

    def score(self, *rows: Tensor) -> dict[str, Any]:
        return {"loss": vicreg(*rows, **self.weights)}
