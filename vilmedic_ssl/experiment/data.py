"""The data of an experiment: its splits, as the data itself or a split file divides it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.config import digest
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.schema import build

if TYPE_CHECKING:
    from vilmedic_ssl.data.datasets.base import MedicalDataset
    from vilmedic_ssl.experiment.settings import Experiment

FEW = 10  # one image more or less right then moves an accuracy by a tenth or more


def dataset_of(
    experiment: Experiment,
    node: Mapping[str, Any],
    split: str,
    *,
    augment: bool = False,
    run_dir: Path | None = None,
) -> MedicalDataset:
    """One split of an experiment's data, as the data or `split_file` divides it.

    Args:
        node: the checked config; its dataset part is what is built.
        augment, run_dir: as in `Context`.

    Raises:
        MissingSplit: neither the data nor the split file has it.
        UserError: the data is unreadable, or the split file was made for other data.
    """
    from vilmedic_ssl.data.datasets.base import Context

    context = Context(split=split, augment=augment, run_dir=run_dir)
    if experiment.split_file is None:
        return build(node["dataset"], context, where="dataset")
    from vilmedic_ssl.data.datasets.resplit import resplit
    from vilmedic_ssl.data.split_file import read_splits

    splits = read_splits(experiment.split_file)
    return resplit(node["dataset"], context, splits, fraction=experiment.train_fraction)


def pin_classes(model: dict[str, Any], dataset: MedicalDataset) -> None:
    """Write how many classes the training split has into a model that wants to know.

    Raises:
        UserError: it has none, or another number is written there.
    """
    if "classes" not in model:
        return
    found = len(dataset.label_names)
    if dataset.labels is None:
        raise UserError(
            f"model: {model['proto']} learns from labels, and this data has none; labels come from "
            "class folders, or from dataset.label"
        )
    if model["classes"] not in (None, found):
        raise UserError(
            f"model.classes: {model['classes']}, but the data has {found}; leave the key out"
        )
    model["classes"] = found


def take_classes(model: dict[str, Any], trained: Mapping[str, Any]) -> None:
    """A number of classes left open means what it meant in training."""
    if "classes" in model and model["classes"] is None:
        model["classes"] = trained.get("classes")


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
    else of the ids of the scored splits, and `split/train_fraction` where there is one.
    """
    from vilmedic_ssl.data.split_file import read_splits

    if experiment.split_file is None:
        return {"split/hash": digest({split: data.ids for split, data in datasets.items()})}
    told: dict[str, float | str] = {"split/hash": read_splits(experiment.split_file).hash}
    if experiment.train_fraction is not None:
        told["split/train_fraction"] = experiment.train_fraction
    return told


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
