"""A model starts from weights that were trained before: `init_from`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.init_weights_map import ENCODER, TEXT, as_trained, fitted, key_map
from vilmedic_ssl.executors.init_weights_read import Weights, read_weights
from vilmedic_ssl.files import write_text
from vilmedic_ssl.models.base import PretrainingModel

SHOWN = 4  # names in a sentence
# Tables for a size of window or image, which a transformer for another size has its own of.
OF_A_SIZE = re.compile(r"relative_|rel_pos|attn_mask")
UNREAD = "num_batches_tracked"  # batch norm counts, and goes by it only without a momentum
# Added to every token's vector; an encoder without them (BertGeneration of ViLMedic) adds nothing.
TOKEN_TYPES = "token_type_embeddings.weight"


@dataclass(frozen=True)
class Start:
    """What a model has been started from.

    Attributes:
        source: the file.
        taken: name of each tensor that was filled, and the name it came from.
        parts: beginning of own names -> beginning of those in the file; empty: all, by name.
        changed: own names of tensors that came in another shape, and what was done.
        kept: own names of tensors that stay as they were initialised.
        unused: names in the file that nothing was filled from.
        trained_on: members of the images that the weights have learned from, (N,) int64;
            labels_of: of those whose labels they have.
    """

    source: Path
    taken: dict[str, str]
    parts: dict[str, str]
    changed: dict[str, str]
    kept: list[str]
    unused: list[str]
    trained_on: Tensor
    labels_of: Tensor

    def describe(self) -> str:
        """The key map in one line."""
        told = [f'{self._filled(own)} <- "{theirs}*"' for own, theirs in self.parts.items()]
        told = [", ".join(told) or f"{len(self.taken)} tensors by name"]
        for how in dict.fromkeys(self.changed.values()):
            told.append(f"{_some(n for n, done in self.changed.items() if done == how)} {how}")
        for what, names in (("stay as initialised", self.kept), ("not used", self.unused)):
            told += [f"{what}: {_some(names)}"] if names else []
        return f"init_from {self.source}: {'; '.join(told)}"

    def write(self, path: Path) -> None:
        """The whole key map as JSON."""
        content: dict[str, Any] = {
            "source": str(self.source),
            "images_it_was_trained_on": len(self.trained_on),
            "tensors": self.taken,
            "changed": self.changed,
            "stay_as_initialised": self.kept,
            "not_used": self.unused,
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

    def _filled(self, part: str) -> str:
        filled = sum(f"{name}.".startswith(part) for name in self.taken)
        whole = filled + sum(f"{name}.".startswith(part) for name in self.kept)
        return f"{filled} of {whole} tensors of {part}"


def start_from(model: PretrainingModel, source: str | Path, *, seed: int | None = None) -> Start:
    """Fill what fits of a model, buffers included, in place.

    Args:
        source: a run folder (best checkpoint, else the last), a checkpoint, or a file of weights
            of another program.
        seed: as in `read_weights`.

    Raises:
        Unobtainable: as `read_weights`.
        UserError: as `read_weights`; fewer than half of the encoder's tensors are found, or, in a
            checkpoint of ours, not all.
    """
    weights, state = read_weights(source, seed), model.state_dict()
    own = {name: t for name, t in state.items() if not name.startswith(model.fresh)}
    taken, parts = key_map(own, weights, model.core)
    _look_at_the_rest(model, weights, [n for n in own if n.startswith(ENCODER)], taken)
    used = set(taken.values())
    changed: dict[str, str] = {}
    for name, theirs in taken.items():
        tensor, how = fitted(own[name], weights.tensors[theirs], _grid(model))
        state[name].copy_(tensor)
        changed |= {name: how} if how else {}
    text = [name for name in own if name.startswith(TEXT)]
    if any(name in taken for name in text):
        _look_at_the_text(weights, text, taken)
        for name in text:
            if name.endswith(TOKEN_TYPES) and name not in taken:
                state[name].zero_()
                changed[name] = "set to zero, since there are none"
    return Start(
        source=weights.path,
        taken=taken,
        parts=parts,
        changed=changed,
        kept=[name for name in state if name not in taken and name not in changed],
        unused=[name for name in weights.tensors if name not in used],
        trained_on=weights.trained_on,
        labels_of=weights.labels_of,
    )


def _look_at_the_rest(
    model: PretrainingModel, weights: Weights, encoder: list[str], taken: dict[str, str]
) -> None:
    """Warn of tensors of the encoder that a file does not fill.

    Raises:
        UserError: a checkpoint of ours, which has them all when it is one of this encoder.
    """
    missing = [name for name in encoder if name not in taken]
    rest = [name for name in missing if not name.endswith(UNREAD)]
    if not rest:
        return
    some = f"{len(missing)} of the {len(encoder)} tensors of this encoder"
    needed = [name for name in rest if not OF_A_SIZE.search(name)]
    if weights.encoder is not None and needed:
        there = weights.encoder.get("backbone", "another network")
        here = getattr(getattr(model, "cnn", None), "backbone", "another one")
        raise UserError(
            f"init_from: {weights.path} is of a {there}, this encoder is a {here}, and {some} "
            f"would stay as initialised ({_some(needed)}); {as_trained(weights)}"
        )
    console.warn(f"init_from: {some} are not in {weights.path} and start afresh: {_some(rest)}")


def _look_at_the_text(weights: Weights, text: list[str], taken: dict[str, str]) -> None:
    """Warn of tensors of the text encoder that a file does not fill."""
    rest = [name for name in text if name not in taken and not name.endswith(TOKEN_TYPES)]
    if rest:
        console.warn(
            f"init_from: {len(rest)} of the {len(text)} tensors of the text encoder are not in "
            f"{weights.path} in this shape and start afresh: {_some(rest)}"
        )


def _grid(model: PretrainingModel) -> tuple[int, int] | None:
    """Patches down and across that the encoder has positions for."""
    net: Any = getattr(getattr(model, "cnn", None), "net", None)
    return getattr(getattr(net, "patch_embed", None), "grid_size", None)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
