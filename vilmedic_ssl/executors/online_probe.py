"""A linear layer that learns the labels beside the encoder, without a gradient into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilmedic_ssl import console, dist
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.losses import label_entropy
from vilmedic_ssl.models.base import PretrainingModel, as_views

MOST = 256  # images of the global batch that are looked at: more cost time and teach little


class OnlineProbe:
    """The linear evaluation that SimCLR runs during pretraining (Chen et al. 2020b, appendix),
    on features from the encoder in eval mode, each normalised over its dimensions so that one
    learning rate suits every encoder.

    Args:
        classes: number of classes or findings.
        device: where the model is.
    """

    def __init__(self, classes: int, device: torch.device):
        self.classes, self.device = classes, device
        self.linear: nn.Linear | None = None  # as wide as the first features
        self.optimizer: torch.optim.Optimizer | None = None

    @classmethod
    def beside(cls, dataset: MedicalDataset, device: torch.device) -> OnlineProbe:
        """One for a training on these images, announced.

        Raises:
            UserError: they have no labels.
        """
        if dataset.labels is None:
            raise UserError(
                "validator.metrics: probe learns from the labels of the training split, which has "
                "none; take it out, or give it labels: they come from class folders, or from "
                "dataset.label"
            )
        console.say(
            "probe: a linear layer learns the labels of train beside the encoder, which gets no "
            "gradient from it; do not choose by it what is later called label-free"
        )
        return cls(len(dataset.label_names), device)

    def learn(
        self, model: PretrainingModel, batch: dict[str, Any], cast: Callable[[], Any]
    ) -> None:
        """One step on the first view of a training batch."""
        views = as_views(batch["images"])
        assert views is not None
        mine = max(0, MOST - dist.first_row(len(views), self.device))
        training = model.training
        model.eval()
        with torch.no_grad(), cast():
            features = model.encode(views[:mine, 0])["encoder"]
        model.train(training)
        loss = label_entropy(self.scores(features), batch["labels"][:mine])
        linear, optimizer = self._made(features.shape[1])
        optimizer.zero_grad()
        loss.backward()
        for p in linear.parameters():
            assert p.grad is not None
            p.grad = dist.total(p.grad) / dist.world_size()  # what DDP does for the model
        optimizer.step()

    def scores(self, features_ND: Tensor) -> Tensor:
        """(N, D) -> (N, classes)."""
        linear, _ = self._made(features_ND.shape[1])
        wide = features_ND.detach().float()
        return linear(F.layer_norm(wide, wide.shape[1:]))

    def state_dict(self) -> dict[str, Any] | None:
        if self.linear is None or self.optimizer is None:
            return None
        return {"linear": self.linear.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            linear, optimizer = self._made(state["linear"]["weight"].shape[1])
            linear.load_state_dict(state["linear"])
            optimizer.load_state_dict(state["optimizer"])

    def _made(self, width: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
        if self.linear is None or self.optimizer is None:
            with torch.random.fork_rng(devices=[]):  # training draws what it drew without a probe
                self.linear = nn.Linear(width, self.classes).to(self.device)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
            self.optimizer = torch.optim.Adam(self.linear.parameters(), lr=1e-3)
        return self.linear, self.optimizer
