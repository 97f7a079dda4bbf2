"""BYOL: an online network predicts what a slowly following target makes of the other view (Grill
et al. 2020).
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from vilmedic_ssl.losses import byol
from vilmedic_ssl.models.base import passes
from vilmedic_ssl.models.siamese import WithTarget
from vilmedic_ssl.nets.heads import Predictor, Projector
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@proto
class BYOL(WithTarget):
    """Online encoder, projector and predictor; a target encoder and projector that follow.

    The target is a moving average of the weights. Its batch norms normalise with the batch's own
    statistics, as the online network's do, and keep running statistics of their own.

    Attributes:
        cnn: the image encoder; `output_layer` chooses where it is cut.
        projector: from the encoder's vector to the space of the loss; 4096-256 in the paper.
        predictor: from there to the target's projection; 4096-256 in the paper.
        tau: decay of the target at the start; 0.996 for 1000 epochs, 0.99 for 100 to 300, 0.97
            for 40 (authors' code).
        tau_schedule: cosine moves tau to 1 at the last step, constant keeps it.
        together: both views in one pass, so that batch norm sees them together; the paper has a
            pass per view.
        forward_batch_size: images per forward pass of one process; null = the whole batch.
    """

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        projector: Projector = Projector(widths=(4096, 256), bias=True),  # noqa: B008 (frozen)
        predictor: Predictor = Predictor(widths=(4096, 256), bias=True),  # noqa: B008 (frozen)
        tau: float = 0.996,
        tau_schedule: Literal["cosine", "constant"] = "cosine",
        together: bool = False,
        forward_batch_size: int | None = None,
    ):
        rising = tau_schedule == "cosine"
        super().__init__(cnn, projector, predictor, forward_batch_size, tau=tau, rising=rising)
        self.together = together

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Predictions of both views, then the target's projections of both."""
        views = images.unbind(1)
        targets = passes(self.target, views, together=self.together)
        return *passes(self.predict, views, together=self.together), *targets

    def score(self, *rows: Tensor) -> dict[str, Any]:
        prediction1, prediction2, target1, target2 = rows
        return {"loss": byol(prediction1, target2) + byol(prediction2, target1)}
