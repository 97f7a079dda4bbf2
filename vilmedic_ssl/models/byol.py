"""BYOL: an online network predicts what a slowly following target makes of the other view (Grill
et al. 2020).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import byol
from vilmedic_ssl.models.base import PretrainingModel, passes
from vilmedic_ssl.nets.ema import cosine_tau, follow, target_of
from vilmedic_ssl.nets.heads import Predictor, Projector
from vilmedic_ssl.nets.vision import VisualEncoder, pooled
from vilmedic_ssl.registry import proto


@proto
class BYOL(PretrainingModel):
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
        super().__init__()
        refuse_tau(tau)
        refuse_predictor(projector, predictor)
        self.cnn, self.projector = cnn, projector.head(cnn.out_dim)
        self.predictor = predictor.head(projector.out_dim)
        self.target_cnn, self.target_projector = target_of(self.cnn), target_of(self.projector)
        self.tau, self.start, self.tau_schedule = tau, tau, tau_schedule
        self.together, self.forward_batch_size = together, forward_batch_size

    def at_step(self, step: int, total: int) -> None:
        if self.tau_schedule == "cosine":
            self.tau = cosine_tau(self.start, step, total)

    def after_step(self) -> None:
        follow(self.target_cnn, self.cnn, self.tau)
        follow(self.target_projector, self.projector, self.tau)

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Predictions of both views, then the target's projections of both."""
        views = images.unbind(1)
        with torch.no_grad():
            targets = passes(self._target, views, together=self.together)
        return *passes(self._predict, views, together=self.together), *targets

    def score(self, *rows: Tensor) -> dict[str, Any]:
        prediction1, prediction2, target1, target2 = rows
        return {"loss": byol(prediction1, target2) + byol(prediction2, target1)}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features = pooled(self.cnn(images))
        return {"encoder": features, "visual": self.projector(features)}

    def _predict(self, images: Tensor) -> Tensor:
        return self.predictor(self.projector(pooled(self.cnn(images))))

    def _target(self, images: Tensor) -> Tensor:
        return self.target_projector(pooled(self.target_cnn(images)))


def refuse_tau(tau: float) -> None:
    """Raises:
    ConfigError: no decay in [0, 1).
    """
    if not 0 <= tau < 1:
        raise ConfigError(f"model.tau: {tau}; write a decay in [0, 1), for example 0.99")


def refuse_predictor(projector: Projector, predictor: Predictor) -> None:
    """Raises:
    ConfigError: the predictor's output cannot be compared with the projector's.
    """
    if predictor.out_dim != projector.out_dim:
        raise ConfigError(
            f"model.predictor.widths: ends in {predictor.out_dim}, the projector in "
            f"{projector.out_dim}; end both in the same number"
        )
