"""Scores during training: the loss on fixed views, and metrics of the embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilmedic_ssl import console, dist, metrics
from vilmedic_ssl.data.loader import Loader
from vilmedic_ssl.data.patients import count_unknown
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.gradient_cache import parts_of
from vilmedic_ssl.executors.monitors import METRICS, Seen
from vilmedic_ssl.executors.online_probe import OnlineProbe
from vilmedic_ssl.models.base import READ, PretrainingModel, as_views


class Validator:
    """Evaluates a model on the loaders of its splits.

    Args:
        loaders: per split; their datasets give the same random views at every evaluation.
        names: of METRICS.
        learnable: (C,) bool, as `learnable_from` gives it for the training split.

    Raises:
        UserError: a metric needs labels that a split does not have.
    """

    def __init__(
        self,
        loaders: dict[str, Loader],
        names: list[str],
        device: torch.device,
        *,
        learnable: np.ndarray | None = None,
    ):
        self.loaders, self.names, self.device, self.learnable = loaders, names, device, learnable
        self.pairs = any(METRICS[name].pairs for name in names)
        self.codes = any(METRICS[name].codes for name in names)
        for split, loader in loaders.items():
            labels = loader.dataset.labels
            for name in names:
                if METRICS[name].labels and labels is None:
                    raise UserError(
                        f"validator.metrics: {name} needs labels, which split {split!r} does not "
                        "have; take it out, or give it labels: they come from class folders, or "
                        "from dataset.label"
                    )
            if "knn" in names and labels is not None and labels.ndim != 1:
                raise UserError(
                    f"validator.metrics: knn needs one class per image, which split {split!r} does "
                    "not have; take knn out, or give it such labels: they come from class folders, "
                    "or from dataset.label"
                )
            if "knn" in names:
                told = neighbours_left_out(loader.dataset.patients)
                counted = metrics.knn_counted(labels, groups=loader.dataset.patients)
                if not counted.all():
                    told += (
                        f"; {int((~counted).sum()):,} of {len(counted):,} images, without a label "
                        "or of a class that no other patient has, do not count"
                    )
                console.say(f"{split}: {told}")

    @torch.no_grad()
    def __call__(
        self, model: PretrainingModel, cast: Callable[[], Any], probe: OnlineProbe | None = None
    ) -> dict[str, float]:
        """`validation_loss`, its `chance` and parts, and each metric, plain means over splits.

        The loss is the mean over images: a short last batch counts with its own size.
        """
        training = model.training
        model.eval()
        try:
            per_split = [
                self._split(model, loader, cast, probe) for loader in self.loaders.values()
            ]
        finally:
            model.train(training)
        return {name: sum(s[name] for s in per_split) / len(per_split) for name in per_split[0]}

    def _split(
        self,
        model: PretrainingModel,
        loader: Loader,
        cast: Callable[[], Any],
        probe: OnlineProbe | None,
    ) -> dict[str, float]:
        totals: dict[str, float] = {"validation_loss": 0.0, "chance": 0.0}
        images = 0
        kept: list[dict[str, Tensor]] = []
        for batch in loader.epoch(0):
            batch = to_device(batch, self.device)
            with cast():
                rows = model(**batch, rows_only=True)
                out = model.score(*rows)
            n = sum(dist.counts_of(len(rows[0]), self.device))
            told = {"chance": math.nan, **parts_of(out), "validation_loss": float(out["loss"])}
            told.pop("floor", None)  # of equal reports, which are told before training
            totals |= {name: totals.get(name, 0.0) + value * n for name, value in told.items()}
            images += n
            if self.names:
                kept.append(self._seen(model, batch, cast, probe))
        scores = {name: value / images for name, value in totals.items()}
        if self.names:
            rows = {k: torch.cat([d[k] for d in kept]).cpu().numpy() for k in kept[0]}
            if loader.dataset.patients is not None:
                rows["patients"] = np.array(loader.dataset.patients, dtype=str)[rows["index"]]
            del rows["index"]
            seen = Seen(**rows, codebook=getattr(model, "codebook", 0), learnable=self.learnable)
            scores |= {name: METRICS[name].score(seen) for name in self.names}
        return scores

    def _seen(
        self,
        model: PretrainingModel,
        batch: dict[str, Any],
        cast: Callable[[], Any],
        probe: OnlineProbe | None,
    ) -> dict[str, Tensor]:
        """The fields of `Seen` for one batch, of all ranks."""
        views = as_views(batch["images"])
        assert views is not None
        with cast():
            outs = [model.encode(view) for view in views[:, : 1 + self.pairs].unbind(1)]
            codes = model.codes(views[:, 0]) if self.codes else None  # type: ignore[operator]
            second = outs[-1]["visual"]
            if READ[0] in model.takes:  # the report is what an image is to be found by
                second = model.encode_text(*(batch[name] for name in READ))["linguistic"]
        found = {
            "encoder": outs[0]["encoder"].float(),
            "first": outs[0]["visual"].float(),
            "second": second.float(),
            "index": batch["index"],
        }
        if "labels" in batch:
            found["labels"] = batch["labels"]
        if "scores" in outs[0]:
            found["scores"] = outs[0]["scores"].float()
        if codes is not None:
            found["codes"] = codes
        if probe is not None:
            found["probe"] = probe.scores(outs[0]["encoder"])
        return {name: dist.gather(rows) for name, rows in found.items()}


def neighbours_left_out(patients: list[str] | None) -> str:
    """Who is left out of the vote of `knn`."""
    unknown = count_unknown(patients)
    if patients is None or unknown == len(patients):
        return "patients unknown: kNN leaves out the image itself, not others of its patient"
    some = f"; {unknown:,} of {len(patients):,} have none and leave out themselves"
    return f"kNN leaves out images of the same patient{some if unknown else ''}"


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors moved, the rest as it is."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }
