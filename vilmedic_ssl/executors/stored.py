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

from torch import Tensor

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.schema import without_weights

OUTSIDE = ("proto", "ckpt")  # of a text encoder and of a VAE: where weights once came from


def refuse_malformed(content: Mapping[str, Any], path: Path) -> None:
    """Raises:
    UserError: an entry of a checkpoint of a run is of another kind than training writes.
    """
    config = content["config"]
    model = config.get("model") if isinstance(config, Mapping) else None
    proto = model.get("proto") if isinstance(model, Mapping) else None
    dataset = config.get("dataset", {}) if isinstance(config, Mapping) else None
    tokenizer, names = content.get("tokenizer"), content.get("label_names")
    form = {
        "config.model.proto": isinstance(proto, str),
        "config.dataset": isinstance(dataset, Mapping),
        "seed": content["seed"] is None or type(content["seed"]) is int,
        "model": _are_tensors(content["model"]),
        "ema": content["ema"] is None or _are_tensors(content["ema"]),
        "trained_on": isinstance(content["trained_on"], Tensor | None),
        "labels_of": isinstance(content.get("labels_of"), Tensor | None),
        "tokenizer": tokenizer is None or _is_tokenizer(tokenizer),
        "label_names": names is None
        or (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)),
    }
    wrong = [entry for entry, is_right in form.items() if not is_right]
    if wrong:
        raise UserError(
            f"{path} is not a checkpoint that training wrote: its entry {wrong[0]!r} is of another "
            "kind; take another file"
        )


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
