"""An experiment end to end: a checked config in, a run folder or results out. The wiring is here
and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors.settings import EnsemblorSettings, TrainorSettings, ValidatorSettings
from vilmedic_ssl.registry import load_plugins
from vilmedic_ssl.schema import Kind, build, complete, conform, plain, without_weights

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from vilmedic_ssl.data.loader import Loader
    from vilmedic_ssl.executors.features import Features
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
        overwrite: let a new training replace the files of the same name and seed.
        device: cuda, mps or cpu; null = the best there is.
        num_workers: processes that read images; null = one per spare core, at most four.
        plugins: modules that register third-party protos.
        dataset: data by proto.
        model: method by proto.
        trainor: training.
        validator: scores during training.
        ensemblor: scores, pictures and files afterwards.
    """

    name: str
    ckpt_dir: str = "ckpt"
    seed: int = 0
    ckpt: str | None = None
    overwrite: bool = False
    device: Literal["cuda", "mps", "cpu"] | None = None
    num_workers: int | None = None
    plugins: list[str] = ()  # type: ignore[assignment]
    dataset: Annotated[dict, Kind("data/datasets")]
    model: Annotated[dict, Kind("models")]
    trainor: TrainorSettings | None = None
    validator: ValidatorSettings = ValidatorSettings()
    ensemblor: EnsemblorSettings = EnsemblorSettings()

    def __post_init__(self) -> None:
        name = Path(self.name.strip())
        if name == Path() or name.is_absolute() or ".." in name.parts:
            raise ConfigError(f"name: {self.name!r} must be a folder name below ckpt_dir")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed: {self.seed}; write a whole number from 0 to 2147483647")
        if self.num_workers is not None and self.num_workers < 0:
            raise ConfigError(f"num_workers: {self.num_workers}; write 0 or more")

    @property
    def folder(self) -> Path:
        return Path(self.ckpt_dir) / self.name

    @property
    def workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        able = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        return max(0, min(4, len(able) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read, override and check a config; every default is filled in and nothing can be changed
    afterwards.

    Raises:
        ConfigError: whatever is wrong with it, with the key's full path and the closest known keys.
    """
    return yaml_config.freeze(check(yaml_config.load(path, overrides)))


def check(node: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain data, complete, or ConfigError."""
    load_plugins(conform(node.get("plugins") or [], list[str], "plugins"))
    checked = complete(node, Experiment, "")
    _experiment(checked)
    return checked


def _experiment(checked: dict[str, Any]) -> Experiment:
    """The typed top level; sections that name a proto stay mappings."""
    sections = {
        "trainor": TrainorSettings,
        "validator": ValidatorSettings,
        "ensemblor": EnsemblorSettings,
    }
    made = {
        k: build(checked[k], cls=c, where=k) if checked[k] else None for k, c in sections.items()
    }
    return Experiment(**{**checked, **made})


def _model(config: dict[str, Any], *, pretrained: bool = True) -> PretrainingModel:
    """The model; `pretrained=False` where a checkpoint, or chance, supplies all its weights."""
    node = config["model"] if pretrained else without_weights(config["model"])
    return build(node, where="model")


def train(config: Mapping[str, Any]) -> Path:
    """Train what a config describes, from scratch or from its `ckpt`; returns the run folder.

    Raises:
        UserError: wrong config, data or checkpoint.
        Diverged: the loss stopped being finite.
        Interrupted: a signal arrived; a checkpoint was written.
    """
    from vilmedic_ssl import dist
    from vilmedic_ssl.executors import checkpoint
    from vilmedic_ssl.executors.run import Run
    from vilmedic_ssl.executors.trainor import Trainor
    from vilmedic_ssl.executors.validator import Validator, check_metrics

    node = check(plain(config))
    experiment = _experiment(node)
    settings = experiment.trainor
    if settings is None:
        raise ConfigError("trainor: this section is required for training")
    metrics = experiment.validator.metrics or []
    lower = check_metrics(metrics, settings.early_stop_metric)
    device = dist.choose_device(experiment.device)
    dist.start(device)
    run = Run(experiment.folder, experiment.seed)
    content, old = None, []
    if experiment.ckpt:
        source = checkpoint.find(run.folder, experiment.ckpt, run.seed)
        content = checkpoint.read_run(source)
        run = Run(run.folder, content["seed"])
    else:
        old = _old_files(run, experiment.overwrite)
    console.say(
        f"run {run.folder}, seed {run.seed}, device {device.type}, {dist.world_size()} process(es)"
    )
    checkpoint.seed_everything(run.seed)
    model = _model(node, pretrained=content is None).to(device)
    train_loader, scored = _loaders(experiment, node, run, pin=device.type == "cuda")
    size = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    console.say(
        f"model {node['model']['proto']}: {size / 1e6:.2f} M parameters, {learned / 1e6:.2f} M "
        "learnable"
    )
    validator = Validator(scored, metrics, device)
    dist.on_main(run.create)
    kept = {**node, "ckpt": None, "overwrite": False, "seed": run.seed}
    trainor = Trainor(
        run,
        settings,
        model,
        train_loader,
        validator,
        lower_is_better=lower,
        config=kept,
        data={k: v.dataset.fingerprint() for k, v in {"train": train_loader, **scored}.items()},
        trained_on=train_loader.dataset.members(),
    )
    if content is not None:
        trainor.load(content, source)
        at = trainor.progress
        console.say(
            f"resumed from {source}: epoch {at.epoch}, step {at.step} of {trainor.total_steps}"
        )
        if at.step >= trainor.total_steps:
            console.say("already finished; raise trainor.epochs or max_steps to go on")
    dist.on_main(lambda: checkpoint.remove(old))
    run.save_config(kept)
    trainor.fit()
    console.say(f"done: {run.folder}")
    return run.folder


def _old_files(run: Any, overwrite: bool) -> list[Path]:
    """The checkpoints of an earlier training that this one replaces, once it can start.

    Raises:
        UserError: there are some and `overwrite` is false.
    """
    from vilmedic_ssl import dist
    from vilmedic_ssl.executors import checkpoint

    old: list[Path] = dist.on_main(
        lambda: [p for p in [run.last, *checkpoint.best_files(run.folder, run.seed)] if p.is_file()]
    )
    if old and not overwrite:
        raise UserError(
            f"{run.folder} already holds {old[0].name}: continue it with ckpt=last, choose another "
            "name= or seed=, or replace it with overwrite=true"
        )
    return old


def _loaders(
    experiment: Experiment, node: dict[str, Any], run: Any, *, pin: bool
) -> tuple[Loader, dict[str, Loader]]:
    """The training loader, and one per split of the validator.

    Whether images are grey or in colour is decided by the training split and written into `node`.
    """
    from vilmedic_ssl import dist
    from vilmedic_ssl.data.datasets.base import Context, pin_channels
    from vilmedic_ssl.data.loader import EpochBatches, Loader

    settings = experiment.trainor
    assert settings is not None
    ranks = dist.world_size()

    def loader(split: str, size: int, *, training: bool) -> Loader:
        context = Context(split=split, augment=True, run_dir=run.folder)
        dataset = build(node["dataset"], context, where="dataset")
        if min(size, len(dataset)) < ranks:
            raise UserError(
                f"split {split!r}: batches of {size} from {len(dataset)} images cannot be shared "
                f"by {ranks} processes"
            )
        sampler = EpochBatches(
            len(dataset),
            batch_size=size,
            seed=run.seed,
            shuffle=training,
            drop_last=training and settings.drop_last,
            rank=dist.rank(),
            ranks=ranks,
        )
        groups = f" of {len(set(dataset.patients)):,} patients" if dataset.patients else ""
        console.say(
            f"{split}: {len(dataset):,} images{groups}, {len(sampler)} batches of up to {size}"
        )
        workers = experiment.workers if training else min(1, experiment.workers)
        return Loader(dataset, sampler, workers=workers, pin_memory=pin)

    train_loader = loader("train", settings.batch_size * settings.grad_accu, training=True)
    if train_loader.dataset.patients is None:
        console.say(
            "patients are unknown: intervals will be over images, and splits made from them"
        )
    pin_channels(node["dataset"], getattr(train_loader.dataset, "files", None))
    size = experiment.validator.batch_size or settings.batch_size
    splits = dict.fromkeys(experiment.validator.splits)
    return train_loader, {split: loader(split, size, training=False) for split in splits}


def ensemble(config: Mapping[str, Any]) -> dict[str, float]:
    """Score trained checkpoints with the plug-ins of `ensemblor.post_processing`; returns what
    results.json holds.

    Raises:
        UserError: wrong config, data or checkpoint; none there.
    """
    from vilmedic_ssl.data.datasets.base import take_channels
    from vilmedic_ssl.executors import checkpoint
    from vilmedic_ssl.executors.ensemblor import (
        choose_checkpoints,
        headline,
        refuse_leaks,
        run_plugins,
        write_results,
    )
    from vilmedic_ssl.executors.run import read_log
    from vilmedic_ssl.report import write_report

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("ensembling runs in one process; start it with python, not torchrun")
    node = check(plain(config))
    experiment, folder = _experiment(node), _experiment(node).folder
    settings = experiment.ensemblor
    if not folder.is_dir():
        raise UserError(
            f"there is no run folder {folder}; train first, or correct ckpt_dir and name"
        )
    files = choose_checkpoints(folder, settings.mode, experiment.ckpt)
    contents = [checkpoint.read_run(path) for path in files]
    seed = contents[0]["seed"]
    console.say(f"ensembling {len(files)} checkpoint(s): {', '.join(path.name for path in files)}")
    tag = f"{Path(experiment.ckpt or settings.mode).stem}_{seed}"
    take_channels(node["dataset"], contents[0]["config"]["dataset"])
    features = _features(experiment, node, contents, files, tag)
    for split in settings.splits:
        console.say(f"{split}: {len(features.dataset(split)):,} images")
    for content, path in zip(contents, files, strict=True):
        refuse_leaks(content["trained_on"], features, path)
    if settings.post_processing:  # an unreadable image ends here, not in every plug-in
        for split in settings.splits:
            features.get(split)
    outcome = run_plugins(settings, features, folder / "post_processing")
    metric = contents[0]["config"]["trainor"]["early_stop_metric"]
    if files[0] in checkpoint.best_files(folder) and metric != "training_loss":
        outcome.results[f"validate/{metric}"] = checkpoint.score_in(files[0])
    write_results(folder, outcome.results)
    report = write_report(
        folder,
        title=f"{experiment.name}, {tag}",
        results=outcome.results,
        figures=outcome.figures,
        config=contents[0]["config"],
        log=read_log(folder / f"log_{seed}.jsonl"),
        card={split: features.dataset(split).card() for split in settings.splits},
        checkpoints=[path.name for path in files],
        failures=outcome.failures,
    )
    if table := headline(outcome.results):
        console.result(table)
    console.say(f"results {folder / 'results.json'}")
    console.result(f"report {report}")
    return outcome.results


def _features(
    experiment: Experiment,
    node: dict[str, Any],
    contents: list[dict[str, Any]],
    files: list[Path],
    tag: str,
) -> Features:
    """The models of some checkpoints, ready to be asked for features."""
    from vilmedic_ssl import dist
    from vilmedic_ssl.data.datasets.base import Context
    from vilmedic_ssl.executors import checkpoint
    from vilmedic_ssl.executors.features import Features

    device: torch.device = dist.choose_device(experiment.device)
    models = []
    for content, path in zip(contents, files, strict=True):
        model = _model(node, pretrained=False)
        checkpoint.load_weights(model, content["ema"] or content["model"], path)
        models.append(model.to(device).eval())

    def dataset(split: str) -> Any:
        context = Context(split=split, run_dir=experiment.folder)
        return build(node["dataset"], context, where="dataset")

    def untrained() -> PretrainingModel:
        checkpoint.seed_everything(contents[0]["seed"])
        return _model(node, pretrained=False).to(device).eval()

    return Features(
        dataset,
        models,
        untrained,
        splits=list(experiment.ensemblor.splits),
        tag=tag,
        seed=contents[0]["seed"],
        batch_size=experiment.ensemblor.batch_size,
        workers=experiment.workers,
        device=device,
    )
