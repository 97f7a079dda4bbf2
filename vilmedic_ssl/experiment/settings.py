"""The top level of a config, checked and typed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.data.budget import Budget
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.executors.settings import (
    AuditSettings,
    EnsemblorSettings,
    TrainorSettings,
    ValidatorSettings,
)
from vilmedic_ssl.executors.sweep_settings import SweepSettings
from vilmedic_ssl.registry import load_plugins
from vilmedic_ssl.scalars import opened
from vilmedic_ssl.schema import Kind, build, complete, conform, without_weights
from vilmedic_ssl.settle import annotation_at, settle

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vilmedic_ssl.models.base import PretrainingModel


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The top level of a config.

    Attributes:
        name: the run lives in <ckpt_dir>/<name>/.
        ckpt_dir: folder of all runs.
        seed: of weights, order and augmentation, not of splits; several seeds may share a run
            folder.
        ckpt: checkpoint to resume from or to evaluate: last, best, or a file in the run folder.
        init_from: where a new training takes its first weights from: a run folder (best checkpoint,
            else the last; of several seeds that of `seed`), a checkpoint, or a file of weights of
            another program (.pth, .pt, .bin, .ckpt, .safetensors); what fits is taken and told. A
            training that resumes takes none.
        overwrite: let a new training replace the files of the same name and seed.
        device: cuda, mps or cpu; null = the best there is.
        num_workers: processes that read images; null = one per spare core, at most four.
        plugins: modules that register third-party protos.
        dataset: data by proto.
        split_file: file written by `split`; replaces the splits of the data.
        train_fraction: use only this nested fraction of the training split of `split_file`.
        budget: which labels of the training split are used; null = all.
        audit: what is looked for in the data before training and scoring; null = nothing.
        model: method by proto.
        trainor: training.
        validator: scores during training.
        ensemblor: scores, pictures and files afterwards.
        sweep: keys that vary over many trainings, for `vilmedic-ssl sweep`; null = none.
    """

    name: str
    ckpt_dir: str = "ckpt"
    seed: int = 0
    ckpt: str | None = None
    init_from: str | None = None
    overwrite: bool = False
    device: Literal["cuda", "mps", "cpu"] | None = None
    num_workers: int | None = None
    plugins: list[str] = ()  # type: ignore[assignment]
    dataset: Annotated[dict, Kind("data/datasets")]
    split_file: str | None = None
    train_fraction: float | None = None
    budget: Budget | None = None
    audit: AuditSettings | None = AuditSettings()
    model: Annotated[dict, Kind("models")]
    trainor: TrainorSettings | None = None
    validator: ValidatorSettings = ValidatorSettings()
    ensemblor: EnsemblorSettings = EnsemblorSettings()
    sweep: SweepSettings | None = None

    def __post_init__(self) -> None:
        name = Path(self.name.strip())
        if name == Path() or name.is_absolute() or ".." in name.parts:
            raise ConfigError(f"name: {self.name!r} must be a folder name below ckpt_dir")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed: {self.seed}; write a whole number from 0 to 2147483647")
        if self.num_workers is not None and self.num_workers < 0:
            raise ConfigError(f"num_workers: {self.num_workers}; write 0 or more")
        if self.init_from is not None and (self.model.get("cnn") or {}).get("pretrained"):
            raise ConfigError(
                "init_from: model.cnn.pretrained also says what the encoder starts from; write "
                "model.cnn.pretrained=false, or leave init_from out"
            )
        if self.train_fraction is not None and self.split_file is None:
            raise ConfigError(
                "train_fraction: also name a split_file, written by `vilmedic-ssl split --nested`"
            )

    @property
    def folder(self) -> Path:
        return Path(self.ckpt_dir) / self.name

    @property
    def workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return spare_workers()


def spare_workers() -> int:
    """One process per core that this process can spare, at most four."""
    able = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return max(0, min(4, len(able) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, name: str | None = None
) -> DictConfig:
    """Read, override and check a config; every default is filled in and nothing can be changed
    afterwards.

    Args:
        path: a YAML file, or a run folder for the config in it.
        name: only the data is wanted; stands in for a `name` that is not given.

    Raises:
        ConfigError: whatever is wrong with it, with the key's full path and the closest known keys.
    """
    node = read_config(path, overrides)
    if name is not None:
        return yaml_config.freeze(check_data(node, name))
    if "flow" in node:
        from vilmedic_ssl.experiment.flow_config import check_flow

        return yaml_config.freeze(check_flow(node))
    return yaml_config.freeze(check(node))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A config as it is written, for `settled` or one of the checks. Its plug-ins are imported
    first: of which block a block takes the place depends on what their protos are.

    Raises:
        ConfigError: it cannot be read, or a plug-in cannot be imported.
    """
    node = yaml_config.read(path, overrides)
    return yaml_config.read(path, overrides) if _load_plugins(node) else node


def _load_plugins(node: Mapping[str, Any]) -> bool:
    """Import the plug-ins of a config; True when it has some."""
    modules = conform(settle(node.get("plugins"), list[str], "plugins") or [], list[str], "plugins")
    load_plugins(modules)
    return bool(modules)


def settled(node: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain data: the types of its keys decide what is written there; that of the key
    they are for, what the choices of a sweep are.
    """
    made = settle(node, Experiment)
    sweep = opened(node.get("sweep"))
    space = opened(sweep.get("space")) if isinstance(sweep, Mapping) else None
    if not isinstance(space, Mapping):
        return made  # type: ignore[no-any-return]
    for key, axis in space.items():
        inner, where = opened(axis), f"sweep.space.{key}.choices"
        choices = opened(inner.get("choices")) if isinstance(inner, Mapping) else None
        annotation = annotation_at(made, Experiment, key)
        if isinstance(choices, Mapping):
            typed_as: Any = dict[str, annotation]  # type: ignore[valid-type]
        elif isinstance(choices, list):
            typed_as = list[annotation]  # type: ignore[valid-type]
        else:
            continue
        made["sweep"]["space"][key]["choices"] = settle(choices, typed_as, where)
    return made  # type: ignore[no-any-return]


def check_data(node: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A config of which only the data is looked at, complete; of a flow, the data its stages share.

    Args:
        name: stands in for one that is not given.
    """
    if "flow" in node:
        from vilmedic_ssl.experiment.flow_config import ANY

        data = ("name", "ckpt_dir", "plugins", "dataset", "split_file", "audit", "num_workers")
        node = {"model": ANY, **{key: node[key] for key in data if key in node}}
    return check({"name": name, **node})


def check(node: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain data, complete, or ConfigError."""
    _load_plugins(node)
    checked = complete(settled(node), Experiment, "")
    typed(checked)
    return checked


def typed(checked: dict[str, Any]) -> Experiment:
    """The typed top level; sections that name a proto stay mappings."""
    sections = {
        "trainor": TrainorSettings,
        "validator": ValidatorSettings,
        "ensemblor": EnsemblorSettings,
        "audit": AuditSettings,
        "budget": Budget,
        "sweep": SweepSettings,
    }
    made = {
        k: build(checked[k], cls=c, where=k) if checked[k] else None for k, c in sections.items()
    }
    return Experiment(**{**checked, **made})


def refuse_sweep(experiment: Experiment) -> None:
    """Raises:
    ConfigError: the config describes many trainings.
    """
    if experiment.sweep is not None:
        raise ConfigError(
            "sweep: this config describes many trainings; run them with `vilmedic-ssl sweep` and "
            "the same words, or write sweep=null for one"
        )


def model_of(config: dict[str, Any], *, pretrained: bool = True) -> PretrainingModel:
    """The model; `pretrained=False` where a checkpoint, or chance, supplies all its weights."""
    node = config["model"] if pretrained else without_weights(config["model"])
    return build(node, where="model")
