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
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.init_weights_read import Weights
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
FOLLOWS = re.compile(r"(^|[._])(target|teacher|momentum|ema)|encoder_k")
POSITIONS = "pos_embed"
# Children of a ResNet that was cut into an nn.Sequential; 2, 3 and 8 have no tensors.
NUMBERED = {"0": "conv1", "1": "bn1", **{str(i + 3): f"layer{i}" for i in (1, 2, 3, 4)}}
SHOWN = 3  # names in a refusal
# Keys of an encoder that decide which tensors it has.
SHAPE = ("backbone", "output_layer", "stem", "width", "selective_kernels", "options")

Names = dict[str, str]


def key_map(own: Mapping[str, Tensor], weights: Weights, core: str = "") -> tuple[Names, Names]:
    """(own name -> theirs, beginning of own names -> beginning of theirs); the second is empty
    where all names are the same.

    Args:
        core: beginning of all own names that files of another program leave out.

    Raises:
        UserError: fewer than half of the encoder's tensors are found.
    """
    if all(_same(tensor, weights.tensors.get(name)) for name, tensor in own.items()):
        return {name: name for name in own}, {}
    inner = {name: name.removeprefix(core) for name in own}
    if core and all(_same(own[name], weights.tensors.get(n)) for name, n in inner.items()):
        return inner, {core: ""}
    taken, place = _encoder(own, weights)
    parts = {"cnn.": place}
    text, home = _text_encoder(own, weights)
    taken |= text
    parts |= {TEXT.split(".")[0] + ".": home} if text else {}
    for part in dict.fromkeys(name.split(".")[0] for name in own):
        if part == "cnn" or f"{part}." in parts or part.startswith(TARGET):
            continue
        names, home = _head(part, own, weights.tensors, ours=place.endswith(ENCODER))
        taken |= names
        parts |= {f"{part}.": home} if names else {}
    for name in own:
        followed = name.removeprefix(TARGET)
        if name.startswith(TARGET) and followed in taken:
            taken[name] = taken[followed]
            part = f"{followed.split('.')[0]}."
            parts[TARGET + part] = parts[part]
    return taken, parts


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


def _encoder(own: Mapping[str, Tensor], weights: Weights) -> tuple[Names, str]:
    """(own name -> theirs, where theirs lie) for the image encoder."""
    wanted = {_spelled(n.removeprefix(ENCODER)): n for n in own if n.startswith(ENCODER)}
    if not wanted:
        raise UserError(
            "init_from: the model keeps no encoder under `cnn`, so it can only start from a "
            "checkpoint of its own kind, with all tensors; leave init_from out"
        )
    found, best = _tower(own, wanted, weights, weights.judged or "")
    if 2 * len(found) < len(wanted):
        raise UserError(_foreign(own, list(wanted.values()), weights, len(found)))
    return found, best


def _text_encoder(own: Mapping[str, Tensor], weights: Weights) -> tuple[Names, str]:
    """(own name -> theirs, where theirs lie) for the text encoder; nothing if the model has none,
    or the file less than half of it.
    """
    wanted = {n.removeprefix(TEXT): n for n in own if n.startswith(TEXT)}
    found, best = _tower(own, wanted, weights, TEXT if weights.judged is not None else "")
    if not wanted or 2 * len(found) < len(wanted):
        return {}, ""
    outer = best.removesuffix("encoder.")
    for key, name in wanted.items():  # the pooling layer beside an encoder is the one that is read
        if key.startswith("pooler.") and _same(own[name], weights.tensors.get(outer + key)):
            found[name] = outer + key
    return found, best


def _tower(
    own: Mapping[str, Tensor], wanted: Names, weights: Weights, judged: str
) -> tuple[Names, str]:
    """(own name -> theirs, where theirs lie) for a network, from where most of its tensors lie.

    Args:
        wanted: name within the network -> own name.
        judged: where it must lie if anything in the file does.
    """
    places: dict[str, Names] = {}
    for name in [n for n in weights.tensors if n.startswith(judged)] or weights.tensors:
        words = name.split(".")
        for i in range(len(words)):
            rest = ".".join(words[i:])
            key = rest if rest in wanted else _spelled(rest)
            if key in wanted and _fits(wanted[key], own[wanted[key]], weights.tensors[name]):
                places.setdefault(_joined(words[:i]), {})[wanted[key]] = name
    best = max(places, key=lambda p: (len(places[p]), not FOLLOWS.search(p)), default="")
    return places.get(best, {}), best


def _head(
    part: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, ours: bool
) -> tuple[Names, str]:
    """(own name -> theirs, where theirs lie) for everything else that begins with `part`, as a
    whole or not at all.
    """
    names = [name for name in own if name == part or name.startswith(f"{part}.")]
    for home in _homes(part, theirs, ours=ours):
        found = {name: home.removesuffix(".") + name.removeprefix(part) for name in names}
        if all(_same(own[name], theirs.get(source)) for name, source in found.items()):
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
                homes[_joined(words[: i + 1])] = word
    return sorted(homes, key=lambda home: (homes[home] != part, bool(FOLLOWS.search(home))))


def _spelled(key: str) -> str:
    """A tensor's name in a ResNet whose children are numbered, as in one where they have names."""
    first, dot, rest = key.partition(".")
    return f"{NUMBERED.get(first, first)}{dot}{rest}"


def _joined(words: Iterable[str]) -> str:
    return "".join(f"{word}." for word in words)


def _same(mine: Tensor, theirs: Tensor | None) -> bool:
    return theirs is not None and mine.shape == theirs.shape


def _fits(name: str, mine: Tensor, theirs: Tensor) -> bool:
    """True when `fitted` makes one of the other: the same shape; a convolution of one channel and
    one of three; position embeddings (1, N, D) for images of other sizes.
    """
    if mine.shape == theirs.shape or mine.dim() != theirs.dim():
        return mine.shape == theirs.shape
    if name.endswith(POSITIONS):
        return mine.dim() == 3 and mine.shape[::2] == theirs.shape[::2]
    others = [side for side in range(mine.dim()) if side != 1]
    stem = mine.dim() == 4 and {mine.shape[1], theirs.shape[1]} == {1, 3}
    return stem and all(mine.shape[side] == theirs.shape[side] for side in others)


def _foreign(own: Mapping[str, Tensor], wanted: list[str], weights: Weights, found: int) -> str:
    """Why a file is no start for an encoder."""
    here = ", ".join(f"{n} {tuple(own[n].shape)}" for n in wanted[:SHOWN])
    some = list(weights.tensors.items())[:SHOWN]
    there = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in some)
    return (
        f"init_from: {weights.path} holds {found} of the {len(wanted)} tensors of this encoder "
        f"(here {here} ...; there {there} ...); {as_trained(weights)}"
    )


def as_trained(weights: Weights) -> str:
    """What to write so that a file fits."""
    told = schema(VisualEncoder)
    given = {k: v for k, v in (weights.encoder or {}).items() if k in SHAPE}
    keys = [f"{k}: {v}" for k, v in given.items() if v != told[k].default]
    exact = f", {{{', '.join(keys)}}}" if keys else ""
    return f"write model.cnn (backbone, width, stem ...) as it was trained{exact}"
