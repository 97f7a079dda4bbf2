"""Class scores for a split from a checkpoint, or from an untrained network: the model's own, or
those of a judge that is fitted on its frozen features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.predictions import Predictions
from vilmedic_ssl.experiment.data import dataset_of, take_classes
from vilmedic_ssl.experiment.settings import typed

NEIGHBOURS, TAU = 20, 0.07


class Judged:
    """The features of one encoder on train, validate and a split, computed once."""

    def __init__(self, node: dict[str, Any], path: Path | None, seed: int, split: str):
        from vilmedic_ssl.data.images import pin_channels, take_channels
        from vilmedic_ssl.executors import checkpoint
        from vilmedic_ssl.executors.ensemblor import refuse_leaks
        from vilmedic_ssl.experiment.scoring import features_of, untrained_features

        experiment, self.split = typed(node), split
        if path is None:
            train = dataset_of(experiment, node, "train")
            pin_channels(node["dataset"], getattr(train, "files", None))
            self.features = untrained_features(experiment, node, seed, splits=[split])
            return
        content = checkpoint.read_run(path)
        take_channels(node["dataset"], content["config"]["dataset"])
        take_classes(node["model"], content["config"]["model"])
        self.features = features_of(experiment, node, [content], [path], path.stem, splits=[split])
        refuse_leaks(content, self.features, path)


def predictions(judged: Judged, node: Mapping[str, Any], judge: str) -> Predictions:
    """Class scores of the split.

    Args:
        node: the checked config with its label budget; on what that leaves of train the judge is
            fitted.

    Raises:
        UserError: no labels, or a model without class scores.
    """
    features, split = judged.features, judged.split
    test = features.get(split)
    taught = dataset_of(typed(dict(node)), node, "train")
    if test.labels is None or taught.labels is None:
        raise UserError("flow: the data has no labels to judge by; name them in `dataset`")
    if judge == "classifier":
        if "scores" not in test.rows:
            raise UserError(
                f"flow: {node['model']['proto']} gives no class scores; write judge: linear_probe"
            )
        scores = test.rows["scores"]
    else:
        scores = _fitted(judged, taught, judge)
    known = taught.labels if taught.labels.ndim == 2 else None
    counts = (
        np.nansum(known, axis=0)
        if known is not None
        else np.bincount(taught.labels, minlength=len(taught.label_names))
    )
    return Predictions(
        test.ids,
        test.patients,
        test.labels,
        test.label_names,
        scores,
        counts.astype(np.int64),
        len(taught),
    )


def _fitted(judged: Judged, taught: Any, judge: str) -> np.ndarray:
    """(N, C) scores of the split by a judge fitted on the features of the taught images."""
    features = judged.features
    train, test = features.get("train"), features.get(judged.split)
    place = {name: i for i, name in enumerate(train.ids)}
    rows = [place[name] for name in taught.ids]
    x, y = train.rows["encoder"][rows], taught.labels
    if judge == "knn":
        made = metrics.knn_scores(x, y, test.rows["encoder"], k=min(NEIGHBOURS, len(x)), tau=TAU)
    elif features.has("validate"):
        val = features.get("validate")
        made = metrics.linear_probe(x, y, val.rows["encoder"], val.labels, test.rows["encoder"])
    else:
        none = x[:0], y[:0]
        made = metrics.linear_probe(x, y, *none, test.rows["encoder"])
    wide = np.pad(made, ((0, 0), (0, max(0, len(test.label_names) - made.shape[1]))))
    return wide.astype(np.float32)
