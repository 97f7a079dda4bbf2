"""The trained classifier that a model learns from: found, described in the config, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.registry import find
from vilmedic_ssl.schema import without_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vilmedic_ssl.data.datasets.base import MedicalDataset

KEYS = ("cnn", "projection", "selector", "classes", "task")  # what its scores depend on
OWN = "teacher."  # a teacher's own teacher is left behind


@dataclass(frozen=True)
class Teacher:
    """A checkpoint of a classifier.

    Attributes:
        source: the file; weights: of the classifier in it, the moving average where there is one.
        trained_on: members of the images it has learned from, (N,) int64; labels_of: of those
            whose labels it has.
        label_names: of its classes; empty where it does not know them.
    """

    source: Path
    weights: dict[str, Tensor]
    trained_on: Tensor
    labels_of: Tensor
    label_names: list[str]

    def load(self, model: nn.Module) -> None:
        """Fill the teacher inside a model."""
        from vilmedic_ssl.executors import checkpoint

        checkpoint.load_weights(model.get_submodule("teacher"), self.weights, self.source)
        console.say(f"teacher {self.source}, frozen; its weights are kept with the student's")


def pin_teacher(
    model: dict[str, Any], dataset: MedicalDataset, *, seed: int | None = None
) -> Teacher | None:
    """Put the teacher's model keys where a model of a new training names its file; None for models
    without a teacher.

    Args:
        seed: whose checkpoint is taken from a folder with those of several seeds.

    Raises:
        UserError: no such file; no classifier in it; other classes than the data has; a folder
            with several seeds, and not this one.
    """
    from vilmedic_ssl.executors import checkpoint

    if "teacher" not in model:
        return None
    name = model["teacher"]
    if not isinstance(name, str):
        raise UserError(
            "model.teacher: a new training reads the teacher's weights from a file; write "
            "model.teacher=FOLDER, the run folder of a Classifier, or one of its checkpoints"
        )
    source = Path(name).expanduser()
    if source.is_dir():
        source = checkpoint.best_or_last(source, seed, where="model.teacher")
    content = checkpoint.read_run(source)
    keys = _classifier(content["config"]["model"], source)
    label_names = checkpoint.names_of(content)
    _refuse_others(keys, label_names, dataset, source)
    model["teacher"] = without_weights(keys)
    weights = content["ema"] or content["model"]
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(OWN)}
    return Teacher(source, own, content["trained_on"], checkpoint.labels_of(content), label_names)


def _classifier(model: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The keys that make the classifier of a checkpoint, whatever it was trained with."""
    from vilmedic_ssl.models.classifier import Classifier
    from vilmedic_ssl.models.distillation import Distillation

    if find(model["proto"], folder="models", where="model.teacher") in (Classifier, Distillation):
        return {"proto": "Classifier", **{key: model[key] for key in KEYS if key in model}}
    raise UserError(
        f"model.teacher: {source} holds a {model['proto']}, which gives no class scores; name a "
        "Classifier or a Distillation, for example one fine-tuned from it with init_from"
    )


def _refuse_others(
    keys: dict[str, Any], names: list[str], dataset: MedicalDataset, source: Path
) -> None:
    """Raises:
    UserError: the data has other classes than a teacher knows, or another order of them, or
        findings instead of classes.
    """
    if dataset.labels is None:
        return
    several, found = dataset.labels.ndim == 2, len(dataset.label_names)
    if keys.get("task") is None:  # of a checkpoint from before there were tasks
        keys["task"] = "findings" if several else "classes"
    told = "findings" if several else "classes"
    knows = "findings" if keys["task"] == "findings" else "classes"
    if (keys["classes"], knows) != (found, told):
        raise UserError(
            f"model.teacher: {source} tells {keys['classes']} {knows} apart, this data has {found} "
            f"{told}; take a teacher that was trained for them"
        )
    here = list(dataset.label_names)
    if names and names != here:
        i = next(i for i, (a, b) in enumerate(zip(names, here, strict=True)) if a != b)
        order = "the same in another order" if sorted(names) == sorted(here) else "other ones"
        raise UserError(
            f"model.teacher: {source} was trained for the {told} {', '.join(names)}, this data has "
            f"{order}: number {i} is {names[i]} there and {here[i]} here; name and order them as "
            "there, or take a teacher that was trained for these"
        )
