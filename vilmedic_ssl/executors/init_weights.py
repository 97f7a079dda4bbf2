"""A model starts from weights that were trained before: `init_from`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.checkpoint import is_finite
from vilmedic_ssl.executors.init_weights_map import (
    ENCODER,
    TARGET,
    TEXT,
    KeyMap,
    as_trained,
    fitted,
    key_map,
)
from vilmedic_ssl.executors.init_weights_read import PART, Weights, read_weights
from vilmedic_ssl.executors.init_weights_tower import COUNTERS, OF_A_SIZE, Tower, spelled
from vilmedic_ssl.files import write_text
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.vision import POOLED, UNPOOLED, WHOLE

SHOWN = 4  # names in a sentence
DIGITS = re.compile(r"\d+")
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
        notes: what was chosen and left out, in words.
    """

    source: Path
    taken: dict[str, str]
    parts: dict[str, str]
    changed: dict[str, str]
    kept: list[str]
    unused: list[str]
    trained_on: Tensor
    labels_of: Tensor
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The key map in one line."""
        told = [f'{self._filled(own)} <- "{theirs}*"' for own, theirs in self.parts.items()]
        told = [", ".join(told) or f"{len(self.taken)} tensors by name"]
        for how in dict.fromkeys(self.changed.values()):
            told.append(f"{_some(n for n, done in self.changed.items() if done == how)} {how}")
        told += self.notes
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
            "notes": self.notes,
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
            of another program, or FILE::PREFIX for one of several networks in it.
        seed: as in `read_weights`.

    Raises:
        Unobtainable: as `read_weights`.
        UserError: as `read_weights`; fewer than half of the encoder's tensors are found, or, in a
            checkpoint of ours, not all; values that are not finite. The model is as it was.
    """
    weights, state = read_weights(source, seed), model.state_dict()
    own = {name: t for name, t in state.items() if not name.startswith(model.fresh)}
    chosen = key_map(own, weights, model.core)
    _look_at_the_image_encoder(model, weights, [n for n in own if n.startswith(ENCODER)], chosen)
    _look_at_the_text_encoder(weights, [n for n in own if n.startswith(TEXT)], chosen)
    _look_at_the_rest(weights, own, (*model.fresh, *model.cut), chosen)
    _refuse_odd_values(weights, chosen.taken)
    filled: dict[str, Tensor] = {}
    changed: dict[str, str] = {}
    for name, theirs in chosen.taken.items():
        filled[name], how = fitted(own[name], weights.tensors[theirs], _grid(model))
        changed |= {name: how} if how else {}
    for name in own:
        if name.startswith(TEXT) and chosen.text.taken and _is_added(name) and name not in filled:
            filled[name] = torch.zeros_like(own[name])
            changed[name] = "set to zero, since there are none"
    for name, tensor in filled.items():  # now that all of it fits
        state[name].copy_(tensor)
    used = set(chosen.taken.values())
    return Start(
        source=weights.path,
        taken=chosen.taken,
        parts=chosen.parts,
        changed=changed,
        kept=[name for name in state if name not in filled],
        unused=[name for name in weights.tensors if name not in used],
        trained_on=weights.trained_on,
        labels_of=weights.labels_of,
        notes=[*weights.notes, *_choices(weights, chosen)],
    )


def _choices(weights: Weights, chosen: KeyMap) -> list[str]:
    """Which of several towers was taken, in words; a warning where no rule decides."""
    sentences = []
    for what, tower in (("image", chosen.image), ("text", chosen.text)):
        if not tower.rivals:
            continue
        others = _some(f'"{place}*"' for place in tower.rivals)
        sentence = (
            f'the {what} encoder is "{tower.place}*", not {others}; for that one write '
            f"init_from={weights.path}{PART}{tower.rivals[0]}"
        )
        sentences.append(sentence)
        if not tower.ranked:
            console.warn(
                f"init_from: {weights.path} holds this network several times, and no name says "
                f"which is meant: {sentence}"
            )
    return sentences


def _refuse_odd_values(weights: Weights, taken: dict[str, str]) -> None:
    """Raises:
    UserError: a tensor that is taken holds infinite values, or none that is a number.
    """
    names = dict.fromkeys(taken.values())
    odd = [name for name in names if not is_finite(weights.tensors[name])]
    if odd:
        raise UserError(
            f"init_from: {len(odd)} of the {len(names)} tensors to be taken from {weights.path} "
            f"hold values that are not finite ({_some(odd)}): the training they come from "
            "diverged, or half precision was too narrow; take an earlier checkpoint"
        )


def _look_at_the_image_encoder(
    model: PretrainingModel, weights: Weights, encoder: list[str], chosen: KeyMap
) -> None:
    """Warn of tensors of the encoder that a file does not fill, and of those of the same network
    that are left over.

    Raises:
        UserError: a checkpoint of ours, in which there are neither when it is one of this encoder.
    """
    missing = [name for name in encoder if name not in chosen.taken]
    rest = [name for name in missing if not name.endswith(COUNTERS)]
    needed = [name for name in rest if not OF_A_SIZE.search(name)]
    surplus = _beyond(model, encoder, chosen.image)
    some = f"{len(missing)} of the {len(encoder)} tensors of this encoder"
    if weights.encoder is not None and (needed or surplus):
        there = weights.encoder.get("backbone", "another network")
        here = getattr(getattr(model, "cnn", None), "backbone", "another one")
        what = (
            f"{some} would stay as initialised ({_some(needed)})"
            if needed
            else f"{len(surplus)} of its tensors would be left over ({_some(surplus)})"
        )
        raise UserError(
            f"init_from: {weights.path} is of a {there}, this encoder is a {here}, and {what}; "
            f"{as_trained(weights)}"
        )
    if rest:
        console.warn(
            f"init_from: {some} are not in {weights.path} in this shape and start afresh: "
            f"{_some(rest)}"
        )
    if surplus:
        console.warn(
            f"init_from: {weights.path} is of a deeper or another network: {len(surplus)} tensors "
            f"of its encoder have no place in this one ({_some(surplus)}); {as_trained(weights)}"
        )


def _beyond(model: PretrainingModel, encoder: list[str], tower: Tower) -> list[str]:
    """What is left over of a file's encoder, but for blocks behind a cut by `output_layer`."""
    if getattr(getattr(model, "cnn", None), "output_layer", POOLED) in (POOLED, UNPOOLED, WHOLE):
        return tower.surplus
    here = {DIGITS.sub("#", spelled(name.removeprefix(ENCODER))) for name in encoder}
    names = ((name, spelled(name.removeprefix(tower.place))) for name in tower.surplus)
    return [name for name, inner in names if DIGITS.sub("#", inner) not in here]


def _look_at_the_text_encoder(weights: Weights, text: list[str], chosen: KeyMap) -> None:
    """Warn of tensors of the text encoder that a file does not fill, though it holds one, and of
    those of the same network that are left over.
    """
    tower = chosen.text
    rest = [name for name in text if name not in chosen.taken and not _is_added(name)]
    if rest and (tower.taken or 2 * len(tower.reshaped) >= len(text)):
        console.warn(
            f"init_from: {len(rest)} of the {len(text)} tensors of the text encoder are not in "
            f"{weights.path} in this shape and start afresh: {_some(rest)}"
        )
    if tower.surplus:
        console.warn(
            f"init_from: {weights.path} holds a deeper or another text encoder: "
            f"{len(tower.surplus)} of its tensors have no place in this one "
            f"({_some(tower.surplus)}); write model.encoder as it was trained"
        )


def _look_at_the_rest(
    weights: Weights, own: Iterable[str], partial: tuple[str, ...], chosen: KeyMap
) -> None:
    """Warn of tensors that are left over in other parts that a file fills: further layers of a
    projection, a decoder or a transformer.

    Args:
        partial: beginnings of own names of parts that need not take everything.
    """
    left: dict[str, None] = {}  # names, each once
    for part, home in (chosen.parts or {"": ""}).items():
        encoder = part != "" and (ENCODER.startswith(part) or TEXT.startswith(part))
        if not encoder and not part.startswith((TARGET, *partial)):
            words = {name.removeprefix(part).split(".")[0] for name in own}
            there = (name for name in weights.tensors if name.startswith(home))
            left |= dict.fromkeys(name for name in there if home or name.split(".")[0] in words)
    elsewhere = (ENCODER, TEXT, *partial)
    used = set(chosen.taken.values())
    surplus = [
        name
        for name in left
        if name not in used and not name.startswith(elsewhere) and not name.endswith(COUNTERS)
    ]
    if surplus:
        console.warn(
            f"init_from: {weights.path} is of a deeper or another model: {len(surplus)} tensors "
            f"beside its encoder have no place in this one ({_some(surplus)}); write `model` as it "
            "was trained"
        )


def _is_added(name: str) -> bool:
    return name.endswith(TOKEN_TYPES)


def _grid(model: PretrainingModel) -> tuple[int, int] | None:
    """Patches down and across that the encoder has positions for."""
    net: Any = getattr(getattr(model, "cnn", None), "net", None)
    return getattr(getattr(net, "patch_embed", None), "grid_size", None)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
