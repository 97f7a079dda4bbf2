"""What the executors ask of a model; a new method fills in three functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PretrainingModel(nn.Module):
    """A model maps a batch to a dict with `loss` and named tensors, and knows nothing of devices
    or processes.

    `rows` turns images into one tensor per view whose first axis is the sample; `score` turns rows
    into the loss of the whole global batch. Cutting there is what lets the trainor cache gradients
    when a batch does not fit.

    Attributes:
        coupled: True when the loss compares samples with each other, so that it does not add over
            chunks.
        forward_batch_size: samples per forward pass; a larger batch goes through the gradient
            cache.
    """

    coupled: bool = False
    forward_batch_size: int | None = None

    def rows(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, V, C, H, W) -> one (B, D) tensor per view."""
        raise TypeError(f"{type(self).__name__} defines no rows()")

    def score(self, *rows: Tensor) -> dict[str, Any]:
        """`loss` (scalar tensor of the global batch), `chance` (float, its value for an untrained
        model).
        """
        raise TypeError(f"{type(self).__name__} defines no score()")

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> `encoder` (B, D) before the projection and `visual` (B, P) after it."""
        raise TypeError(f"{type(self).__name__} defines no encode()")

    def no_decay(self) -> set[str]:
        """Names of parameters without weight decay, beyond those with one axis."""
        return set()

    def forward(self, images: Tensor, *, rows_only: bool = False, **batch: Any) -> Any:
        """Views (B, V, C, H, W), or V * 3 stacked channels, give the loss; plain images (B, C, H,
        W) their embeddings.

        Other entries of the batch (labels, ids) are not looked at.
        """
        views = as_views(images)
        if views is None:
            return self.encode(images)
        rows = self.rows(views)
        return rows if rows_only else {**self.score(*rows), "visual": rows[0].detach()}


def as_views(images: Tensor) -> Tensor | None:
    """Training views as (B, V, C, H, W), or None for plain images.

    ViLMedic stacks two colour views on the channel axis, (B, 6, H, W): first view, then second.
    """
    if images.dim() == 5:
        return images
    if images.shape[1] > 3 and images.shape[1] % 3 == 0:
        return images.unflatten(1, (-1, 3))
    return None
