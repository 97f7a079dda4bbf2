"""What cannot come out well is said before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vilmedic_ssl import console, dist, metrics
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.data.loader import Loader
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import gradient_cache
from vilmedic_ssl.executors.monitors import METRICS, learnable_from
from vilmedic_ssl.executors.schedules import SCHEDULES
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.executors.validator import Validator, to_device
from vilmedic_ssl.models.base import PretrainingModel

# Metrics that are a mean over findings, or classes, that train shows; accuracies count the others.
OF_FINDINGS, OF_CLASSES = ("probe", "balanced_accuracy", "auroc"), ("auroc",)


def refuse_single_images(
    model: PretrainingModel,
    loader: Loader,
    settings: TrainorSettings,
    chunk: int | None,
    cast: Callable[[], Any],
) -> None:
    """One image alone has no statistics for batch norm, and no other image to be compared with.

    Args:
        chunk: images per pass of one process; None = the whole batch.

    Raises:
        UserError: a batch of the training, or each of its passes, holds a single image, and the
            model cannot learn from that.
    """
    alone = min(map(len, loader.sampler.batches(1))) == 1
    if not alone and not (chunk == 1 and dist.world_size() == 1):
        return
    if alone and model.coupled:
        problem = "its loss compares the images of a batch"
    else:
        device = next(model.parameters()).device
        batch = to_device(loader.dataset.collate([loader.dataset[0]]), device)
        if gradient_cache.takes_one(model, batch, cast):
            return
        problem = "its batch norm needs the statistics of several images"
    where, remedy = _single(len(loader.dataset), settings, alone, model.forward_batch_size)
    raise UserError(
        f"{where} a single image, and {type(model).__name__} needs two: {problem}; {remedy}"
    )


def _single(
    images: int, settings: TrainorSettings, alone: bool, own: int | None
) -> tuple[str, str]:
    """Where a single image comes from, and what to write instead."""
    if alone and images == 1:
        return "the training split holds", "give it more images"
    if alone:
        return "trainor.batch_size: 1 makes batches of", "write trainor.batch_size=2 or more"
    if own == 1:
        return (
            "model.forward_batch_size: 1 makes passes of",
            "write model.forward_batch_size=2 or more",
        )
    return (
        "trainor.batch_size: 1 makes passes of",
        f"write trainor.batch_size=2 and trainor.grad_accu={max(1, settings.grad_accu // 2)}",
    )


def refuse_single_scores(
    model: PretrainingModel, loaders: Mapping[str, Loader], steering: Mapping[str, str | None]
) -> None:
    """The loss of single images is the same for every model, where it compares images.

    Args:
        loaders: of the validator, per split.
        steering: as of `refuse_undefined`.

    Raises:
        UserError: such a validation loss is to choose by; otherwise this is a warning.
    """
    for split, loader in loaders.items():
        # what classes set compares images; what instances set (`coupled`) is a sum over the batch
        if not type(model).coupled or max(map(len, loader.sampler.batches(0))) > 1:
            continue
        remedy = "write validator.batch_size=2 or more"
        if len(loader.dataset) == 1:
            remedy = f"give split {split!r} more images, for example with `vilmedic-ssl split`"
        sentence = (
            f"validation_loss says nothing, since batches of split {split!r} hold a single image "
            f"and the loss of {type(model).__name__} compares images; {remedy}"
        )
        key = next((key for key, name in steering.items() if name == "validation_loss"), None)
        if key is not None:
            raise UserError(f"{key}: {sentence}")
        console.warn(sentence)


def refuse_undefined(
    validator: Validator, steering: Mapping[str, str | None], train: MedicalDataset
) -> None:
    """A metric that no model can move: of a steering one this is the end, of others a warning.

    Args:
        steering: the keys that name a metric to choose by, and which.
        train: the training split, from which the online probe and classifiers learn.

    Raises:
        UserError: a steering metric is undefined, or the same for every model.
    """
    learnable = learnable_from(train)
    _tell_left_out(validator, train, learnable)
    for name in validator.names:
        metric = METRICS[name]
        read = {split: loader.dataset for split, loader in validator.loaders.items()}
        if metric.scores or name == "probe":
            read = {"train": train, **read}
        for split, dataset in read.items():
            if not (problem := _undefined(name, dataset, None if split == "train" else learnable)):
                continue
            sentence = f"{name} says nothing, since split {split!r} {problem}"
            key = next((key for key, chosen in steering.items() if chosen == name), None)
            if key is None:
                console.warn(f"validator.metrics: {sentence}")
                continue
            raise UserError(
                f"{key}: {sentence}; write {key}=validation_loss, or divide the data by patient "
                "and class, for example with `vilmedic-ssl split`"
            )


def _tell_left_out(
    validator: Validator, train: MedicalDataset, learnable: np.ndarray | None
) -> None:
    """Warn of classes or findings that train does not show, where a mean leaves them out."""
    if learnable is None or learnable.all() or not learnable.any():
        return
    findings = train.labels is not None and train.labels.ndim == 2
    means = [name for name in validator.names if name in (OF_FINDINGS if findings else OF_CLASSES)]
    if means:
        names = [str(n) for n, known in zip(train.label_names, learnable, strict=True) if not known]
        console.warn(
            f"validator.metrics: train has no image of {', '.join(names)}"
            f"{', or no other one' if findings else ''}, so the mean that {', '.join(means)} "
            f"{'is' if len(means) == 1 else 'are'} leaves out {len(names)} of {len(learnable)}"
        )


def _undefined(name: str, dataset: MedicalDataset, learnable: np.ndarray | None = None) -> str:
    """Why a metric says nothing on a split, as what follows the split's name; "" where it does.

    Args:
        learnable: (C,) bool, as `learnable_from` gives it, of a split that is scored.
    """
    if len(dataset) < 2:
        return "holds a single image"
    if not METRICS[name].labels or dataset.labels is None:
        return ""  # a missing label is refused by who reads it
    labels = np.asarray(dataset.labels)
    known = labels[metrics.labelled(labels)]
    if not len(known):
        return "has no labelled image"
    if labels.ndim == 2:
        both_C = np.array([len(np.unique(c[~np.isnan(c)])) > 1 for c in known.T])
        if not both_C.any():
            return "has no finding that is present in some images, absent in others"
        if name in OF_FINDINGS and learnable is not None and not (both_C & learnable).any():
            return "has no finding, present in some images and absent in others, that train shows"
        return ""
    classes = np.unique(known)
    if len(classes) < 2:
        return f"shows one class only ({dataset.label_names[int(classes[0])]})"
    if name in OF_CLASSES and learnable is not None and not learnable[classes.astype(int)].any():
        return "has no class that train shows"
    if name == "knn" and not metrics.knn_counted(labels, groups=dataset.patients).any():
        return "has no two classes with images of two patients each"
    return ""


def tell_never(
    settings: TrainorSettings, keys: Mapping[str, Any], *, epoch_steps: int, total: int
) -> None:
    """Warn of what the settings plan for a time after the end of the training.

    Args:
        keys: the arguments of the schedule, complete.
        epoch_steps, total: steps of an epoch, and of the training.
    """
    for sentence in never(settings, keys, epoch_steps=epoch_steps, total=total):
        console.warn(sentence)


def never(
    settings: TrainorSettings, keys: Mapping[str, Any], *, epoch_steps: int, total: int
) -> Iterator[str]:
    """What does not happen before the end, a sentence each; arguments as of `tell_never`."""
    last = -(-total // epoch_steps)  # the last epoch, from 1
    if settings.eval_start > last:
        yield (
            f"trainor.eval_start: {settings.eval_start}, but the training ends in epoch {last}, so "
            f"there is no evaluation and no best checkpoint; write trainor.eval_start={last}, or "
            "score it with ckpt=last"
        )
    where, schedule = "trainor.lr_decay_params", SCHEDULES[settings.lr_decay].__name__
    if "warmup" in schedule:
        yield from _long_warmup(where, schedule, keys, epoch_steps=epoch_steps, total=total)
    key = {"multistep": "milestones", "step": "step_size"}.get(schedule, "")
    drops: Any = {"multistep": keys.get(key), "step": [keys.get(key)]}.get(schedule, [])
    late = [epoch for epoch in drops if epoch * epoch_steps >= total]
    if late:
        yield (
            f"{where}.{key}: the training ends in epoch {last}, so the learning rate does not drop "
            f"after epoch {', '.join(map(str, late))}"
        )
    if schedule == "plateau":
        often = settings.eval_every_steps or settings.eval_every * epoch_steps
        first = max(settings.eval_start, settings.decay_metric_start, 1)
        count = max(0, -(-(total - (first - 1) * epoch_steps) // often))
        if (
            count < keys["patience"] + 3
        ):  # one to improve on, patience, one too many, one that gains
            yield (
                f"{where}.patience: {keys['patience']}, but the training has {count} evaluations "
                "that count, so the learning rate never drops; write a smaller one, or evaluate "
                "more often (trainor.eval_every_steps)"
            )


def _long_warmup(
    where: str, schedule: str, keys: Mapping[str, Any], *, epoch_steps: int, total: int
) -> Iterator[str]:
    by_steps = schedule == "linear_warmup_cosine"  # counts steps, whatever the key is called
    warmup = keys["warmup_epochs"] if by_steps else keys["warmup_steps"]
    if warmup is None:
        warmup = round(keys["warmup_epochs"] * epoch_steps)
    if warmup > total:
        key = "warmup_epochs" if by_steps else "warmup_steps"
        yield (
            f"{where}: a warm-up of {warmup} steps is longer than the training of {total}, so the "
            f"learning rate never reaches trainor.optim_params.lr; write {where}.{key}="
            f"{max(1, total // 10)}, or train longer"
        )
    end = keys.get("max_epochs")
    if end is not None and end < 0.9 * total:
        yield (
            f"{where}.max_epochs: {end} counts steps, and the training has {total}, so from step "
            f"{end} on the learning rate stays at eta_min; write {where}.max_epochs={total}"
        )
