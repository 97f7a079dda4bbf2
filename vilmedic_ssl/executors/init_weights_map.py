"""Which tensor of a file goes where in a model.

The rule: where every tensor of the model is in the file under its name and in its shape, all are
taken. Otherwise part by part: the encoder from wherever its tensors lie in the file, so the text
encoder, a projection or another head as a whole or not at all, and a network that follows starts as
the one it follows.

ViLMedic (`vilmedic/models/selfsup`, releases 1.0.8 to 1.3) has the image encoder in `visual.cnn`,
later `visual.model`, as an nn.Sequential of torchvision's children, the text encoder in
`linguistic.encoder`, a pooling layer of its own in `linguistic.pooler`, and the heads `vis_proj`,
`lin_proj`, `global_embedder`, `local_embedder`. GLoRIA's own release (marshuang80/gloria) has
`gloria.img_encoder.model`, `gloria.text_encoder.model` and the embedders in `gloria.img_encoder`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.init_weights_read import Weights
from vilmedic_ssl.executors.init_weights_tower import (
    Names,
    Tower,
    find_tower,
    joined,
    rank,
    same,
    spelled,
    surplus_of,
)
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.schema import schema

ENCODER = "cnn.net."  # where every method keeps its image encoder
TEXT = "encoder.net."  # where paired ones keep their text encoder
HEADS = ("projection", "projector")  # one thing under two names
OTHERS_HEADS = (*HEADS, "projection_head", "fc", "vis_proj")  # what other programs call it
CALLED = {
    **dict.fromkeys(HEADS, OTHERS_HEADS),
    "text_projection": ("text_projection", "lin_proj"),
    "global_embedder": ("global_embedder",),
    "local_embedder": ("local_embedder",),
}
TARGET = "target_"
SHOWN = 3  # names in a refusal
# Keys of an encoder that decide which tensors it has.
SHAPE = ("backbone", "output_layer", "stem", "width", "selective_kernels", "options")


@dataclass(frozen=True)
class KeyMap:
    """What a model takes from where.

    Attributes:
        taken: own name -> theirs.
        parts: beginning of own names -> beginning of theirs; empty where all names are the same.
        image, text: where the encoders lie.
    """

    taken: Names
    parts: Names
    image: Tower = Tower()
    text: Tower = Tower()


def key_map(own: Mapping[str, Tensor], weights: Weights, core: str = "") -> KeyMap:
    """Which tensor of a file goes where.

    Args:
        core: beginning of all own names that files of another program leave out.

    Raises:
        UserError: fewer than half of the encoder's tensors are found.
    """
    if all(same(tensor, weights.tensors.get(name)) for name, tensor in own.items()):
        towers = [_by_name(own, weights.tensors, part) for part in (ENCODER, TEXT)]
        return KeyMap({name: name for name in own}, {}, *towers)
    inner = {name: name.removeprefix(core) for name in own}
    if core and all(same(own[name], weights.tensors.get(n)) for name, n in inner.items()):
        return KeyMap(inner, {core: ""})
    image, text = _encoder(own, weights), _text_encoder(own, weights)
    taken = image.taken | text.taken
    parts = {"cnn.": image.place}
    parts |= {TEXT.split(".")[0] + ".": text.place} if text.taken else {}
    for part in dict.fromkeys(name.split(".")[0] for name in own):
        if part == "cnn" or f"{part}." in parts or part.startswith(TARGET):
            continue
        names, home = _head(part, own, weights.tensors, ours=image.place.endswith(ENCODER))
        taken |= names
        parts |= {f"{part}.": home} if names else {}
    for name in own:
        followed = name.removeprefix(TARGET)
        if name.startswith(TARGET) and followed in taken:
            taken[name] = taken[followed]
            part = f"{followed.split('.')[0]}."
            parts[TARGET + part] = parts[part]
    return KeyMap(taken, parts, image, text)


def _by_name(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], part: str) -> Tower:
    """A network of ours that lies in a file under its own names."""
    names = {name: name for name in own if name.startswith(part)}
    wanted = {spelled(name.removeprefix(part)): name for name in names}
    return Tower(part, names, surplus=surplus_of(wanted, part, names.values(), theirs))


def fitted(mine: Tensor, theirs: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, str]:
    """(a tensor in the shape of `mine`, what was done to it in words).

    A stem for colour reads grey as three equal channels, so its weights are summed; one for grey
    that sees the same picture three times has a third of the weights for each.

    Args:
        grid: patches down and across that `mine` has positions for.

    Raises:
        UserError: positions of something else than a square.
    """
    if mine.shape == theirs.shape:
        return theirs, ""
    if mine.dim() == 4 and mine.shape[1] == 1:
        return theirs.sum(1, keepdim=True), "summed over 3 channels"
    if mine.dim() == 4:
        return theirs.repeat(1, 3, 1, 1) / 3, "with a third for each of 3 channels"
    from timm.layers import resample_abs_pos_embed

    prefix = mine.shape[1] - math.prod(grid) if grid else 0
    side = math.isqrt(max(0, theirs.shape[1] - prefix))
    if grid is None or side == 0 or side**2 + prefix != theirs.shape[1]:
        raise UserError(
            f"init_from: {theirs.shape[1]} position embeddings there, {mine.shape[1]} here, and "
            "they are not those of square images with the same class and register tokens; write "
            "dataset.transform.crop and model.cnn.options.img_size as they were then"
        )
    resized = resample_abs_pos_embed(theirs, list(grid), [side, side], num_prefix_tokens=prefix)
    return resized, f"from {side} x {side} to {grid[0]} x {grid[1]} positions"


def _encoder(own: Mapping[str, Tensor], weights: Weights) -> Tower:
    """Where the image encoder lies.

    Raises:
        UserError: fewer than half of its tensors are found.
    """
    wanted = {spelled(n.removeprefix(ENCODER)): n for n in own if n.startswith(ENCODER)}
    if not wanted:
        raise UserError(
            "init_from: the model keeps no encoder under `cnn`, so it can only start from a "
            "checkpoint of its own kind, with all tensors; leave init_from out"
        )
    tower = find_tower(own, wanted, weights.tensors, weights.judged or "")
    if 2 * len(tower.taken) < len(wanted):
        raise UserError(_foreign(own, list(wanted.values()), weights, tower))
    return tower


def _text_encoder(own: Mapping[str, Tensor], weights: Weights) -> Tower:
    """Where the text encoder lies; nothing is taken if the model has none, or the file less than
    half of it.
    """
    wanted = {n.removeprefix(TEXT): n for n in own if n.startswith(TEXT)}
    judged = TEXT if weights.judged is not None else ""
    tower = find_tower(own, wanted, weights.tensors, judged)
    if not wanted or 2 * len(tower.taken) < len(wanted):
        return replace(tower, taken={}, surplus=[], rivals=[])
    outer = tower.place.removesuffix("encoder.")
    for key, name in wanted.items():  # the pooling layer beside an encoder is the one that is read
        if key.startswith("pooler.") and same(own[name], weights.tensors.get(outer + key)):
            tower.taken[name] = outer + key
    return tower


def _head(
    part: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, ours: bool
) -> tuple[Names, str]:
    """(own name -> theirs, where theirs lie) for everything else that begins with `part`, as a
    whole or not at all.
    """
    names = [name for name in own if name == part or name.startswith(f"{part}.")]
    for home in _homes(part, theirs, ours=ours):
        found = {name: home.removesuffix(".") + name.removeprefix(part) for name in names}
        if all(same(own[name], theirs.get(source)) for name, source in found.items()):
            return found, home
    return {}, ""


def _homes(part: str, theirs: Iterable[str], *, ours: bool) -> list[str]:
    """Where the tensors of a head may lie, the likeliest first."""
    if part not in CALLED:  # what another program calls so may be anything
        return [f"{part}."] if ours else []
    homes = {}
    for name in theirs:
        words = name.split(".")
        for i, word in enumerate(words):
            if word in CALLED[part]:
                homes[joined(words[: i + 1])] = word
    return sorted(homes, key=lambda home: (homes[home] != part, rank(home), len(home), home))


def _foreign(own: Mapping[str, Tensor], wanted: list[str], weights: Weights, tower: Tower) -> str:
    """Why a file is no start for an encoder: by tensors of one name and two shapes, if any."""
    shown = list(tower.reshaped)[:SHOWN] or wanted[:SHOWN]
    here = ", ".join(f"{name} {tuple(own[name].shape)}" for name in shown)
    some = list(tower.reshaped.values())[:SHOWN] or list(weights.tensors)[:SHOWN]
    there = ", ".join(f"{name} {tuple(weights.tensors[name].shape)}" for name in some)
    return (
        f"init_from: {weights.path} holds {len(tower.taken)} of the {len(wanted)} tensors of this "
        f"encoder (here {here} ...; there {there} ...); {as_trained(weights)}"
    )


def as_trained(weights: Weights) -> str:
    """What to write so that a file fits."""
    told = schema(VisualEncoder)
    given = {k: v for k, v in (weights.encoder or {}).items() if k in SHAPE}
    keys = [f"{k}: {v}" for k, v in given.items() if v != told[k].default]
    exact = f", {{{', '.join(keys)}}}" if keys else ""
    return f"write model.cnn (backbone, width, stem ...) as it was trained{exact}"
