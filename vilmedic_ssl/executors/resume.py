"""What must stay as it was when a run goes on: what its state fits, and what its scores mean."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.sweep_space import words_of

# Of `trainor`: moments and groups of the optimizer, the place in an epoch, what is compared.
TRAINOR = (
    *("optimizer", "layer_decay", "lr_scales"),
    *("batch_size", "grad_accu", "drop_last", "sampling", "early_stop_metric"),
)
# Of the model and the transforms: what is about memory and speed.
FREE = ("model.forward_batch_size", "load_memory", "cache", "cache_gb")


def refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any], source: Any) -> None:
    """Compare the config in a checkpoint with that of the run which continues from it.

    Args:
        source: the checkpoint, for the sentence.

    Raises:
        UserError: a key differs that must not.
    """
    before, after = dict(_fixed(then)), dict(_fixed(now))
    for key, (meaning, value) in before.items():
        if key in after and after[key][0] != meaning:  # an older config lacks newer keys
            text = "null" if value is None else value
            raise UserError(
                f"{source} was trained with {text} as {key}, which its state or the meaning of its "
                f"scores depends on; write {shlex.quote(words_of({key: value})[0])}, or start a "
                f"run of another name= from its weights with init_from={shlex.quote(str(source))}"
            )


def _fixed(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Each key that must stay: what of it must be equal, and its value.

    Early stopping, plateau and the choice of the best checkpoint compare all scores of a run, so
    these must be of the same images, batches, loss and, with a moving average, of that.
    """
    trainor = {"sampling": "shuffle", "layer_decay": None, "lr_scales": None, **config["trainor"]}
    for key in TRAINOR:
        yield f"trainor.{key}", (trainor.get(key), trainor.get(key))
    yield "trainor.ema", (trainor.get("ema") is None, trainor.get("ema"))
    validator = config["validator"]
    yield "validator.splits", (sorted(set(validator["splits"])), list(validator["splits"]))
    size = validator.get("batch_size") or trainor["batch_size"]
    yield "validator.batch_size", (size, size)
    for name, part in _leaves("model", config["model"]):
        if name not in FREE:
            yield name, (part, part)
    dataset = config["dataset"]
    for name, part in _leaves("dataset.transform", dataset.get("transform") or {}):
        if name.rpartition(".")[2] not in FREE:
            yield name, (part, part)


def _leaves(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by their dotted keys."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(f"{name}.{key}", value)
    else:
        yield name, node
