"""DINO: a student finds in any crop of an image what a slowly following teacher finds in a large
one (Caron et al. 2021).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vilmedic_ssl import dist
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.losses import dino
from vilmedic_ssl.models.base import PretrainingModel, passes
from vilmedic_ssl.models.siamese import refuse_tau
from vilmedic_ssl.nets.ema import cosine_tau, follow, target_of
from vilmedic_ssl.nets.heads import DINOHead
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.registry import proto


@proto
class DINO(PretrainingModel):
    """Student and teacher, each an encoder and a head; the teacher sees the two large views, the
    student these and the small ones where the dataset has them (dataset.transform.local_views).

    Crops of one size go through the encoder together. A vision transformer needs options:
    {dynamic_img_size: true} for small ones. The teacher has no dropout and no stochastic depth; its
    batch norms normalise with the batch's own statistics, as the student's do, and keep running
    statistics of their own. The teacher is what is judged and shipped: it is better than the
    student all along (section 5.2).

    Attributes:
        cnn: the image encoder.
        head: layers and prototypes behind it.
        student_temp: temperature of the student's softmax.
        teacher_temp: temperature of the teacher's softmax after the warm-up.
        warmup_teacher_temp: the same at the first step.
        warmup: share of the training in which the temperature goes from one to the other; 0.3
            in the paper.
        center_momentum: decay of the moving mean of the teacher's logits.
        tau: decay of the teacher at the start; it reaches 1 at the last step along a cosine.
        freeze_last_layer: share of the training in which the prototypes stay as they are, in the
            paper the first of 100 epochs.
        forward_batch_size: images per forward pass of one process; null = the whole batch.
    """

    may_take = ("local",)
    judged = "target_cnn."
    center: Tensor

    def __init__(
        self,
        *,
        cnn: VisualEncoder,
        head: DINOHead = DINOHead(),  # noqa: B008 (frozen)
        student_temp: float = 0.1,
        teacher_temp: float = 0.07,
        warmup_teacher_temp: float = 0.04,
        warmup: float = 0.3,
        center_momentum: float = 0.9,
        tau: float = 0.996,
        freeze_last_layer: float = 0.01,
        forward_batch_size: int | None = None,
    ):
        super().__init__()
        refuse_tau(tau)
        if not min(student_temp, teacher_temp, warmup_teacher_temp) > 0:
            raise ConfigError(
                "model.student_temp, teacher_temp and warmup_teacher_temp: write numbers above 0"
            )
        shares = {"warmup": warmup, "freeze_last_layer": freeze_last_layer}
        for key, share in {**shares, "center_momentum": center_momentum}.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"model.{key}: {share}; write a number from 0 to 1")
        self.cnn, self.head = cnn, head.head(cnn.out_dim)
        self.target_cnn, self.target_head = _calm(target_of(self.cnn)), target_of(self.head)
        self.register_buffer("center", torch.zeros(head.out_dim))
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.start, self.temps = tau, (warmup_teacher_temp, teacher_temp)
        self.warmup, self.freeze_last_layer = warmup, freeze_last_layer
        self.forward_batch_size = forward_batch_size
        self._sum: Tensor | None = None  # of the teacher's logits in this step, and how many
        self.at_step(0, 1)

    def at_step(self, step: int, total: int) -> None:
        share = step / max(1, total)
        warm = min(1.0, share / self.warmup) if self.warmup else 1.0
        self.teacher_temp = self.temps[0] + (self.temps[1] - self.temps[0]) * warm
        self.frozen = share < self.freeze_last_layer
        self.tau = cosine_tau(self.start, step, total)
        self._sum = None

    @torch.no_grad()
    def after_step(self) -> None:
        """The teacher follows; the centre moves to the mean of the global batch (eq. 4)."""
        follow(self.target_cnn, self.cnn, self.tau)
        follow(self.target_head, self.head, self.tau)
        if self._sum is not None:
            total, count = dist.total(self._sum).tensor_split([-1])
            self.center.lerp_(total / count, 1 - self.center_momentum)
            self._sum = None

    def rows(self, images: Tensor, **taken: Tensor) -> tuple[Tensor, ...]:
        """The student's vector of the first view (B, D); its logits (B, K) of both views and of
        each small one; the teacher's logits of both views.
        """
        views = images.unbind(1)
        with torch.no_grad():  # first, while no graph of the student takes memory
            targets = passes(self._teacher, views, together=True)
        seen = passes(self._student, views, together=True)
        small = taken["local"].unbind(1) if "local" in taken else ()
        crops = (*seen, *passes(self._student, small, together=True)) if small else seen
        logits = passes(lambda x: self.head(x, self.frozen), crops, together=True)
        return seen[0], *logits, *targets

    def score(self, *rows: Tensor) -> dict[str, Any]:
        _, *logits, first, second = rows
        targets_NGK = torch.stack([first, second], dim=1)
        if self.training:
            self._remember(targets_NGK)
        loss = dino(
            torch.stack(logits, dim=1),
            targets_NGK,
            student_temp=self.student_temp,
            teacher_temp=self.teacher_temp,
            center=self.center,
        )
        return {"loss": loss, "chance": math.log(len(self.center))}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features = self.target_cnn.vector(images)
        return {"encoder": features, "visual": self.target_head.bottleneck(features)}

    @torch.no_grad()
    def _remember(self, targets_NGK: Tensor) -> None:
        """Add to the step's sum of logits: a large batch comes in parts."""
        rows_MK = targets_NGK.flatten(0, 1).to(self.center.dtype)
        part = torch.cat([rows_MK.sum(0), rows_MK.new_tensor([len(rows_MK)])])
        self._sum = part if self._sum is None else self._sum + part

    def _student(self, images: Tensor) -> Tensor:
        return self.cnn.vector(images)

    def _teacher(self, images: Tensor) -> Tensor:
        return self.target_head(self.target_cnn.vector(images))


def _calm(network: VisualEncoder) -> VisualEncoder:
    """The network without dropout and stochastic depth, in training too (authors' code)."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # of timm's networks, DropPath, DropBlock2d and PatchDropout
        for name in ("drop_rate", "drop_prob", "prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return network
