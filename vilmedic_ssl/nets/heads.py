"""Heads on top of encoders."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vilmedic_ssl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Linear, ReLU, Linear: from the encoder's vector to the space of the loss.

    Attributes:
        visual_embedding_dim: width of the encoder's vector; null takes it from the encoder.
        projection_dim: width of the hidden layer and of the output.
    """

    visual_embedding_dim: int | None = None
    projection_dim: int = 128

    def __post_init__(self) -> None:
        if self.projection_dim < 1:
            raise ConfigError(
                f"model.projection.projection_dim: {self.projection_dim}; write 1 or more"
            )

    def head(self, width: int) -> nn.Sequential:
        """The module, (B, width) -> (B, projection_dim).

        Raises:
            ConfigError: `visual_embedding_dim` contradicts the encoder.
        """
        if self.visual_embedding_dim not in (None, width):
            raise ConfigError(
                f"model.projection.visual_embedding_dim: {self.visual_embedding_dim}, but the "
                "encoder gives "
                f"{width}; write {width} or leave the key out"
            )
        hidden = self.projection_dim
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
