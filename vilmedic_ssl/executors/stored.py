"""What a checkpoint stores beside its weights may come from a stranger: its form is checked before
anything is made of it.

What is made of it afterwards names nothing outside the file: no path is opened, nothing fetched and
no module imported because a stored config says so. `sealed` takes what could from a model's keys;
datasets, plug-ins and folders of a stored config are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.progress import Progress
from vilmedic_ssl.schema import without_weights

BLOCKS = ("cnn", "encoder", "vae", "dalle", "loss", "teacher")  # keys of a model that hold keys
OUTSIDE = ("proto", "ckpt")  # of a text encoder and of a VAE: where weights once came from


def refuse_malformed(content: Mapping[str, Any], path: Path, *, whole: bool = False) -> None:
    """Raises:
    UserError: an entry of a checkpoint of a run is of another kind than training writes; with
        `whole` also one that only scoring and further training read.
    """
    wrong = [entry for entry, is_right in _form(content).items() if not is_right]
    if whole and not wrong:
        wrong = [entry for entry, is_right in _form_of_state(content).items() if not is_right]
    if wrong:
        raise UserError(
            f"{path} is not a checkpoint that training wrote: its entry {wrong[0]!r} is of another "
            "kind; take another file"
        )


def _form(content: Mapping[str, Any]) -> dict[str, bool]:
    """Entry -> true where it is of its kind."""
    config = content["config"]
    model = config.get("model") if isinstance(config, Mapping) else None
    proto = model.get("proto") if isinstance(model, Mapping) else None
    dataset = config.get("dataset", {}) if isinstance(config, Mapping) else None
    tokenizer, names = content.get("tokenizer"), content.get("label_names")
    return {
        "config.model.proto": isinstance(proto, str),
        "config.model": isinstance(model, Mapping)
        and all(isinstance(model.get(block), Mapping | None) for block in BLOCKS),
        "config.dataset": isinstance(dataset, Mapping),
        "seed": content["seed"] is None or type(content["seed"]) is int,
        "model": _are_tensors(content["model"]),
        "ema": content["ema"] is None or _are_tensors(content["ema"]),
        "trained_on": content["trained_on"] is None or _are_members(content["trained_on"]),
        "labels_of": content.get("labels_of") is None or _are_members(content["labels_of"]),
        "progress": content["progress"] is None or _is_progress(content["progress"]),
        "tokenizer": tokenizer is None or _is_tokenizer(tokenizer),
        "label_names": names is None or _are(str, names),
    }


def _form_of_state(content: Mapping[str, Any]) -> dict[str, bool]:
    """The same for what only scoring and further training read."""
    config, data, states = content["config"], content["data"], content["random"]
    trainor, validator = config.get("trainor"), config.get("validator")
    return {
        "seed": content["seed"] is not None,
        "trained_on": content["trained_on"] is not None,
        "progress": content["progress"] is not None,
        "data": isinstance(data, Mapping) and _are(str, [*data, *data.values()]),
        "random": bool(states) and _are(Mapping, states),
        "optimizer": isinstance(content["optimizer"], Mapping),
        "scaler": isinstance(content["scaler"], Mapping),
        "config.trainor": isinstance(trainor, Mapping)
        and isinstance(trainor.get("early_stop_metric"), str)
        and type(trainor.get("batch_size")) is int,
        "config.validator": isinstance(validator, Mapping) and _are(str, validator.get("splits")),
    }


def sealed(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a stored model without what names weights, or a place to fetch them from."""
    node: dict[str, Any] = without_weights(model)
    for part in ("encoder", "vae"):
        if isinstance(node.get(part), Mapping):
            node[part] = {k: v for k, v in node[part].items() if k not in OUTSIDE}
    return node


def _are_tensors(entry: Any) -> bool:
    return isinstance(entry, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in entry.items()
    )


def _is_tokenizer(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("json"), str):
        return False
    special = entry.get("special")
    return isinstance(special, Mapping) and all(
        isinstance(word, str) for word in (*special, *special.values())
    )


def _are(kind: type, entry: Any) -> bool:
    return isinstance(entry, list | tuple) and all(isinstance(item, kind) for item in entry)


def _are_members(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.dtype == torch.int64 and entry.dim() == 1


def _is_progress(entry: Any) -> bool:
    """True for the arguments of a Progress, all or some."""
    default = vars(Progress())
    if not isinstance(entry, Mapping) or not set(entry) <= set(default):
        return False
    return all(
        _are(int | float, value)  # type: ignore[arg-type]
        if isinstance(default[key], list)
        else isinstance(value, int | float if isinstance(default[key], float) else int)
        for key, value in entry.items()
    )
