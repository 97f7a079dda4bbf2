"""What the executors ask of a model; a new method fills in three functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.nets.freezing import Part, parts_of
from vilmedic_ssl.nets.vision import VisualEncoder

READ = ("input_ids", "attention_mask", "words")  # what `encode_text` reads of a report


class PretrainingModel(nn.Module):
    """A model maps a batch to a dict with `loss` and named tensors, and knows nothing of devices
    or processes.

    `rows` turns images into tensors whose first axis is the sample; `score` turns rows into the
    loss of the whole global batch. Cutting there is what lets the trainor cache gradients when a
    batch does not fit.

    Attributes:
        coupled: True when the loss compares samples with each other, so that it does not add over
            chunks.
        views: training views per image that `rows` wants.
        takes: further entries of the batch, one row per sample, that `rows` takes by keyword:
            `seeds` (B,) int64, new in each epoch, for noise that must not depend on the number of
            processes; `local` (B, L, C, h, w) small crops; `labels`.
        may_take: entries that `rows` takes where the dataset gives them.
        forward_batch_size: samples per forward pass; a larger batch goes through the gradient
            cache.
        judged: beginning of the names of the encoder's tensors that `encode` reads: what another
            model that starts from this one (`init_from`) gets as its `cnn.`.
        fresh: beginnings of names of tensors that `init_from` leaves as they are.
        cut: beginnings of names of parts that end before the last layer they were trained with.
        classifies: True when `encode` gives `scores`.
        spreads: True when embeddings that lie close together are a sign of collapse.
        pixels: True when images are wanted as they are, in [0, 1], and not normalised.
        core: beginning of all tensor names that files of another program leave out.
    """

    coupled: bool = False
    views: int = 2
    takes: tuple[str, ...] = ()
    may_take: tuple[str, ...] = ()
    forward_batch_size: int | None = None
    judged: str = "cnn."
    fresh: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    classifies: bool = False
    spreads: bool = True
    pixels: bool = False
    core: str = ""

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """(B, V, C, H, W) -> tensors with B rows, the first an embedding (B, D)."""
        raise TypeError(f"{type(self).__name__} defines no rows()")

    def score(self, *rows: Tensor) -> dict[str, Any]:
        """`loss` (scalar tensor of the global batch), `chance` (float, its value for an untrained
        model, where there is one), and whatever else is a number: parts of the loss, for the log.
        """
        raise TypeError(f"{type(self).__name__} defines no score()")

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> `encoder` (B, D) before the projection and `visual` (B, P) after it; of
        models that classify also `scores`, the probability of each class or finding (B, C).
        """
        raise TypeError(f"{type(self).__name__} defines no encode()")

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, words: Tensor
    ) -> dict[str, Tensor]:
        """Of models that read reports: (B, L) each -> `text` (B, D) before the projection and
        `linguistic` (B, P) after it.
        """
        raise TypeError(f"{type(self).__name__} defines no encode_text()")

    def at_step(self, step: int, total: int) -> None:
        """Called before each batch, `step` optimizer steps being done of `total`: set what moves
        with time (a temperature, a decay). A model keeps no counter of its own.
        """

    def after_step(self) -> None:
        """Called after each optimizer step: a target network follows, a centre moves."""

    @classmethod
    def settle_text(
        cls, node: dict[str, Any], tokenizer: Any, said: Sequence[str], most: int | None
    ) -> int | None:
        """Of models that read reports: write into the model's section of a config what the
        tokenizer decides.

        Args:
            said: the training reports.  most: tokens of a text that the config allows.

        Returns:
            Tokens that the model takes of a text at most; None = any number.
        """
        return most

    def parts(self) -> list[Part]:
        """The encoder's stem and blocks in order; what is in none of them is the head. [] where
        they are not known.
        """
        cnn = getattr(self, "cnn", None)
        return parts_of(cnn) if isinstance(cnn, VisualEncoder) else []

    def no_decay(self) -> set[str]:
        """Names of parameters without weight decay, beyond those with one axis."""
        return set()

    def fixed_rate(self) -> set[str]:
        """Names of parameters whose learning rate follows no schedule."""
        return set()

    def forward(self, images: Tensor, *, rows_only: bool = False, **batch: Any) -> Any:
        """Views (B, V, C, H, W), or V * 3 stacked channels, give the loss; plain images (B, C, H,
        W) their embeddings.

        Entries of the batch that neither `takes` nor `may_take` names are not looked at.

        Raises:
            UserError: another number of views than the method compares, or no such entry.
        """
        views = as_views(images)
        if views is None:
            return self.encode(images)
        self.refuse_views(views.shape[1])
        for name in self.takes:
            if name not in batch:
                raise UserError(f"{type(self).__name__}: the dataset gives no {name!r}; {ADVICE}")
        names = [*self.takes, *(name for name in self.may_take if name in batch)]
        rows = self.rows(views, **{name: batch[name] for name in names})
        return rows if rows_only else {**self.score(*rows), "visual": rows[0].detach()}

    def refuse_images(self, images: Tensor) -> None:
        """
        Args:
            images: (B, C, H, W) as training gets them.

        Raises:
            UserError: the method cannot take such images.
        """

    def refuse_views(self, found: int, key: str = "views") -> None:
        """
        Args:
            key: of the config, that sets the number.

        Raises:
            UserError: the method compares another number of views.
        """
        if found != self.views:
            raise UserError(
                f"{type(self).__name__} takes {self.views} view(s) of an image, found {found}; "
                f"write {key}={self.views}"
            )


ADVICE = (
    "labels come from dataset.label or class folders, local from dataset.transform.local_views=6"
)


def as_views(images: Tensor) -> Tensor | None:
    """Training views as (B, V, C, H, W), or None for plain images.

    ViLMedic stacks two colour views on the channel axis, (B, 6, H, W): first view, then second.
    """
    if images.dim() == 5:
        return images
    if images.shape[1] > 3 and images.shape[1] % 3 == 0:
        return images.unflatten(1, (-1, 3))
    return None


def passes(
    network: Callable[[Tensor], Tensor], views: Sequence[Tensor], *, together: bool
) -> tuple[Tensor, ...]:
    """A network applied to each view, (B, ...) each: all in one pass, so that batch norm sees them
    together, or one pass per view, so that it sees each alone.
    """
    if together:
        return tuple(network(torch.cat(tuple(views))).chunk(len(views)))
    return tuple(network(view) for view in views)
