"""Class scores for a split from a checkpoint, or from an untrained network: the model's own, or
those of a judge that is fitted on its frozen features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.predictions import Predictions
from vilmedic_ssl.experiment.data import dataset_of, pin_classes, take_classes
from vilmedic_ssl.experiment.settings import typed
from vilmedic_ssl.post_processing._scores import groups_of, own_scores, probe_on, widen

if TYPE_CHECKING:
    from vilmedic_ssl.data.datasets.base import MedicalDataset


class Judged:
    """The features of one encoder on train, validate and a split, computed once.

    Args:
        node: the checked config of its training, without a label budget.
        path: its checkpoint; None = it is not trained.
    """

    def __init__(self, node: dict[str, Any], path: Path | None, seed: int, split: str):
        from vilmedic_ssl.data.images import pin_channels, take_channels
        from vilmedic_ssl.executors import checkpoint
        from vilmedic_ssl.executors.ensemblor import refuse_leaks
        from vilmedic_ssl.experiment.scoring import features_of, untrained_features

        experiment, self.split = typed(node), split
        if path is None:
            train = dataset_of(experiment, node, "train")
            pin_channels(node["dataset"], getattr(train, "files", None))
            pin_classes(node["model"], train)
            self.features = untrained_features(experiment, node, seed, splits=[split])
            return
        content = checkpoint.read_run(path)
        take_channels(node["dataset"], content["config"]["dataset"])
        take_classes(node["model"], content["config"]["model"])
        self.features = features_of(experiment, node, [content], [path], path.stem, splits=[split])
        refuse_leaks(content, self.features, path)


def predictions(
    judged: Judged, node: Mapping[str, Any], judge: Literal["classifier", "linear_probe", "knn"]
) -> Predictions:
    """Class scores of the split.

    Args:
        node: the checked config with its label budget; on what that leaves of train the judge is
            fitted.

    Raises:
        UserError: no labels, or a model without class scores.
    """
    test = judged.features.get(judged.split)
    taught = dataset_of(typed(dict(node)), node, "train")
    if test.labels is None or taught.labels is None:
        raise UserError("flow: the data has no labels to judge by; name them in `dataset`")
    made = own_scores(test, "flow") if judge == "classifier" else _fitted(judged, taught, judge)
    return Predictions(
        test.ids,
        test.patients,
        test.labels,
        test.label_names,
        widen(made, len(test.label_names)).astype(np.float32),
        int(metrics.labelled(taught.labels).sum()),
    )


def _fitted(judged: Judged, taught: MedicalDataset, judge: str) -> np.ndarray:
    """(N, C) scores by a judge fitted on the features of the taught images, as the plug-ins of the
    same names do.
    """
    features, rows = judged.features, judged.features.get(judged.split).rows["encoder"]
    train, scored = features.get("train"), features.get(judged.split)
    place = {name: i for i, name in enumerate(train.ids)}
    x, y = train.rows["encoder"][[place[name] for name in taught.ids]], taught.labels
    assert y is not None
    known = metrics.labelled(y)
    x, y = x[known], y[known]
    if judge == "knn":
        names = groups_of(train)[[place[name] for name in taught.ids]][known]
        return metrics.knn_scores(x, y, rows, train_groups=names, test_groups=groups_of(scored))
    patients = taught.patients and [p for p, k in zip(taught.patients, known, strict=True) if k]
    validate = features.get("validate") if features.has("validate") else None
    return probe_on(x, y, patients, validate, "encoder", taught.label_names)(rows)
