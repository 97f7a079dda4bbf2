"""The data of an experiment: its splits, as the data itself or a split file divides it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.config import digest
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.experiment.texts import spoken
from vilmedic_ssl.registry import find
from vilmedic_ssl.schema import build

if TYPE_CHECKING:
    import numpy as np

    from vilmedic_ssl.data.datasets.base import Context, MedicalDataset
    from vilmedic_ssl.data.texts import Texts
    from vilmedic_ssl.experiment.settings import Experiment

FEW = 10  # one image more or less right then moves an accuracy by a tenth or more


def dataset_of(
    experiment: Experiment,
    node: Mapping[str, Any],
    split: str,
    *,
    augment: bool = False,
    texts: Texts | None = None,
    scored: bool = False,
) -> MedicalDataset:
    """One split of an experiment's data, as the data or `split_file` divides it; of the training
    split what `budget` leaves.

    Args:
        node: the checked config; its dataset part is what is built.
        augment, texts: as in `Context`; images whose report says nothing are then left out.
        scored: random views for scores, so that images without labels are left out by any budget,
            as they are without `augment`.

    Raises:
        MissingSplit: neither the data nor the split file has it.
        UserError: the data is unreadable, the split file was made for other data, or the budget
            asks for what is not there.
    """
    from vilmedic_ssl.data.datasets.base import Context
    from vilmedic_ssl.data.splits import TRAIN

    settle_pixels(node)
    whole = _divided(experiment, node, Context(split=split, augment=augment, texts=texts))
    tell_unknown(whole)
    if texts is not None:
        whole = spoken(whole, node["model"]["proto"], train=augment)
    if split != TRAIN or experiment.budget is None:
        return whole
    from vilmedic_ssl.data.datasets.part import budgeted

    seed, scored = experiment.seed, scored or not augment
    return budgeted(whole, experiment.budget, seed=seed, scored=scored)


def _divided(experiment: Experiment, node: Mapping[str, Any], context: Context) -> MedicalDataset:
    if experiment.split_file is None:
        return build(node["dataset"], context, where="dataset")
    from vilmedic_ssl.data.datasets.resplit import resplit
    from vilmedic_ssl.data.split_file import read_splits

    splits = read_splits(experiment.split_file)
    return resplit(node["dataset"], context, splits, fraction=experiment.train_fraction)


def tell_unknown(dataset: MedicalDataset) -> None:
    """Say once how many images of a split have no patient, where others do."""
    from vilmedic_ssl.data.patients import count_unknown

    if unknown := count_unknown(dataset.patients):
        _warn_once(
            f"{dataset.split}: {unknown:,} of {len(dataset):,} images have no patient: each counts "
            "as a patient of its own"
        )


@cache
def _warn_once(text: str) -> None:
    """A split is built several times in a run."""
    console.warn(text)


def settle_pixels(node: Mapping[str, Any]) -> None:
    """A model that draws images wants them as they are: no mean is taken off them.

    Raises:
        ConfigError: the config normalises them.
    """
    name = (node.get("model") or {}).get("proto")  # a flow's data has no model of its own
    if name is None or not getattr(find(name, folder="models"), "pixels", False):
        return
    home = node["dataset"]
    owner = next((home[k] for k in ("image", "transform") if isinstance(home.get(k), dict)), home)
    for key, plain in (("mean", 0.0), ("std", 1.0)):
        if key in owner and set(owner[key] or [plain]) != {plain}:
            raise ConfigError(
                f"dataset: {key} {owner[key]}, but {name} takes images from 0 to 1 as they "
                f"are; leave {key} out"
            )
        owner[key] = [plain]


def pin_classes(model: dict[str, Any], dataset: MedicalDataset) -> None:
    """Write what the training split says of classes into a model that wants to know: how many there
    are, its `task`, and `balanced` class weights.

    Raises:
        UserError: it has no labels, or something else is written there.
    """
    if "classes" not in model:
        return
    if dataset.labels is None and not _taught(model):
        raise UserError(
            f"model: {model['proto']} learns from labels, and this data has none; labels come from "
            "class folders, or from dataset.label"
        )
    if dataset.labels is None:
        model["classes"] = model["teacher"]["classes"]
        task = model["teacher"].get("task")
        model["task"] = "classes" if task == "ordinal" else task  # an order is taught as classes
        return
    found = len(dataset.label_names)
    if model["classes"] not in (None, found):
        raise UserError(
            f"model.classes: {model['classes']}, but the data has {found}; leave the key out"
        )
    model["classes"] = found
    several = dataset.labels.ndim == 2
    if "task" in model:
        task = model["task"] = model["task"] or ("findings" if several else "classes")
        if (task == "findings") != several:
            kind = "several findings per image" if several else "one class per image"
            raise UserError(f"model.task: {task}, but the data has {kind}; leave the key out")
    loss = model.get("loss")
    if isinstance(loss, dict) and loss.get("class_weights") == "balanced":
        loss["class_weights"] = balanced_weights(dataset.labels, found)


def _taught(model: Mapping[str, Any]) -> bool:
    """True when a teacher stands in for all labels."""
    return isinstance(model.get("teacher"), Mapping) and model["loss"]["alpha"] == 1


def balanced_weights(labels: np.ndarray, classes: int) -> list[float]:
    """What makes classes count alike: images / (classes * images of the class), over those whose
    class is known; of findings absent / present. 0 for a class without images.

    Args:
        labels: (N,) int64, -1 = unknown; or (N, C) in {0, 1, nan = unknown}.
    """
    import numpy as np

    if labels.ndim == 2:
        above_C, below_C = np.nansum(labels == 0, axis=0), np.nansum(labels == 1, axis=0)
    else:
        known_N = labels[labels >= 0]
        below_C = classes * np.bincount(known_N, minlength=classes)
        above_C = np.full(classes, len(known_N))
    return [float(a / b) if b else 0.0 for a, b in zip(above_C, below_C, strict=True)]


def take_classes(model: dict[str, Any], trained: Mapping[str, Any]) -> None:
    """What a config leaves open, or names from outside, means what it meant in training: classes,
    task, balanced class weights, the teacher, the sizes of a VAE and of what reads its codes.
    """
    for block in ("vae", "dalle"):
        if isinstance(model.get(block), Mapping):
            known = trained.get(block) or {}
            given = model[block].items()
            model[block] = {k: known.get(k) if v is None else v for k, v in given}
    for key in ("classes", "task"):
        if key in model and model[key] is None:
            model[key] = trained.get(key)
    if "teacher" in model and not isinstance(model["teacher"], Mapping):
        model["teacher"] = trained.get("teacher")
    loss, then = model.get("loss"), trained.get("loss")
    if isinstance(loss, dict) and loss.get("class_weights") == "balanced":
        loss["class_weights"] = (then or {}).get("class_weights")


def warn_if_few(split: str, images: int) -> None:
    """A split that gives numbers without meaning gives them silently otherwise."""
    if images < FEW:
        console.warn(
            f"{split}: {images} image{'s' * (images != 1)}, too few for its loss and scores to "
            "mean anything; give it more, for example with `vilmedic-ssl split`"
        )


def hashes_of(experiment: Experiment, datasets: Mapping[str, MedicalDataset]) -> dict[str, str]:
    """What a checkpoint remembers of its data: a hash per split, and that of the split file."""
    from vilmedic_ssl.data.split_file import read_splits

    file = experiment.split_file
    told = {} if file is None else {"split_file": read_splits(file).hash}
    return told | {split: dataset.fingerprint() for split, dataset in datasets.items()}


def division_of(
    experiment: Experiment, datasets: Mapping[str, MedicalDataset]
) -> dict[str, float | str]:
    """What results say about the division they were made on: `split/hash`, of the split file or
    else of the ids of the scored splits, whatever the label budget, and `split/train_fraction`
    where there is one.
    """
    from vilmedic_ssl.data.datasets.part import Part
    from vilmedic_ssl.data.split_file import read_splits

    if experiment.split_file is None:
        homes = {k: data.home if isinstance(data, Part) else data for k, data in datasets.items()}
        return {"split/hash": digest({split: data.ids for split, data in homes.items()})}
    told: dict[str, float | str] = {"split/hash": read_splits(experiment.split_file).hash}
    if experiment.train_fraction is not None:
        told["split/train_fraction"] = experiment.train_fraction
    return told


def budget_of(experiment: Experiment, train: MedicalDataset | None) -> dict[str, float | str]:
    """What results say about the label budget, where there is one: `split/budget` in words, and of
    the training split in its evaluation view `split/budget_images` and `split/budget_hash`.
    """
    if experiment.budget is None:
        return {}
    told: dict[str, float | str] = {"split/budget": experiment.budget.words(experiment.seed)}
    if train is not None:
        told["split/budget_images"] = len(train)
        told["split/budget_hash"] = digest(train.ids)
    return told


def warn_of_another_budget(
    experiment: Experiment, content: Mapping[str, Any], source: Path
) -> None:
    """Say so when plug-ins will learn from other labels than the model of a checkpoint did."""
    from vilmedic_ssl.data.budget import Budget

    then = content["config"].get("budget")
    if then is None:
        return
    words = Budget(**then).words(content["seed"])
    now = experiment.budget and experiment.budget.words(experiment.seed)
    if now != words:
        console.warn(
            f"{source.name} was trained with the budget {words}; plug-ins that learn from labels "
            f"of train see {'those of ' + now if now else 'all of them'} here, and the same ones "
            f"with {source.parent}/config_{content['seed']}.yml"
        )


def refuse_another_division(
    experiment: Experiment, content: Mapping[str, Any], source: Path
) -> None:
    """A checkpoint is scored on the division it was trained on, or on other data.

    Trained by a split file and scored by another one: refused when any image of the new file was
    trained on. Trained without one: refused when a training image stands outside the new training
    split. Scored without one: a warning; that no scored image was trained on is checked anyway.

    Raises:
        UserError: refused.
    """
    import torch

    from vilmedic_ssl.data.datasets.resplit import members_of
    from vilmedic_ssl.data.split_file import read_splits

    then = content["data"].get("split_file")
    if experiment.split_file is None:
        if then is not None:
            console.warn(
                f"{source.name} was trained with the split file of hash {then}; this scores it on "
                f"the data's own splits, {source.parent}/config_{content['seed']}.yml on those of "
                "the file"
            )
        return
    now = read_splits(experiment.split_file)
    forbidden = [row[1] for row in now.rows if then is not None or row[2] != "train"]
    if now.hash == then or not torch.isin(members_of(forbidden), content["trained_on"]).any():
        return
    raise UserError(
        f"{source} was trained with {f'the split file of hash {then}' if then else 'no split file'}"
        f", this config names {now.path} of hash {now.hash}; give "
        f"{source.parent}/config_{content['seed']}.yml as the config, or train with this file"
    )
