"""Where in a file a network lies: under which beginning of names, of several that it may be.

Which of two towers of one network is taken does not depend on their order in the file. Where both
hold nearly as much of it: a teacher before its student (DINO, DINOv2: the teacher is what is
scored), any other before one that follows it (the keys of MoCo, the momentum encoders of MoCo v3,
the targets of BYOL and JEPA, a moving average inside a state dict).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Names = dict[str, str]
TEACHER = {"teacher"}
FOLLOWERS = {"target", "momentum", "ema", "key", "k", "mom", "slow", "average", "averaged"}
NEARLY = 0.95  # of the tensors of the fullest tower, from which preference decides
COUNTERS = "num_batches_tracked"  # batch norm counts, and goes by it only without a momentum
# Tables for a size of window or image, which a transformer for another size has its own of.
OF_A_SIZE = re.compile(r"relative_|rel_pos|attn_mask|position_ids")
POSITIONS = "pos_embed"
CLASSIFIER = re.compile(r"(head\.)?(fc|classifier|head)\.(weight|bias)")  # may stand beside a norm
# Children of a ResNet that was cut into an nn.Sequential; 2, 3 and 8 have no tensors.
NUMBERED = {"0": "conv1", "1": "bn1", **{str(i + 3): f"layer{i}" for i in (1, 2, 3, 4)}}
CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # DINOv2 keeps blocks in chunks, numbered through


@dataclass(frozen=True)
class Tower:
    """Where a network lies in a file.

    Attributes:
        place: beginning of its names there.
        taken: own name -> theirs.
        reshaped: own name -> theirs where that has another shape.
        surplus: names there, in parts that the network has, for which it has no tensor: blocks
            beyond its last, layers that its blocks do not have.
        rivals: other places that hold nearly as much of it.
        ranked: True when a rule decided between them, not the alphabet.
    """

    place: str = ""
    taken: Names = field(default_factory=dict)
    reshaped: Names = field(default_factory=dict)
    surplus: list[str] = field(default_factory=list)
    rivals: list[str] = field(default_factory=list)
    ranked: bool = True


def find_tower(
    own: Mapping[str, Tensor], wanted: Names, theirs: Mapping[str, Tensor], judged: str = ""
) -> Tower:
    """Where most of a network's tensors lie, by name and shape.

    Args:
        own: a model's tensors by name.
        wanted: name within the network, as `spelled` has it -> own name.
        judged: where it must lie if anything in the file does.
    """
    places: dict[str, Names] = {}
    named: dict[str, Names] = {}
    for name in sorted([n for n in theirs if n.startswith(judged)] or theirs):
        words = name.split(".")
        for i in range(len(words)):
            key = _key(".".join(words[i:]), wanted)
            if key is None:
                continue
            mine, place = wanted[key], joined(words[:i])
            kind = places if _fits(mine, own[mine], theirs[name]) else named
            kind.setdefault(place, {}).setdefault(mine, name)
    if not places:
        most = max(named, key=lambda place: (len(named[place]), place), default="")
        return Tower(most, reshaped=_ordered(named.get(most, {}), own))
    count = {place: _weighed(names) for place, names in places.items()}
    full = [p for p in places if count[p] >= NEARLY * max(count.values())]
    best, *rivals = sorted(full, key=lambda p: (rank(p), -count[p], len(p), p))
    other = {mine: n for mine, n in named.get(best, {}).items() if mine not in places[best]}
    reshaped = _ordered(other, own)
    used = {*places[best].values(), *reshaped.values()}
    return Tower(
        best,
        places[best],
        reshaped,
        surplus_of(wanted, best, used, theirs),
        rivals,
        all(rank(rival) != rank(best) for rival in rivals),
    )


def surplus_of(
    wanted: Iterable[str], place: str, used: Iterable[str], theirs: Iterable[str]
) -> list[str]:
    """The names of `theirs` at a place, in parts that the network has, that nothing was used of."""
    parts, matched = {key.split(".")[0] for key in wanted}, set(used)
    inner = {
        name: spelled(name.removeprefix(place))
        for name in theirs
        if name.startswith(place) and name not in matched
    }
    return [
        name
        for name, key in inner.items()
        if key.split(".")[0] in parts
        and not CLASSIFIER.fullmatch(key)
        and not key.endswith(COUNTERS)
        and not OF_A_SIZE.search(key)
    ]


def rank(place: str) -> int:
    """0 for a teacher, 2 for what follows another network, 1 for all else."""
    words = set(re.split(r"[._]", place.lower()))
    return 0 if words & TEACHER else 2 if words & FOLLOWERS else 1


def spelled(key: str) -> str:
    """A tensor's name in a ResNet whose children are numbered, as in one where they have names."""
    first, dot, rest = key.partition(".")
    return f"{NUMBERED.get(first, first)}{dot}{rest}"


def joined(words: Iterable[str]) -> str:
    """Words of a name as the beginning of one."""
    return "".join(f"{word}." for word in words)


def same(mine: Tensor, theirs: Tensor | None) -> bool:
    """True when there is a tensor of this shape."""
    return theirs is not None and mine.shape == theirs.shape


def _key(rest: str, wanted: Names) -> str | None:
    """What the end of a name is called within the network, if it has it."""
    for key in (rest, spelled(rest), CHUNK.sub("blocks.", rest)):
        if key in wanted:
            return key
    return None


def _ordered(names: Names, own: Iterable[str]) -> Names:
    """In the order of the model."""
    return {mine: names[mine] for mine in own if mine in names}


def _weighed(names: Names) -> int:
    return sum(not name.endswith(COUNTERS) for name in names)


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
