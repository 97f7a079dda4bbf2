"""Do maps lie where findings are? Beside chance, the usual place of the finding, and an untrained
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vilmedic_ssl import metrics
from vilmedic_ssl.metrics import Resampled
from vilmedic_ssl.nets.saliency import upscaled
from vilmedic_ssl.post_processing._maps import CHUNK, Explained, Mapper
from vilmedic_ssl.post_processing._numbers import numbered, warn_of_intervals
from vilmedic_ssl.post_processing._shared import Features, Value, labels_of

MEANS = ("energy_inside", "energy_elsewhere", "pointing_game", "cnr", "miou_scaled")  # of maps
NUMBERS = (
    *("chance", *MEANS, *(f"random_init/{name}" for name in MEANS)),
    *("minus_chance/energy_inside", "minus_chance/pointing_game", "minus_elsewhere/energy_inside"),
    *("random_init/minus_chance/energy_inside", "random_init/minus_chance/pointing_game"),
    *("random_init/minus_elsewhere/energy_inside",),
    *("minus_random_init/energy_inside", "minus_random_init/pointing_game"),
)


@dataclass(frozen=True)
class Outlined:
    """A finding that is there: number of the image, class, (H, W) bool outline."""

    image: int
    c: int
    inside: np.ndarray


def measure(
    features: Features,
    split: str,
    name: str,
    networks: Sequence[Explained],
    mapper: Mapper,
    *,
    most: int,
    draws: int,
) -> Iterator[tuple[str, Value]]:
    """How much of the maps lies inside the outlines of findings; nothing where there are none.

    Args:
        networks: the trained and the untrained one.
        most: findings measured at most.

    Yields:
        "<split>/<name>/<metric>" as in `NUMBERS`, then chance and energy_inside by finding, as
        `numbered` has them, by bootstrap over patients.
    """
    part = features.get(split)
    found = outlined(features, split, most)
    if not found:
        return
    rows_NK = _rows(features, split, found, networks, mapper)
    names = part.ids if part.patients is None else part.patients
    groups = np.array([names[item.image] for item in found])
    drawn = {"draws": draws, "seed": features.seed}
    whole = over_rows(
        _compared,
        _carriers(rows_NK),
        rows_NK,
        groups,
        limits=[_limits(n) for n in NUMBERS],
        **drawn,
    )
    warn_of_intervals(name, split, whole)
    yield from numbered([f"{split}/{name}/{number}" for number in NUMBERS], whole).items()
    of_N = np.array([item.c for item in found])
    for c in np.unique(of_N):
        some_N2, label = rows_NK[of_N == c, :2], part.label_names[c]
        whose, limits = groups[of_N == c], metrics.UNIT
        own = over_rows(mean_known, some_N2, some_N2, whose, limits=limits, **drawn)
        called = [f"{split}/{name}/{kind}/{label}" for kind in ("chance", "energy_inside")]
        yield from numbered(called, own).items()


def outlined(features: Features, split: str, most: int) -> list[Outlined]:
    """The true findings that have an outline, at most so many, chosen at random."""
    part, data = features.get(split), features.dataset(split)
    labels = labels_of(part, "maps")
    one = labels.ndim == 1
    true = [(i, c) for i, c in enumerate(labels) if c >= 0] if one else np.argwhere(labels == 1)
    mixed = np.random.default_rng(features.seed).permutation(len(true))
    found: list[Outlined] = []
    for i, c in (map(int, true[k]) for k in mixed):
        if len(found) == most:
            break
        inside = data.mask(i, part.label_names[c])
        if inside is not None and inside.any():
            found.append(Outlined(i, c, inside.numpy()))
    return sorted(found, key=lambda item: (item.image, item.c))


def _rows(
    features: Features,
    split: str,
    found: Sequence[Outlined],
    networks: Sequence[Explained],
    mapper: Mapper,
) -> np.ndarray:
    """(N, 1 + 5 per network): the share of the area, then `MEANS`."""
    place = {
        c: np.sum([item.inside for item in found if item.c == c], axis=0)
        for c in {item.c for item in found}
    }
    count = {c: sum(item.c == c for item in found) for c in place}
    rows: list[list[float]] = []
    for at in range(0, len(found), CHUNK):
        some = found[at : at + CHUNK]
        images = features.inputs(split, [item.image for item in some])
        maps = [network.maps(mapper, images, [item.c for item in some]) for network in networks]
        for k, item in enumerate(some):
            rows.append([float(item.inside.mean())])
            others = count[item.c] - 1
            elsewhere = (place[item.c] - item.inside) / others if others else None
            for maps_Bhw in maps:
                map_1hw = torch.from_numpy(maps_Bhw[k : k + 1])
                heat = upscaled(map_1hw, item.inside.shape)[0].numpy()
                rows[-1] += [
                    metrics.energy_inside(heat, item.inside),
                    np.nan if elsewhere is None else metrics.energy_inside(heat, elsewhere),
                    metrics.pointing_game(heat, item.inside),
                    metrics.grounding_cnr(heat, item.inside),
                    metrics.miou(heat, item.inside),
                ]
    return np.array(rows)


def _compared(rows_NK: np.ndarray) -> np.ndarray:
    """Rows as `_rows` gives them -> `NUMBERS`."""
    chance, *both = mean_known(rows_NK)
    trained, untrained = np.array(both).reshape(2, -1)
    against = [np.array([x[0] - chance, x[2] - chance, x[0] - x[1]]) for x in (trained, untrained)]
    return np.concatenate([[chance], trained, untrained, *against, (trained - untrained)[[0, 2]]])


def _carriers(rows_NK: np.ndarray) -> np.ndarray:
    """(N, len(NUMBERS)): nan where a row says nothing about a number."""
    chance, trained, untrained = rows_NK[:, :1], rows_NK[:, 1:6], rows_NK[:, 6:]
    against = [
        np.stack([x[:, 0], x[:, 2], x[:, 0] + x[:, 1]], axis=1) for x in (trained, untrained)
    ]
    both = trained[:, [0, 2]] + untrained[:, [0, 2]]
    return np.concatenate([chance, trained, untrained, *against, both], axis=1)


def _limits(name: str) -> tuple[float, float]:
    if name.endswith("cnr"):
        return metrics.UNLIMITED
    return metrics.DIFFERENCE if "minus_" in name else metrics.UNIT


def over_rows(
    fn: Callable[[np.ndarray], np.ndarray],
    known_NK: np.ndarray,
    rows_NM: np.ndarray,
    groups: np.ndarray,
    **keys: Any,
) -> Resampled:
    """`resample` of K means over rows that do not all define all of them.

    Args:
        fn: rows (N, M) -> (K,).
        known_NK: nan where a row says nothing about a number.
    """
    each = [metrics.Support.of([~np.isnan(known_N)], groups) for known_N in known_NK.T]
    support = metrics.Support.joined(each)
    return metrics.resample(fn, rows_NM, groups=groups, support=support, **keys)


def mean_known(rows_NK: np.ndarray) -> np.ndarray:
    """Over the rows where a number is defined; nan where it is nowhere."""
    known_NK = ~np.isnan(rows_NK)
    with np.errstate(invalid="ignore"):
        return np.where(known_NK, rows_NK, 0).sum(axis=0) / known_NK.sum(axis=0)
