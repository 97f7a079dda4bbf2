"""What `explain` explains: a checkpoint of ours, or weights of another program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vilmedic_ssl.auto import transform_of
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.features import Source
from vilmedic_ssl.executors.init_weights_read import Weights
from vilmedic_ssl.experiment.data import take_classes
from vilmedic_ssl.experiment.scoring import features_of
from vilmedic_ssl.experiment.settings import check, typed
from vilmedic_ssl.post_processing._maps import Explained, explained
from vilmedic_ssl.registry import closest

Logits = Callable[[Tensor], Tensor]
"""(B, C, H, W) images -> (B, C) logits."""


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Attributes:
        networks: (module with the encoder, function from images to logits) under their names, the
            one that is explained first.
        transform: from a file to what the networks see.
        names: of the classes; None = not known.
        whose: which classifier the logits come from, in words.
    """

    networks: Mapping[str, tuple[nn.Module, Logits]]
    transform: Transform
    names: Sequence[str] | None
    whose: str


def own_subject(path: Path, *, beside: bool) -> Subject:
    """A checkpoint of ours: its own classifier, or a linear probe on its training images."""

    content = checkpoint.read_run(path)
    node = check(content["config"])
    node["device"] = "cpu"
    take_classes(node["model"], content["config"]["model"])
    features = features_of(typed(node), node, [content], [path], path.stem, splits=["train"])
    model = features.models[0]
    names = (checkpoint.names_of(content) if model.classifies else []) or None
    try:
        names = names or list(features.dataset("train").label_names) or None
    except UserError as error:
        if not model.classifies:
            raise UserError(
                f"{path} has no classifier, and a linear probe needs its training data ({error})"
            ) from error

    def network(source: Source) -> tuple[nn.Module, Logits]:
        if not model.classifies:
            probed = explained(features, source, "linear_probe")
            return probed.model, probed.logits
        own = Explained(model if source == "model" else features.untrained(), None)
        return own.model, own.logits

    networks = {"trained": network("model")}
    if beside:
        networks["untrained"] = network("random_init")
    whose = "the network's own classifier"
    if not model.classifies:
        whose = "a linear probe on its training images"
    return Subject(networks, transform_of(content["config"]["dataset"]), names, whose)


def foreign_subject(
    held: Weights, backbone: str | None, size: int | None, *, beside: bool
) -> Subject:
    """Weights of another program in a timm network, whose names they have."""
    import timm

    if backbone is None:
        raise UserError(f"{held.path} is no checkpoint of ours; write --backbone, resnet18 or such")
    if not timm.is_model(backbone):
        near = closest(backbone, timm.list_models())
        raise UserError(f"--backbone: timm has no {backbone!r}; {near}")
    pattern = timm.create_model(backbone, num_classes=1)
    told: Any = pattern.pretrained_cfg
    first, last = (_first_name(told.get(key)) for key in ("first_conv", "classifier"))
    stem, head = (_one_tensor(held, f"{name}.weight") for name in (first, last))
    given: dict[str, Any] = {"num_classes": len(head), "in_chans": stem.shape[1]}
    if size is not None and told.get("fixed_input_size"):
        given["img_size"] = size
    torch.manual_seed(0)
    untrained = timm.create_model(backbone, **given).eval()
    trained = timm.create_model(backbone, **given).eval()
    _load(trained, held, backbone)
    side = size or told["input_size"][-1]
    mean, std = list(told["mean"]), list(told["std"])
    grey = stem.shape[1] == 1
    transform = Transform(
        resize=[side, side],
        crop=[side, side],
        channels="gray" if grey else "rgb",
        mean=[sum(mean) / 3] if grey else mean,
        std=[sum(std) / 3] if grey else std,
    )
    networks = {held.path.name: trained, **({"untrained": untrained} if beside else {})}
    whose = "the network's own classifier"
    return Subject({k: (net, net) for k, net in networks.items()}, transform, None, whose)


def _first_name(names: Any) -> str:
    """timm names one layer, or several."""
    return names if isinstance(names, str) else names[0]


def _one_tensor(held: Weights, name: str) -> Tensor:
    """The tensor whose name is, or ends with, a name."""
    found = [n for n in held.tensors if n == name or n.endswith(f".{name}")]
    if not found:
        raise UserError(
            f"{held.path} has no {name!r}: it holds no classifier, or that of another network (it "
            f"has {', '.join(list(held.tensors)[:3])} ...); correct --backbone"
        )
    return held.tensors[min(found, key=len)]


def _load(net: nn.Module, held: Weights, backbone: str) -> None:
    """Fill a network; what stands before every name in the file is dropped."""
    own = net.state_dict()
    ends = [name for name in held.tensors if name.endswith(next(iter(own)))]
    before = min(ends, key=len).removesuffix(next(iter(own))) if ends else ""
    found = {name: held.tensors.get(before + name) for name in own}
    for name, tensor in found.items():
        if tensor is None or tensor.shape != own[name].shape:
            there = "missing" if tensor is None else tuple(tensor.shape)
            raise UserError(
                f"{held.path} does not fit {backbone}: {before}{name} is {there}, not "
                f"{tuple(own[name].shape)}; correct --backbone, or --size"
            )
    net.load_state_dict(found)
