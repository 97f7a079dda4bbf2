"""The config of a flow, checked, and the experiments of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.executors.flow import FlowSettings, Stage, config_of
from vilmedic_ssl.executors.settings import (
    AuditSettings,
    EnsemblorSettings,
    TrainorSettings,
    ValidatorSettings,
)
from vilmedic_ssl.experiment.settings import check
from vilmedic_ssl.registry import find, load_plugins
from vilmedic_ssl.scalars import opened
from vilmedic_ssl.schema import build, complete, conform, schema
from vilmedic_ssl.settle import Part, settle

# Stands for the model of a stage that has none, where only its other keys are looked at.
ANY = {"proto": "Classifier", "cnn": {"proto": "CNN", "backbone": "resnet18"}}
SHARED = ("dataset", "split_file", "trainor", "validator", "audit", "device", "num_workers")


@dataclass(frozen=True, kw_only=True)
class FlowExperiment:
    """The top level of a config with a flow.

    Attributes:
        name: the flow lives in <ckpt_dir>/<name>/, each stage in a folder below it.
        ckpt_dir: folder of all runs.
        device, num_workers, plugins, split_file, audit: as for a single experiment.
        dataset: the data of all stages; a stage's own keys stand on top.
        trainor, validator: likewise, for the stages that are trained.
        ensemblor: `batch_size` is that of scoring; the rest is for `ensemble` on a stage alone.
        flow: stages, seeds, label budgets, comparison.
    """

    name: str
    ckpt_dir: str = "ckpt"
    device: str | None = None
    num_workers: int | None = None
    plugins: list[str] = ()  # type: ignore[assignment]
    dataset: Annotated[dict, Part("data/datasets")]
    split_file: str | None = None
    audit: AuditSettings | None = AuditSettings()
    trainor: Annotated[dict, Part(TrainorSettings)] | None = None
    validator: Annotated[dict, Part(ValidatorSettings)] | None = None
    ensemblor: EnsemblorSettings = EnsemblorSettings()
    flow: FlowSettings

    @property
    def folder(self) -> Path:
        return Path(self.ckpt_dir) / self.name


def check_flow(node: Mapping[str, Any]) -> dict[str, Any]:
    """A flow's config as plain data, complete, every stage's experiment checked too.

    Raises:
        ConfigError: whatever is wrong with it.
    """
    load_plugins(conform(settle(node.get("plugins"), list[str]) or [], list[str], "plugins"))
    checked = complete(_settled(node), FlowExperiment, "")
    settings, shared = flow_of(checked), shared_of(checked)
    for name, stage in settings.stages.items():
        for budget in settings.budgets if stage.labels else (None,):
            config = {**config_of(stage, shared, budget), "name": f"{checked['name']}/{name}"}
            if stage.model is None:
                config = {**config, "model": ANY}
            elif stage.after is not None:
                config = started(config, stage.after)
            checked_stage(name, config)
    return checked


def _settled(node: Mapping[str, Any]) -> dict[str, Any]:
    """A flow's config as plain data; the dataset of a stage is of the flow's kind where it names
    no proto.
    """
    made = settle(node, FlowExperiment)
    flow = opened(node.get("flow"))
    stages = opened(flow.get("stages")) if isinstance(flow, Mapping) else None
    for name, stage in (stages if isinstance(stages, Mapping) else {}).items():
        inner = opened(stage)
        own = opened(inner.get("dataset")) if isinstance(inner, Mapping) else None
        if isinstance(own, Mapping) and "proto" not in own:
            shared = made.get("dataset")
            kind = {"proto": shared.get("proto") if isinstance(shared, Mapping) else None}
            typed_as = Annotated[dict, Part("data/datasets")]
            whole = settle({**kind, **own}, typed_as, f"flow.stages.{name}.dataset")
            made["flow"]["stages"][name]["dataset"] = {key: whole[key] for key in own}
    return made  # type: ignore[no-any-return]


def started(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """An experiment whose model is taught by `source` where it has a teacher, and starts from the
    weights of `source` otherwise.
    """
    model = dict(config["model"])
    if "teacher" in schema(find(model.get("proto", ""), folder="models", where="model.proto")):
        return {**config, "model": {**model, "teacher": source}}
    return {**config, "init_from": source}


def flow_of(checked: Mapping[str, Any]) -> FlowSettings:
    """The typed `flow` section."""
    from vilmedic_ssl.data.budget import Budget

    node = dict(checked["flow"])
    node["stages"] = {
        name: build(keys, cls=Stage, where=f"flow.stages.{name}")
        for name, keys in node["stages"].items()
    }
    node["budgets"] = [
        build(keys, cls=Budget, where=f"flow.budgets.{i}")
        for i, keys in enumerate(node["budgets"] or [{"fraction": 1.0}])
    ]
    return FlowSettings(**node)


def shared_of(checked: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a flow that each of its experiments takes."""
    given = {key: checked[key] for key in SHARED if checked[key] is not None or key == "audit"}
    return {**given, "plugins": checked["plugins"], "ckpt_dir": checked["ckpt_dir"]}


def checked_stage(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment of a stage, checked; sentences name the stage."""
    try:
        return check(config)
    except ConfigError as error:
        raise ConfigError(f"flow.stages.{name}: {error}") from error


def typed_flow(checked: Mapping[str, Any]) -> FlowExperiment:
    """The typed top level; what its stages share stays a mapping."""
    sections = {
        **checked,
        "ensemblor": build(checked["ensemblor"], cls=EnsemblorSettings, where="ensemblor"),
        "flow": flow_of(checked),
    }
    return FlowExperiment(**sections)
