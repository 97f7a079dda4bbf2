"""A flow: stages that build on each other, once per seed and label budget, and what each is called
on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from vilmedic_ssl.config import digest, merge
from vilmedic_ssl.data.budget import Budget
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.executors.settings import TrainorSettings, ValidatorSettings
from vilmedic_ssl.registry import closest
from vilmedic_ssl.settle import Part

Judge = Literal["classifier", "linear_probe", "knn"]
# What changes where a stage runs or how it is looked at, not what comes out of it.
ELSEWHERE = (
    *("name", "ckpt_dir", "seed", "ckpt", "overwrite", "device", "num_workers", "plugins"),
    *("audit", "ensemblor", "init_from"),
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a flow. Its keys stand on top of those of the whole flow.

    Attributes:
        after: the stage it builds on: whose encoder is judged, whose weights the model starts with,
            or, for a model with a `teacher`, who teaches.
        labels: true = once per seed and label budget, and in the table; false = once per seed, on
            all images and without their labels, for pretraining.
        judge: what makes class scores: classifier (the model's own; the default with labels),
            linear_probe or knn on frozen features.
        model: the model; null = none is trained, the encoder of `after` is judged as it is.
        trainor: how it is trained, {} = as the flow says; null beside a model = it is not, and its
            features are judged as they are, fresh, published or from `init_from`.
        dataset, validator: what differs from the flow's.
        budget: which training images the stage sees, where it is not the flow's label budget; for
            limited pretraining data. Takes the keys of the top-level `budget`.
        unlabelled: keep = training images beyond the label budget stay, without their label.
        ckpt: which of its checkpoints is used: last or best; null = best with labels, last without,
            so that nothing that saw no labels is chosen by them.
        init_from: weights from elsewhere to start with, where there is no `after`.
        optional: leave the stage out, with a sentence, when its weights cannot be had.
    """

    after: str | None = None
    labels: bool = True
    judge: Judge | None = None
    model: Annotated[dict, Part("models")] | None = None
    trainor: Annotated[dict, Part(TrainorSettings)] | None = None
    dataset: Annotated[dict, Part("data/datasets")] | None = None
    validator: Annotated[dict, Part(ValidatorSettings)] | None = None
    budget: Annotated[dict, Part(Budget)] | None = None
    unlabelled: Literal["drop", "keep"] = "drop"
    ckpt: Literal["last", "best"] | None = None
    init_from: str | None = None
    optional: bool = False

    @property
    def judged_by(self) -> Judge | None:
        """Who makes class scores of it; None = it is in no table."""
        return (self.judge or "classifier") if self.labels else None

    @property
    def checkpoint(self) -> str:
        return self.ckpt or ("best" if self.labels else "last")

    @property
    def trains(self) -> bool:
        return self.model is not None and self.trainor is not None


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """What a flow runs and compares.

    Attributes:
        stages: by name, each after the one it builds on.
        seeds: of weights, order, augmentation and of the choice of labels.
        budgets: label budgets, each with keys of the top-level `budget`, for example [{fraction:
            0.01}, {samples_per_class: 10}, {fraction: 1.0}]; none = all labels.
        baseline: the stage that others are compared with; null = no comparison.
        metrics: accuracy, balanced_accuracy (classes only), auroc, auprc (means over classes or
            findings); the first is the one that is plotted and compared in words.
        split: the split that is reported.
        draws: bootstrap draws of patients and seeds.
    """

    stages: dict[str, Stage]
    seeds: list[int] = (0, 1, 2)  # type: ignore[assignment]
    budgets: list[Budget] = ()  # type: ignore[assignment]
    baseline: str | None = None
    metrics: list[Literal["accuracy", "balanced_accuracy", "auroc", "auprc"]] = (  # type: ignore[assignment]
        "accuracy",
        "auroc",
    )
    split: str = "test"
    draws: int = 1000

    def __post_init__(self) -> None:
        for key in ("stages", "seeds", "metrics"):
            if not getattr(self, key):
                raise ConfigError(f"flow.{key}: name one at least")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"flow.seeds: {list(self.seeds)}; write different ones from 0")
        names = [told(budget) for budget in self.budgets]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"flow.budgets: {min(twice)} stands there twice; keep one")
        for i, budget in enumerate(self.budgets):
            if budget.unlabelled != "drop":
                raise ConfigError(
                    f"flow.budgets.{i}.unlabelled: a stage says what it does with the other "
                    "images; write flow.stages.NAME.unlabelled=keep"
                )
        if self.split == "train":
            raise ConfigError("flow.split: train is what is learned from; write test or validate")
        before: dict[str, Stage] = {}
        for name, stage in self.stages.items():
            if stage.model is None and stage.after is None:  # an override of a misspelt one
                meant = closest(name, self.stages.keys() - {name})
                meant = f"; {meant}" if meant.startswith("did") else ""
                raise ConfigError(
                    f"flow.stages.{name}: write a model, or `after: STAGE` to judge that one{meant}"
                )
            _refuse(name, stage, before)
            before[name] = stage
        judged = [name for name, stage in self.stages.items() if stage.judged_by]
        if not judged:
            raise ConfigError("flow.stages: none has labels, so there is nothing to compare")
        if self.baseline is not None and self.baseline not in judged:
            raise ConfigError(
                f"flow.baseline: no judged stage is called {self.baseline!r}; "
                f"{closest(self.baseline, judged)}"
            )


def _refuse(name: str, stage: Stage, before: Mapping[str, Stage]) -> None:
    """Raises:
    ConfigError: the stage cannot be run behind those before it.
    """
    where = f"flow.stages.{name}"
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{where}: a stage's name is made of letters, digits, - and _")
    if stage.after is not None and stage.after not in before:
        known = closest(stage.after, before) if before else "none comes before it"
        raise ConfigError(f"{where}.after: there is no stage {stage.after!r} before it; {known}")
    if stage.model is None and stage.judge in (None, "classifier"):
        raise ConfigError(f"{where}.judge: without a model of its own, write linear_probe or knn")
    if stage.init_from and stage.after:
        raise ConfigError(f"{where}.init_from: it starts from the stage {stage.after!r}; keep one")
    if stage.judge and not stage.labels:
        raise ConfigError(
            f"{where}.judge: a stage without labels is judged by another one; add a stage with "
            f"after: {name} and judge: {stage.judge}"
        )
    if stage.model is None:
        for key in ("trainor", "init_from", "validator", "ckpt"):
            if getattr(stage, key) is not None:
                raise ConfigError(f"{where}.{key}: it trains nothing; leave it out, or add a model")
    if not stage.trains and stage.unlabelled == "keep":
        raise ConfigError(f"{where}.unlabelled: it trains nothing; leave the key out")
    if stage.model is not None and stage.trainor is None:
        _refuse_untrained(where, stage)
    if stage.model is not None and stage.after is not None and not before[stage.after].trains:
        raise ConfigError(f"{where}.after: {stage.after} trains nothing; name a stage that does")


def _refuse_untrained(where: str, stage: Stage) -> None:
    """Raises:
    ConfigError: a model that is not trained is expected to have learned something.
    """
    add = f"add {where}.trainor={{}} to train it as the flow says"
    if stage.after is not None:
        raise ConfigError(f"{where}.trainor: without one its model learns nothing; {add}")
    if not stage.labels:
        raise ConfigError(f"{where}.trainor: a stage without labels is there to be trained; {add}")
    if stage.judge in (None, "classifier"):
        raise ConfigError(
            f"{where}.judge: an untrained classifier knows nothing; {add}, or judge its features "
            "with linear_probe or knn"
        )


@dataclass(frozen=True)
class Step:
    """One stage with one seed and one label budget.

    Attributes:
        name: of the stage.
        budget: None for a stage without labels.
        config: what an experiment of it is, without name, seed and source; without a model where
            nothing is trained, only judged.
        source: the step it builds on.
        key: hash of all that decides what comes out, seed aside.
    """

    name: str
    stage: Stage
    seed: int
    budget: Budget | None
    config: dict[str, Any]
    source: Step | None
    key: str

    @property
    def folder(self) -> str:
        """Its folder below that of the flow; the seeds share it."""
        middle = "" if self.budget is None else f"-{slug(self.budget)}"
        return f"{self.name}{middle}-{self.key[:8]}"

    @property
    def told(self) -> str:
        budget = "" if self.budget is None else f", {told(self.budget)}"
        return f"{self.name}{budget}, seed {self.seed}"


def steps(flow: FlowSettings, shared: Mapping[str, Any], data: Mapping[str, str]) -> Iterator[Step]:
    """All steps, each behind its source, seed by seed.

    Args:
        shared: the keys of the whole flow that an experiment takes.
        data: hash of each stage's data, by name of the stage.
    """
    for seed in flow.seeds:
        made: dict[tuple[str, str | None], Step] = {}
        for name, stage in flow.stages.items():
            for budget in flow.budgets if stage.labels else (None,):
                own = None if budget is None else slug(budget)
                source = None
                if stage.after is not None:
                    source = made.get((stage.after, own)) or made.get((stage.after, None))
                    if source is None:
                        raise ConfigError(
                            f"flow.stages.{name}.after: {stage.after} is trained once per label "
                            f"budget and {name} has none; write labels: true"
                        )
                config = config_of(stage, shared, budget)
                decides = {k: v for k, v in config.items() if k not in ELSEWHERE}
                key = digest(
                    [
                        decides,
                        [stage.judge, stage.checkpoint],
                        [_content(stage.init_from), _content(budget.ids if budget else None)],
                        source and source.key,
                        data[name],
                    ]
                )
                made[name, own] = Step(name, stage, seed, budget, config, source, key)
                yield made[name, own]


def config_of(
    stage: Stage, shared: Mapping[str, Any], budget: Budget | None = None
) -> dict[str, Any]:
    """The experiment of a stage: its own keys on top of the shared ones."""
    config: dict[str, Any] = dict(shared)
    for key in ("dataset", "model", "trainor", "validator"):
        own = getattr(stage, key)
        if own is not None:
            config[key] = merge(config.get(key) or {}, own)
    if budget is not None:
        config["budget"] = vars(replace(budget, unlabelled=stage.unlabelled)).copy()
    if stage.budget is not None:
        config["budget"] = merge(config.get("budget") or {}, stage.budget)
    if stage.init_from is not None:
        config["init_from"] = stage.init_from
    if not stage.trains:
        config["trainor"] = None
    return config


def _content(path: str | None) -> str | None:
    """A hash of a file, or of the checkpoints in a folder; the name where there is neither yet."""
    if path is None:
        return None
    place = Path(path).expanduser()
    files = sorted(place.glob("*.pth")) if place.is_dir() else [place]
    if not all(file.is_file() for file in files):
        return path
    made = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            made.update(hashlib.file_digest(stream, "sha256").digest())
    return made.hexdigest()[:16]


def told(budget: Budget) -> str:
    """A budget in words: 5 %, 52 images, 10 per class, labels.txt; with what else it says."""
    size = budget.ids or "100 %"
    if budget.fraction is not None:
        size = f"{100 * budget.fraction:g} %"
    elif budget.samples is not None:
        size = f"{budget.samples:,} images"
    elif budget.samples_per_class is not None:
        size = f"{budget.samples_per_class:,} per class"
    kept = [f"{name} {100 * share:g} %" for name, share in (budget.keep or {}).items()]
    kept += [] if budget.seed is None else [f"label seed {budget.seed}"]
    return f"{size}, {', '.join(kept)}" if kept else size


def slug(budget: Budget) -> str:
    """A budget as part of a file name."""
    size, _, rest = told(budget).partition(", ")
    words = size.replace(" %", "pc").replace(" images", "").replace(" per class", "each")
    safe = "".join(c if c.isalnum() or c == "." else "_" for c in words)
    return f"{safe}-{digest(rest)[:4]}" if rest else safe
