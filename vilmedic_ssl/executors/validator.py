"""Scores during training: the loss on fixed views, and metrics of the embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilmedic_ssl import dist, metrics
from vilmedic_ssl.data.loader import Loader
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.metrics.knn import neighbours
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.registry import closest

LOSSES = {
    "loss": "validation_loss",
    "validation_loss": "validation_loss",
    "training_loss": "training_loss",
}


def _top1(a_ND: np.ndarray, b_ND: np.ndarray, labels: np.ndarray | None) -> float:
    """Share of first views whose nearest second view is their own."""
    nearest, _ = neighbours(a_ND, b_ND, k=1)
    return float((nearest[:, 0] == np.arange(len(a_ND))).mean())


def _knn(a_ND: np.ndarray, b_ND: np.ndarray, labels: np.ndarray | None) -> float:
    """Leave-one-out accuracy of 20 cosine neighbours weighted exp(s / 0.07), on single labels."""
    assert labels is not None
    own = np.arange(len(a_ND))
    near_NK, cos_NK = neighbours(a_ND, a_ND, k=20, query_groups=own, bank_groups=own)
    votes_NC = np.zeros((len(a_ND), int(labels.max()) + 1))
    np.add.at(votes_NC, (own[:, None], labels[near_NK]), np.exp(cos_NK / 0.07))
    return float((votes_NC.argmax(1) == labels).mean())


@dataclass(frozen=True)
class Metric:
    """A number from both views' embeddings and the labels, and its right direction."""

    score: Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
    lower_is_better: bool


METRICS = {
    "knn": Metric(_knn, False),
    "top1": Metric(_top1, False),
    "effective_rank": Metric(lambda a, b, y: metrics.effective_rank(a), False),
    "feature_std": Metric(lambda a, b, y: metrics.feature_std(a), False),
    "alignment": Metric(lambda a, b, y: metrics.alignment(a, b), True),
    "uniformity": Metric(lambda a, b, y: metrics.uniformity(a), True),
}


def check_metrics(names: list[str], chosen: str) -> bool:
    """Check the validator's metric names and the one training is steered by; True when lower is
    better.

    Raises:
        ConfigError: unknown metric, or one that is not computed.
    """
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"validator.metrics: there is no {name!r}; {closest(name, METRICS)}")
    if chosen in LOSSES:
        return True
    if chosen not in names:
        known = [*LOSSES, *names]
        raise ConfigError(
            f"trainor.early_stop_metric: {chosen!r} is not computed; {closest(chosen, known)}"
        )
    return METRICS[chosen].lower_is_better


class Validator:
    """Evaluates a model on the loaders of its splits.

    Args:
        loaders: per split; their datasets give the same random views at every evaluation.
        names: of METRICS.
    """

    def __init__(self, loaders: dict[str, Loader], names: list[str], device: torch.device):
        self.loaders, self.names, self.device = loaders, names, device
        for split, loader in loaders.items():
            labels = loader.dataset.labels
            if "knn" in names and (labels is None or labels.ndim != 1):
                raise UserError(
                    f"validator.metrics: knn needs one class per image, which split {split!r} does "
                    "not have; take knn out, or name one with dataset.label"
                )

    @torch.no_grad()
    def __call__(self, model: PretrainingModel, cast: Callable[[], Any]) -> dict[str, float]:
        """`validation_loss`, its `chance` and each metric, as the plain mean over splits.

        The loss is the mean over images: a short last batch counts with its own size.
        """
        training = model.training
        model.eval()
        try:
            per_split = [self._split(model, loader, cast) for loader in self.loaders.values()]
        finally:
            model.train(training)
        return {name: sum(s[name] for s in per_split) / len(per_split) for name in per_split[0]}

    def _split(
        self, model: PretrainingModel, loader: Loader, cast: Callable[[], Any]
    ) -> dict[str, float]:
        totals, images = {"validation_loss": 0.0, "chance": 0.0}, 0
        kept: list[list[Tensor]] = []
        for batch in loader.epoch(0):
            batch = to_device(batch, self.device)
            with cast():
                rows = model(batch["images"], rows_only=True)
                out = model.score(*rows)
            n = sum(dist.counts_of(len(rows[0]), self.device))
            totals["validation_loss"] += float(out["loss"]) * n
            totals["chance"] += out.get("chance", float("nan")) * n
            images += n
            if self.names:
                labels = [dist.gather(batch["labels"])] if "labels" in batch else []
                kept.append([dist.gather(rows[0].float()), dist.gather(rows[-1].float()), *labels])
        scores = {name: value / images for name, value in totals.items()}
        if self.names:
            joined = [torch.cat(parts).cpu().numpy() for parts in zip(*kept, strict=True)]
            first, second, *known = joined
            for name in self.names:
                scores[name] = METRICS[name].score(first, second, known[0] if known else None)
        return scores


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors moved, the rest as it is."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }
