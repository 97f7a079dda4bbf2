"""What the methods share that pass every view through an encoder and a projector."""

from __future__ import annotations

import torch
from torch import Tensor

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.ema import cosine_tau, follow, target_of
from vilmedic_ssl.nets.heads import Predictor, Projector
from vilmedic_ssl.nets.vision import VisualEncoder


class Siamese(PretrainingModel):
    """Encoder and projector."""

    def __init__(self, cnn: VisualEncoder, projector: Projector, forward_batch_size: int | None):
        super().__init__()
        self.cnn, self.projector = cnn, projector.head(cnn.out_dim)
        self.forward_batch_size = forward_batch_size

    def project(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P)."""
        return self.projector(self.cnn.vector(images))

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features = self.cnn.vector(images)
        return {"encoder": features, "visual": self.projector(features)}


class Predicting(Siamese):
    """A predictor behind the projector makes of one view what is compared with the other.

    Raises:
        ConfigError: the predictor's output cannot be compared with the projector's.
    """

    def __init__(
        self,
        cnn: VisualEncoder,
        projector: Projector,
        predictor: Predictor,
        forward_batch_size: int | None,
    ):
        super().__init__(cnn, projector, forward_batch_size)
        if predictor.out_dim != projector.out_dim:
            raise ConfigError(
                f"model.predictor.widths: ends in {predictor.out_dim}, the projector in "
                f"{projector.out_dim}; end both in the same number"
            )
        self.predictor = predictor.head(projector.out_dim)

    def predict(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P)."""
        return self.predictor(self.project(images))


class WithTarget(Predicting):
    """The other view goes through a target encoder and projector, which follow the online ones
    along a cosine from `tau` to 1, or at `tau` throughout.

    The target's batch norms normalise with the batch's own statistics, as the online network's do,
    and keep running statistics of their own.

    Raises:
        ConfigError: `tau` is no decay in [0, 1).
    """

    def __init__(
        self,
        cnn: VisualEncoder,
        projector: Projector,
        predictor: Predictor,
        forward_batch_size: int | None,
        *,
        tau: float,
        rising: bool,
    ):
        super().__init__(cnn, projector, predictor, forward_batch_size)
        refuse_tau(tau)
        self.target_cnn, self.target_projector = target_of(self.cnn), target_of(self.projector)
        self.tau, self.start, self.rising = tau, tau, rising

    def at_step(self, step: int, total: int) -> None:
        if self.rising:
            self.tau = cosine_tau(self.start, step, total)

    def after_step(self) -> None:
        follow(self.target_cnn, self.cnn, self.tau)
        follow(self.target_projector, self.projector, self.tau)

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P), without gradient."""
        return self.target_projector(self.target_cnn.vector(images))


def refuse_tau(tau: float) -> None:
    """Raises:
    ConfigError: no decay in [0, 1).
    """
    if not 0 <= tau < 1:
        raise ConfigError(f"model.tau: {tau}; write a decay in [0, 1), for example 0.99")
