"""What can be known of a flow before its first step: are the data sound, does it fit its stages?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.config import digest
from vilmedic_ssl.errors import ConfigError, MissingSplit, UserError
from vilmedic_ssl.executors.flow import FlowSettings, Stage, config_of
from vilmedic_ssl.experiment.audit import audit_before, findings_of, refuse
from vilmedic_ssl.experiment.data import dataset_of
from vilmedic_ssl.experiment.flow_config import ANY, checked_stage
from vilmedic_ssl.experiment.settings import Experiment, typed
from vilmedic_ssl.registry import find
from vilmedic_ssl.schema import schema

if TYPE_CHECKING:
    from vilmedic_ssl.data.datasets.base import MedicalDataset


@dataclass
class Data:
    """The data of one or several stages: their experiment, splits and hash."""

    experiment: Experiment
    node: dict[str, Any]
    splits: dict[str, MedicalDataset]
    hash: str


def inspect(settings: FlowSettings, shared: Mapping[str, Any], folder: Path) -> dict[str, Data]:
    """Each stage's data, audited, alone and against what a stage before it was trained on.

    Args:
        folder: for what the audits find; data of its own has a folder of its own below it.

    Raises:
        Leak: a patient or image that is learned from is in the split that is reported.
        ConfigError: a stage and its data do not fit.
        UserError: data cannot be read.
    """
    if settings.split == "validate":
        console.warn(
            "flow.split: validate has chosen checkpoints and strengths, so its scores flatter; for "
            "choosing between settings, not for reporting"
        )
    known: dict[str, Data] = {}
    of_stage: dict[str, Data] = {}
    for name, stage in settings.stages.items():
        config = config_of(stage, shared)
        node = checked_stage(name, {**config, "name": name, "model": ANY, "validator": {}})
        key = digest({k: v for k, v in node["dataset"].items() if k != "transform"})
        if key not in known:
            place = folder / f"data-{name}" if known else folder
            try:
                known[key] = _read(node, place, settings.split)
            except UserError as error:
                if stage.budget is None and stage.dataset is None:
                    raise
                raise type(error)(f"flow.stages.{name}: {error}") from error
        of_stage[name] = known[key]
        _refuse_unfit(name, stage, settings, config, known[key])
        before = stage.after
        while stage.judged_by and before is not None:
            if of_stage[before] is not known[key]:
                _refuse_shared(before, of_stage[before], known[key], settings.split)
            before = settings.stages[before].after
    _refuse_others(settings, of_stage)
    return of_stage


def _refuse_others(settings: FlowSettings, of_stage: Mapping[str, Data]) -> None:
    """Raises:
    UserError: two stages would be judged on other images or labels.
    """
    from vilmedic_ssl.executors.predictions import Predictions

    first: Predictions | None = None
    for name, stage in settings.stages.items():
        if not stage.judged_by:
            continue
        part = of_stage[name].splits[settings.split]
        assert part.labels is not None
        blank = np.zeros((len(part), 1), dtype=np.float32)
        own = Predictions(part.ids, part.patients, part.labels, part.label_names, blank, 0)
        first = own if first is None else first
        own.like(first, name)


def _read(node: dict[str, Any], folder: Path, split: str) -> Data:
    experiment, splits = typed(node), {}
    audit_before(experiment, node, folder)
    for name in dict.fromkeys(("train", "validate", split)):
        try:
            splits[name] = dataset_of(experiment, node, name)
        except MissingSplit:
            if name == "train":
                raise
    prints = {name: data.fingerprint() for name, data in splits.items()}
    return Data(experiment, node, splits, digest(prints))


def _refuse_shared(name: str, before: Data, judged: Data, split: str) -> None:
    """Raises:
    Leak: the stage `name` is trained on patients or images of the split that is reported.
    """
    from vilmedic_ssl.data.auditing.parts import from_dataset

    audit = judged.experiment.audit
    if audit is None:
        return
    parts = [
        from_dataset(before.splits["train"], source=1, prefix=f"{name}:"),
        from_dataset(judged.splits[split]),
    ]
    refuse(findings_of(parts, audit, judged.experiment.workers, judged.node), config="")


def _refuse_unfit(
    name: str, stage: Stage, settings: FlowSettings, config: Mapping[str, Any], data: Data
) -> None:
    """Raises:
    ConfigError: the stage would fail only when its turn comes.
    MissingSplit: a split that is reported, or looked at in training, is not there.
    """
    from vilmedic_ssl.executors.monitors import check_metrics, check_scores
    from vilmedic_ssl.metrics.comparison import FOR_CLASSES

    where, train = f"flow.stages.{name}", data.splits["train"]
    if stage.judged_by and settings.split not in data.splits:
        dataset_of(data.experiment, data.node, settings.split)
    judged = data.splits.get(settings.split)
    if stage.judged_by and (train.labels is None or judged is None or judged.labels is None):
        raise ConfigError(f"{where}: the data has no labels to judge by; name them in `dataset`")
    several = train.labels is not None and train.labels.ndim == 2
    wrong = [m for m in settings.metrics if several and m in FOR_CLASSES]
    if stage.judged_by and wrong:
        raise ConfigError(
            f"flow.metrics: {wrong[0]} needs one class per image, and this data has findings; "
            "write [auroc, auprc]"
        )
    if stage.model is None:
        return
    model: Any = find(config["model"]["proto"], folder="models", where=f"{where}.model.proto")
    if stage.judged_by == "classifier" and not model.classifies:
        raise ConfigError(
            f"{where}.judge: a {model.__name__} gives no class scores; write linear_probe or knn, "
            "or labels: false where it is pretraining"
        )
    if not stage.labels and "labels" in model.takes:
        raise ConfigError(
            f"{where}.labels: a {model.__name__} learns from labels; write labels: true"
        )
    if "teacher" in schema(model):
        _refuse_teacher(where, stage, settings, config["model"])
    if stage.trains:
        metrics = (config.get("validator") or {}).get("metrics") or []
        check_metrics(metrics, config["trainor"].get("early_stop_metric", "validation_loss"))
        check_scores(metrics, classifies=model.classifies, encodes=hasattr(model, "codes"))


def _refuse_teacher(
    where: str, stage: Stage, settings: FlowSettings, model: Mapping[str, Any]
) -> None:
    """Raises:
    ConfigError: there is none, or one without class scores.
    """
    if stage.after is None and not model.get("teacher"):
        raise ConfigError(f"{where}.after: name the stage that is the teacher")
    taught_by = settings.stages[stage.after].model if stage.after else None
    if taught_by is None:
        return
    kind: Any = find(taught_by["proto"], folder="models")
    if not kind.classifies:
        raise ConfigError(
            f"{where}.after: {stage.after} trains a {kind.__name__}, which gives no class scores "
            "to learn from; name a stage that trains a Classifier"
        )
