"""What `explain` explains: a checkpoint of ours, or weights of another program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vilmedic_ssl.auto import described
from vilmedic_ssl.data.images import take_channels
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.features import Source
from vilmedic_ssl.executors.init_weights_read import Weights
from vilmedic_ssl.executors.stored import sealed
from vilmedic_ssl.experiment.scoring import features_of
from vilmedic_ssl.experiment.settings import load_config, typed
from vilmedic_ssl.post_processing._maps import Explained, explained
from vilmedic_ssl.registry import closest
from vilmedic_ssl.schema import plain

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


def own_subject(path: Path, *, beside: bool, data: str | Path | None) -> Subject:
    """A checkpoint of ours: its own classifier, or a linear probe on the training images of a
    config. What the config in a checkpoint names is not opened: it may be a stranger's.

    Args:
        data: the config that says where the images of a linear probe lie.

    Raises:
        UserError: a checkpoint without a classifier, and no data; or data beside a classifier.
    """
    content = checkpoint.read_run(path)
    model, transform, _ = described(content, path)
    if not model.classifies:
        return _probed(path, content, transform, beside=beside, data=data)
    if data is not None:
        raise UserError(f"--data: {path} has a classifier of its own; leave it out")
    checkpoint.load_weights(model, content["ema"] or content["model"], path)
    models = {"trained": model.eval()}
    if beside:
        checkpoint.seed_everything(content["seed"] or 0)
        models["untrained"] = described(content, path)[0].eval()
    networks = {name: (made, Explained(made, None).logits) for name, made in models.items()}
    names = checkpoint.names_of(content) or None
    return Subject(networks, transform, names, "the network's own classifier")


def _probed(
    path: Path,
    content: dict[str, Any],
    transform: Transform,
    *,
    beside: bool,
    data: str | Path | None,
) -> Subject:
    """The encoder of a checkpoint under a linear probe."""
    if data is None:
        beside_it = path.parent / f"config_{content['seed']}.yml"
        raise UserError(
            f"{path} has no classifier, and a linear probe needs its training images; add --data "
            f"and the config that says where they lie, for example --data {beside_it}"
        )
    node: dict[str, Any] = plain(load_config(data))
    node["device"], node["model"] = "cpu", sealed(content["config"]["model"])
    take_channels(node["dataset"], content["config"]["dataset"])
    features = features_of(typed(node), node, [content], [path], path.stem, splits=["train"])
    sources: dict[str, Source] = {"trained": "model"}
    if beside:
        sources["untrained"] = "random_init"
    probes = {name: explained(features, one, "linear_probe") for name, one in sources.items()}
    networks = {name: (probe.model, probe.logits) for name, probe in probes.items()}
    names = list(features.dataset("train").label_names) or None
    return Subject(networks, transform, names, "a linear probe on its training images")


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
