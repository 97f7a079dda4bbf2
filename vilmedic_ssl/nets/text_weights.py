"""The weights of a text encoder, from a transformers folder or the hub: all, or a refusal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vilmedic_ssl import console
from vilmedic_ssl.errors import Unobtainable, UserError

POOLER = "pooler."  # often not trained, and not always read
BUFFERS = ("position_ids", "token_type_ids")  # older versions saved these constants
SHOWN = 3  # names in a sentence


def load(config: Any, name: str) -> tuple[nn.Module, bool]:
    """(the encoder of a folder or hub name, whether its pooling layer is fresh).

    transformers fills what it finds by name and initialises the rest; here the rest is an error. A
    prefix before the names, `module.` of DataParallel for example, is taken off.

    Args:
        config: the transformers configuration of the encoder.

    Raises:
        Unobtainable: no such folder, and no such name that can be fetched here.
        UserError: tensors are missing, have another shape, or are not finite.
    """
    net, report = _load(config, name, {})
    prefix = _prefix(report["missing_keys"], report["unexpected_keys"])
    if prefix:
        net, report = _load(config, name, {f"^{re.escape(prefix)}": ""})
    missing = sorted(report["missing_keys"])
    lacking = [key for key in missing if not key.startswith(POOLER)]
    if lacking:
        there = sorted(report["unexpected_keys"])
        others = f"; it has {_some(there)}, which are not used" if there else ""
        raise UserError(
            f"model.encoder.proto: {name} lacks {len(lacking)} of the {len(net.state_dict())} "
            f"tensors of this encoder ({_some(lacking)}){others}; name the folder that its "
            "config.json was saved with, or write model.encoder.pretrained=false"
        )
    for key, theirs, own in report["mismatched_keys"]:
        raise UserError(
            f"model.encoder.proto: {key} is {tuple(theirs)} in {name} and {tuple(own)} here; "
            "leave out model.encoder.config, or write model.encoder.pretrained=false"
        )
    odd = [key for key, value in net.state_dict().items() if not torch.isfinite(value).all()]
    if odd:
        raise UserError(
            f"model.encoder.proto: {len(odd)} tensors of {name} hold values that are not finite "
            f"({_some(odd)}); take another folder"
        )
    _warn_of_surplus(net, report["unexpected_keys"], name)
    return net, len(missing) > 0


def unobtainable(name: str) -> Unobtainable:
    """What to say where a folder or hub name cannot be had."""
    return Unobtainable(
        f"model.encoder.proto: {name!r} is no transformers folder and cannot be fetched here; "
        "write the path of one (`python data/download.py minilm` makes data/minilm), or null for "
        "a new encoder"
    )


def _load(config: Any, name: str, renamed: dict[str, str]) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import AutoModel

    keys: dict[str, Any] = {"key_mapping": renamed} if renamed else {}
    try:
        return AutoModel.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            trust_remote_code=False,
            **keys,
        )
    except (OSError, ValueError) as error:
        raise unobtainable(name) from error
    except Exception as error:  # damaged files raise errors of three libraries
        raise UserError(
            f"model.encoder.proto: the weights in {name} cannot be read "
            f"({' '.join(str(error).split())[:200]}); save the folder anew with transformers' "
            "save_pretrained"
        ) from error


def _prefix(missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """What stands before the names of most missing tensors in a file; "" where nothing does, or
    two things as often.
    """
    missing = [key for key in missing if not key.startswith(POOLER)]
    words = {key.rpartition(".")[2] for key in missing}
    theirs = [key for key in unexpected if key.rpartition(".")[2] in words]
    found = Counter(
        other.removesuffix(own) for own in missing for other in theirs if other.endswith(f".{own}")
    )
    best = found.most_common(2)
    if not best or (len(best) == 2 and best[0][1] == best[1][1]):
        return ""
    return best[0][0]


def _warn_of_surplus(net: nn.Module, unexpected: Iterable[str], name: str) -> None:
    """Say which tensors a folder has in parts that the encoder has, too: layers beyond its last."""
    own = {key.split(".")[0] for key in net.state_dict()}
    base = f"{getattr(net, 'base_model_prefix', '')}."
    surplus = [
        key
        for key in sorted(unexpected)
        if key.removeprefix(base).split(".")[0] in own and not key.endswith(BUFFERS)
    ]
    if surplus:
        console.warn(
            f"model.encoder.proto: {len(surplus)} tensors of {name} belong to layers that this "
            f"encoder does not have, and are not used: {_some(surplus)}"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
