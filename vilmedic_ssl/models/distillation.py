"""Distillation: a student learns, on images with or without labels, what a trained classifier says
of them (Hinton et al. 2015; the third stage of SimCLRv2, Chen et al. 2020b).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import distillation
from vilmedic_ssl.models.classifier import Classifier
from vilmedic_ssl.nets.freezing import Freeze
from vilmedic_ssl.nets.heads import Projection
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """alpha * temperature^2 * cross entropy with the teacher + (1 - alpha) * that with labels.

    Attributes:
        temperature: both softmaxes' (or sigmoids'); Chen et al. 2020b have 0.1 for a student like
            its teacher and 1.0 for a smaller one.
        alpha: share of the teacher's term, in [0, 1]; 1 = no label is looked at.
    """

    temperature: float = 1.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"model.loss.temperature: {self.temperature}; write a number above 0")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"model.loss.alpha: {self.alpha}; write a share from 0 to 1")


@proto
class Distillation(Classifier):
    """A classifier that learns the class probabilities of another one, its teacher, which sees the
    same augmented image, in eval mode and without gradient.

    The teacher's weights are in the checkpoints of the student, so its files are not needed again.

    Attributes:
        cnn: the student's image encoder.
        teacher: run folder (its best checkpoint, of several seeds that of `seed`) or checkpoint of
            a Classifier or Distillation; in a saved config the model that was found there. Training
            cannot do without.
        projection: the projection of a pretrained model, of which `selector` layers are kept; null
            = none.
        selector: how many of its layers stay under the classifier; -1 = all.
        loss: temperature, and the share of the labels in the loss.
        classes: number of classes or findings; null = those of the training split.
        task: classes or findings (several per image); null = as the labels are.
        freeze: which parts of the student do not learn.
        zero_head: the last layer starts from zeros, so that all classes are equally likely.
        forward_batch_size: images per forward pass of one process; null = the whole batch.
    """

    fresh = ("teacher.",)
    takes: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        cnn: VisualEncoder,  # made first, so that it starts as that of a Classifier does
        teacher: Classifier | str | None = None,
        projection: Projection | None = None,
        selector: int = 0,
        loss: DistillationLoss = DistillationLoss(),  # noqa: B008 (frozen)
        classes: int | None = None,
        task: Literal["classes", "findings"] | None = None,
        freeze: Freeze = Freeze(),  # noqa: B008 (frozen)
        zero_head: bool = False,
        forward_batch_size: int | None = None,
    ):
        super().__init__(
            cnn=cnn,
            projection=projection,
            selector=selector,
            classes=classes,
            task=task,
            freeze=freeze,
            zero_head=zero_head,
            forward_batch_size=forward_batch_size,
        )
        self.teacher = _fitting(teacher, self).requires_grad_(False).eval()  # `train` keeps it so
        self.temperature, self.alpha = loss.temperature, loss.alpha
        self.coupled = loss.alpha < 1  # the mean over labelled images does not add over chunks
        self.takes = ("labels",) if self.coupled else ()

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """The student's features (B, D) and logits (B, C), the teacher's logits, and labels where
        they are wanted.
        """
        with torch.no_grad():  # first, while no graph of the student takes memory
            taught = self.teacher.logits(images[:, 0])
        features = self.features(images[:, 0])
        return features, self.head(features), taught, *taken.values()

    def score(self, *rows: Tensor) -> dict[str, Any]:
        _, student, teacher, *labels = rows
        loss = distillation(
            student,
            teacher,
            temperature=self.temperature,
            labels=labels[0] if labels else None,
            alpha=self.alpha,
            findings=self._several,
        )
        share = self.alpha * self.temperature**2 + 1 - self.alpha
        return {"loss": loss, "chance": share * math.log(2 if self._several else self.classes)}


def _fitting(teacher: Classifier | str | None, student: Classifier) -> Classifier:
    """The teacher, if it fits.

    Raises:
        ConfigError: a name instead of a model, other classes, or another kind of them.
    """
    if not isinstance(teacher, Classifier):
        raise ConfigError(
            f"model.teacher: {teacher!r}; training from a config reads a run folder or checkpoint, "
            "in Python give the model keys of a Classifier"
        )
    if teacher.classes != student.classes:
        raise ConfigError(
            f"model.teacher: it knows {teacher.classes} classes, the student {student.classes}; "
            "take a teacher of the same classes"
        )
    if (teacher.task == "findings") != (student.task == "findings"):
        raise ConfigError(
            f"model.teacher: it tells {teacher.task or 'classes'}, the student "
            f"{student.task or 'classes'}; take a teacher of the same task"
        )
    return teacher
