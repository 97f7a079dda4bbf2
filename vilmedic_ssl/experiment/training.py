"""Training, from a config to a run folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.experiment.audit import audit_before, keep_audit
from vilmedic_ssl.experiment.data import (
    dataset_of,
    hashes_of,
    pin_classes,
    take_classes,
    warn_if_few,
)
from vilmedic_ssl.experiment.settings import Experiment, check, model_of, refuse_sweep, typed
from vilmedic_ssl.experiment.teacher import Teacher, pin_teacher
from vilmedic_ssl.experiment.texts import (
    pin_text,
    refuse_unread,
    settle_flips,
    take_text,
    tell_floor,
    texts_for,
)
from vilmedic_ssl.experiment.vae import pin_vae
from vilmedic_ssl.schema import plain

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from vilmedic_ssl.data.datasets.base import MedicalDataset
    from vilmedic_ssl.data.loader import Loader
    from vilmedic_ssl.data.texts import Texts
    from vilmedic_ssl.executors.dalle_files import VAEFile
    from vilmedic_ssl.executors.init_weights import Start
    from vilmedic_ssl.executors.run import Run
    from vilmedic_ssl.executors.trainor import Trainor
    from vilmedic_ssl.models.base import PretrainingModel

    Origin = Start | Teacher | VAEFile


def train(
    config: Mapping[str, Any],
    *,
    audit: bool = True,
    rehearse: bool = False,
    sweep_metric: str | None = None,
    results: Path | None = None,
) -> Path:
    """Train what a config describes, from scratch or from its `ckpt`; returns the run folder. A
    config with a `flow` has all its stages trained and compared.

    Args:
        audit: false = the caller has audited this data.
        rehearse: true = do all but the steps, and save the weights that they would begin with.
        sweep_metric: of the sweep that this is a trial of.
        results: folder of a sweep that throws the run away: the audit writes there, so that what it
            advises can be followed, and nothing is said of scoring the run.

    Raises:
        UserError: wrong config, data or checkpoint; another process is at work on the run.
        Leak: the audit found one that is not allowed.
        Diverged: the loss stopped being finite.
        Interrupted: a signal arrived; a checkpoint was written.
    """
    from vilmedic_ssl import dist
    from vilmedic_ssl.executors.run import Run

    if "flow" in config:
        from vilmedic_ssl.experiment.flow import run_flow

        return run_flow(config)
    node = check(plain(config))
    experiment = typed(node)
    refuse_sweep(experiment)
    if experiment.trainor is None:
        raise ConfigError("trainor: this section is required for training")
    device = dist.choose_device(experiment.device)
    dist.start(device)
    run = Run(experiment.folder, _seed(experiment))
    with run.owned("trained"):
        experiment = replace(experiment, seed=run.seed)
        return _train(
            experiment,
            node,
            run,
            device,
            audit=audit,
            rehearse=rehearse,
            sweep_metric=sweep_metric,
            results=results,
        )


def _seed(experiment: Experiment) -> int:
    """The seed of a config, or of the file that it resumes from."""
    from vilmedic_ssl.executors import checkpoint

    if experiment.ckpt in (None, "last", "best"):
        return experiment.seed
    seed: int = checkpoint.read_run(checkpoint.find(experiment.folder, experiment.ckpt))["seed"]
    return seed


def _train(
    experiment: Experiment,
    node: dict[str, Any],
    run: Run,
    device: torch.device,
    *,
    audit: bool,
    rehearse: bool,
    sweep_metric: str | None,
    results: Path | None,
) -> Path:
    """`train`, in a run folder that nobody else writes."""
    from vilmedic_ssl import dist
    from vilmedic_ssl.data.advice import advise_on
    from vilmedic_ssl.data.tokenizers import as_data
    from vilmedic_ssl.executors import checkpoint
    from vilmedic_ssl.executors.monitors import (
        check_metrics,
        check_pairs,
        check_scores,
        learnable_from,
    )
    from vilmedic_ssl.executors.preflight import refuse_single_scores, refuse_undefined
    from vilmedic_ssl.executors.reconstructions import Gallery
    from vilmedic_ssl.executors.trainor import Trainor
    from vilmedic_ssl.executors.validator import Validator
    from vilmedic_ssl.nets.freezing import describe

    settings = experiment.trainor
    assert settings is not None
    metrics = experiment.validator.metrics or []
    lower = check_metrics(metrics, settings.early_stop_metric)
    content = source = None
    if experiment.ckpt:
        source = checkpoint.find(run.folder, experiment.ckpt, run.seed)
        content = checkpoint.read_run(source, whole=True)
    goes_on = source is not None and source.parent.resolve() == run.folder.resolve()
    old = [] if goes_on else _old_files(run, experiment.overwrite)
    console.say(
        f"run {run.folder}, seed {run.seed}, device {device.type}, {dist.world_size()} process(es)"
    )
    audit &= experiment.audit is not None
    findings = audit_before(experiment, node, results or run.folder, replace=False) if audit else []
    texts = texts_for(node, content)
    if texts is not None:
        settle_flips(node)
    train_set = dataset_of(experiment, node, "train", augment=True, texts=texts)
    if content is not None:
        take_classes(node["model"], content["config"]["model"])
        take_text(node, content, texts)
    elif texts is not None:
        pin_text(node, texts, train_set.said or [])
    teacher = vae = None
    if content is None:
        teacher = pin_teacher(node["model"], train_set, seed=run.seed)
        vae = pin_vae(node)
    pin_classes(node["model"], train_set)
    checkpoint.seed_everything(run.seed)
    model = model_of(node, pretrained=content is None).to(device)
    start = _start(model, node) if content is None else None
    if teacher is not None:
        teacher.load(model)
    if vae is not None:
        vae.load(model.get_submodule("dalle.vae"))
    origins = [origin for origin in (start, teacher, vae) if origin is not None]
    if dist.rank():  # the processes share their weights, not the draws of dropout
        checkpoint.seed_everything(run.seed + dist.rank())
    check_pairs(metrics, 2 if texts is not None else model.views)
    check_scores(metrics, classifies=model.classifies, encodes=hasattr(model, "codes"))
    if train_set.views is not None:
        model.refuse_views(train_set.views, _views_key(node["dataset"]))
        model.refuse_images(train_set[0]["images"])
    for sentence in advise_on(train_set):
        console.warn(sentence)
    refuse_unread(train_set)
    if texts is not None and hasattr(model, "loss"):
        tell_floor(train_set, settings.images_per_step, model.loss)
    train_loader, scored = _loaders(
        experiment, node, run, train_set, texts, pin=device.type == "cuda"
    )
    size = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    console.say(
        f"model {node['model']['proto']}: {size / 1e6:.2f} M parameters, {learned / 1e6:.2f} M "
        "learnable"
    )
    if frozen := describe(model, model.parts()):
        console.say(frozen)
    validator = Validator(scored, metrics, device, learnable=learnable_from(train_set))
    steering = {
        "sweep.metric": sweep_metric,
        "trainor.early_stop_metric": settings.early_stop_metric,
    }
    refuse_undefined(validator, steering, train_set)
    refuse_single_scores(model, scored, steering)
    gallery = None
    if number := experiment.validator.reconstructions:
        shown = scored[experiment.validator.splits[0]].dataset
        gallery = Gallery(model, shown, number, run.folder, run.seed)
    kept = {**node, "ckpt": None, "overwrite": False, "seed": run.seed}
    trainor = Trainor(
        run,
        settings,
        model,
        train_loader,
        validator,
        lower_is_better=lower,
        config=kept,
        data=hashes_of(
            experiment, {k: v.dataset for k, v in {"train": train_loader, **scored}.items()}
        ),
        kept={
            "trained_on": _seen(train_loader.dataset, content, origins),
            "labels_of": _labels_of(experiment, model, train_set, content, origins),
            "label_names": _names(train_set, content, teacher),
            "tokenizer": None if texts is None else as_data(texts.tokenizer),
        },
        gallery=gallery,
    )
    if results is None:
        trainor.tell_never()
    if content is not None:
        trainor.load(content, source)
        at = trainor.progress
        console.say(
            f"resumed from {source}: epoch {at.epoch}, step {at.step} of {trainor.total_steps}"
        )
        if over := trainor.over():  # what lies there is that of the steps that were made
            console.say(f"already finished: {over} to go on")
            return run.folder
    if audit:
        dist.on_main(lambda: keep_audit(findings, results or run.folder, run.seed))
    dist.on_main(lambda: checkpoint.remove(old))
    if start is not None:
        dist.on_main(lambda: start.write(run.init_file))
    run.save_config(kept)
    if rehearse:
        _try(trainor, train_set)
        trainor.save()
        return run.folder
    trainor.fit()
    dist.gather_objects(None)  # none leaves while another still talks to it
    if results is None:
        _tell_end(run, settings.early_stop_metric)
    return run.folder


def _tell_end(run: Run, metric: str) -> None:
    """How to score what was trained."""
    from vilmedic_ssl.executors import checkpoint

    command = shlex.join(["vilmedic-ssl", "ensemble", str(run.config_file)])
    if checkpoint.best_files(run.folder, run.seed):
        console.say(f"done: {run.folder}; score it with {command}")
    else:
        console.say(
            f"done: {run.folder}, without a best checkpoint, since no evaluation gave a {metric}; "
            f"score the last one with {command} ckpt=last"
        )


def _views_key(dataset: Mapping[str, Any]) -> str:
    """The key that sets the number of views, which the transform stands beside."""
    for block in ("transform", "image"):
        if isinstance(dataset.get(block), Mapping):
            return f"dataset.{block}.views"
    return "dataset.views"


def _try(trainor: Trainor, dataset: MedicalDataset) -> None:
    """Two images through the network, which is put into evaluation.

    Raises:
        UserError: it cannot take them.
    """
    import torch

    from vilmedic_ssl.executors.validator import to_device

    few = dataset.collate([dataset[i, i] for i in range(min(2, len(dataset)))])
    trainor.model.eval()
    try:
        with torch.no_grad(), trainor.cast():
            trainor.model(**to_device(few, trainor.device), rows_only=True)
    except RuntimeError as error:
        raise UserError(
            f"the network cannot take these images ({str(error).splitlines()[0]}); change `model` "
            "or the sizes and channels in `dataset`"
        ) from error


def _start(model: PretrainingModel, node: Mapping[str, Any]) -> Start | None:
    """Fill a new model with the weights that `init_from` names, if it does."""
    from vilmedic_ssl.executors.init_weights import start_from

    if node["init_from"] is None:
        return None
    start = start_from(model, node["init_from"], seed=node["seed"])
    console.say(start.describe())
    return start


def _seen(
    dataset: MedicalDataset, content: Mapping[str, Any] | None, origins: Sequence[Origin]
) -> Tensor:
    """The images that the weights have learned from: those of this training, of the weights it
    started from, of its teacher or VAE; a checkpoint that is resumed remembers the others.
    """
    import torch

    before = [] if content is None else [content["trained_on"]]
    before += [origin.trained_on for origin in origins]
    members = dataset.members()
    return torch.cat([members, *before]).unique() if before else members


def _labels_of(
    experiment: Experiment,
    model: PretrainingModel,
    dataset: MedicalDataset,
    content: dict[str, Any] | None,
    origins: Sequence[Origin],
) -> Tensor:
    """The images whose labels the weights have learned from, or were chosen by, gathered as `_seen`
    does.
    """
    import torch

    from vilmedic_ssl.data.budget_rows import labelled_members
    from vilmedic_ssl.executors import checkpoint

    taken = "labels" in (*model.takes, *model.may_take) or _steered_by_labels(experiment)
    known = [labelled_members(dataset) if taken else torch.empty(0, dtype=torch.int64)]
    known += [] if content is None else [checkpoint.labels_of(content)]
    known += [origin.labels_of for origin in origins]
    return torch.cat(known).unique()


def _names(
    dataset: MedicalDataset, content: dict[str, Any] | None, teacher: Teacher | None
) -> list[str]:
    """Names of the classes: of the data's, or without labels those of the teacher."""
    from vilmedic_ssl.executors import checkpoint

    if dataset.labels is not None:
        return list(map(str, dataset.label_names))
    known = [] if content is None else checkpoint.names_of(content)
    return known if teacher is None else teacher.label_names


def _steered_by_labels(experiment: Experiment) -> bool:
    """True when labels of train decide which weights are best: the online probe learns them, any
    other metric of labels reads them where the validator scores `train`.
    """
    from vilmedic_ssl.data.splits import TRAIN
    from vilmedic_ssl.executors.monitors import METRICS

    assert experiment.trainor is not None
    name = experiment.trainor.early_stop_metric
    read = name in METRICS and METRICS[name].labels and TRAIN in experiment.validator.splits
    return read or name == "probe"


def _old_files(run: Run, overwrite: bool) -> list[Path]:
    """What an earlier training left that this one replaces, once it can start.

    Raises:
        UserError: there are checkpoints and `overwrite` is false.
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
    drawn = run.folder.glob(f"reconstructions/*_{run.seed}.png")
    return [*old, run.init_file, run.log_file, *drawn]


def _classes(dataset: MedicalDataset) -> np.ndarray:
    """The class of each training image, for balanced sampling.

    Raises:
        UserError: several findings per image, or images without a class.
    """
    labels = dataset.labels
    if labels is not None and labels.ndim == 1 and (labels >= 0).all():
        return labels
    problem = "this data has no labels"
    if labels is not None:
        problem = (
            "this data has several findings per image, which cannot all come equally often"
            if labels.ndim == 2
            else "some training images have no label; leave them out with budget.unlabelled=drop"
        )
    raise UserError(
        f"trainor.sampling: balanced needs one class per image, and {problem}; or "
        "write trainor.sampling=shuffle"
    )


def _loaders(
    experiment: Experiment,
    node: dict[str, Any],
    run: Run,
    train_set: MedicalDataset,
    texts: Texts | None,
    *,
    pin: bool,
) -> tuple[Loader, dict[str, Loader]]:
    """The training loader, and one per split of the validator.

    Whether images are grey or in colour is decided by the training split and written into `node`.
    """
    from vilmedic_ssl import dist
    from vilmedic_ssl.data.images import pin_channels
    from vilmedic_ssl.data.loader import EpochBatches, Loader

    settings = experiment.trainor
    assert settings is not None
    ranks = dist.world_size()

    def loader(dataset: MedicalDataset, size: int, *, training: bool) -> Loader:
        split = dataset.split
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
            classes=_classes(dataset) if training and settings.sampling == "balanced" else None,
            rank=dist.rank(),
            ranks=ranks,
        )
        groups = f" of {len(set(dataset.patients)):,} patients" if dataset.patients else ""
        console.say(
            f"{split}: {len(dataset):,} images{groups}, {len(sampler)} batches of up to {size}"
        )
        if not training:
            warn_if_few(split, len(dataset))
        workers = experiment.workers if training else min(1, experiment.workers)
        return Loader(dataset, sampler, workers=workers, pin_memory=pin)

    train_loader = loader(train_set, settings.images_per_step, training=True)
    if train_loader.dataset.patients is None:
        console.say(
            "patients are unknown: intervals will be over images, and splits made from them"
        )
    pin_channels(node["dataset"], getattr(train_loader.dataset, "files", None))
    size = experiment.validator.batch_size or settings.batch_size
    scored = {}
    for split in dict.fromkeys(experiment.validator.splits):
        dataset = dataset_of(experiment, node, split, augment=True, texts=texts, scored=True)
        refuse_unread(dataset)
        scored[split] = loader(dataset, size, training=False)
    return train_loader, scored
