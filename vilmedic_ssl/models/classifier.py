"""An encoder with a classifier on top: trained from nothing, from pretrained weights, or only its
head; the row that pretraining is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import label_entropy, ordinal_entropy
from vilmedic_ssl.losses.labels import ordinal_logits
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.freezing import Freeze, Part, keep_still
from vilmedic_ssl.nets.heads import Projection, up_to, widths_of
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto

Task = Literal["classes", "findings", "ordinal"]


@dataclass(frozen=True, kw_only=True)
class LabelLoss:
    """Cross entropy with labels.

    Attributes:
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        class_weights: weight of an image of each class, or of a finding where it is present;
            balanced = from the labels of the training split: images / (classes * images of the
            class), for findings absent / present.
    """

    label_smoothing: float = 0.0
    class_weights: list[float] | Literal["balanced"] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"model.loss.label_smoothing: {self.label_smoothing}; write a share in [0, 1)"
            )
        weights = self.class_weights
        if isinstance(weights, list) and not (weights and min(weights) >= 0 < max(weights)):
            raise ConfigError(
                f"model.loss.class_weights: {weights}; write numbers from 0 up, not all of them 0"
            )


class OrdinalHead(nn.Module):
    """(B, D) -> (B, C - 1) log odds of being above each class but the last: one weight vector for
    all, a bias each (CORAL, Cao et al. 2020, section 3.3). Biases start where all classes are
    equally likely.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False).weight
        above_K = torch.arange(classes - 1, 0, -1) / classes
        self.bias = nn.Parameter(above_K.logit())

    def forward(self, x_BD: Tensor) -> Tensor:
        return x_BD @ self.weight.T + self.bias


@proto("Supervised")
class Classifier(PretrainingModel):
    """Encoder, where asked for the first layers of a pretrained projection, and one linear layer;
    cross entropy for classes, binary cross entropy for findings, CORAL for ordered classes.

    Attributes:
        cnn: the image encoder.
        projection: the projection of a pretrained model, of which `selector` layers are kept; null
            = none.
        selector: how many of its layers stay under the classifier (SimCLRv2 keeps 1); -1 = all.
        classes: number of classes or findings; null = those of the training split.
        task: classes, findings (several per image), or ordinal (classes in the order of their
            labels); null = classes or findings, as the labels are.
        loss: label smoothing and class weights.
        freeze: which parts do not learn.
        zero_head: the last layer starts from zeros, so that all classes are equally likely.
        forward_batch_size: images per forward pass of one process; null = the whole batch.
    """

    views = 1
    takes: tuple[str, ...] = ("labels",)
    classifies = True
    class_weights: Tensor | None

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        projection: Projection | None = None,
        selector: int = 0,
        classes: int | None = None,
        task: Task | None = None,
        loss: LabelLoss = LabelLoss(),  # noqa: B008 (frozen)
        freeze: Freeze = Freeze(),  # noqa: B008 (frozen)
        zero_head: bool = False,
        forward_batch_size: int | None = None,
    ):
        super().__init__()
        least = 2 if task == "ordinal" else 1
        if classes is None or classes < least:
            raise ConfigError(
                f"model.classes: {classes}; write how many classes there are, {least} or more"
            )
        if projection is None and selector:
            raise ConfigError(
                f"model.selector: {selector} layers of which projection? write model.projection as "
                "in the config of the pretraining, or selector: 0"
            )
        self.cnn, self.classes, self.task = cnn, classes, task
        self.forward_batch_size, self.label_smoothing = forward_batch_size, loss.label_smoothing
        self.projection, width = nn.Sequential(), cnn.out_dim
        if projection is not None:
            whole = projection.head(width)
            self.projection, width = up_to(whole, selector), widths_of(whole)[selector]
            self.cut = ("projection.",) * (len(self.projection) < len(whole))
        ordinal = task == "ordinal"
        self.head = OrdinalHead(width, classes) if ordinal else nn.Linear(width, classes)
        if zero_head:
            self.fresh = (*self.fresh, "head.")
            nn.init.zeros_(self.head.weight)
        if zero_head and not ordinal:
            nn.init.zeros_(self.head.bias)
        self.register_buffer("class_weights", _weights(loss, classes), persistent=False)
        freeze.apply(self, self.parts())

    def parts(self) -> list[Part]:
        """The encoder's, with the projection's layers in the last block."""
        parts = super().parts()
        kept = [f"projection.{name}" for name, _ in self.projection.named_parameters()]
        return [*parts[:-1], *(Part(p.name, p.parameters + kept) for p in parts[-1:])]

    def train(self, mode: bool = True) -> Classifier:
        """What is frozen stays in eval mode whatever is asked."""
        super().train(mode)
        keep_still(self)
        return self

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), what the head reads."""
        return self.projection(self.cnn.vector(images))

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes); of ordered classes log probabilities."""
        return self._logits(self.head(self.features(images)))

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """Features (B, D), the head's output (B, classes or one less), and the labels."""
        features = self.features(images[:, 0])
        return features, self.head(features), taken["labels"]

    def score(self, *rows: Tensor) -> dict[str, Any]:
        _, out_NC, labels = rows
        entropy = ordinal_entropy if self.task == "ordinal" else label_entropy
        loss = entropy(
            out_NC,
            labels,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
        )
        told: dict[str, Any] = {"loss": loss}
        if entropy is label_entropy and labels.dim() == 1 and self.class_weights is None:
            told["chance"] = math.log(self.classes)
        return told

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`visual` are the logits; `scores` need a known `task`."""
        features = self.features(images)
        logits = self._logits(self.head(features))
        told = {"encoder": features, "visual": logits}
        if self.task is None:
            return told
        return {**told, "scores": logits.sigmoid() if self._several else logits.softmax(1)}

    @property
    def _several(self) -> bool:
        return self.task == "findings"

    def _logits(self, out: Tensor) -> Tensor:
        """In float32 at least."""
        out = out.float() if out.element_size() < 4 else out
        return ordinal_logits(out) if self.task == "ordinal" else out


def _weights(loss: LabelLoss, classes: int) -> Tensor | None:
    """(classes,) or None.

    Raises:
        ConfigError: another number of weights than of classes.
    """
    weights = loss.class_weights
    if weights is None:
        return None
    if weights == "balanced":
        raise ConfigError(
            f"model.loss.class_weights: balanced for {classes} classes is counted from a training "
            f"split, and a model that is built alone has none; write {classes} numbers"
        )
    if len(weights) != classes:
        raise ConfigError(
            f"model.loss.class_weights: there are {len(weights)} numbers for {classes} classes; "
            f"write {classes}, one per class in the order of the labels, or balanced"
        )
    return torch.tensor(weights)
