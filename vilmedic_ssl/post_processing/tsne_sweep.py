"""One t-SNE map per perplexity, and where images that the map has not seen would lie."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl.console import progress
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.metrics.arrays import as_features, unit_rows
from vilmedic_ssl.metrics.knn import neighbours
from vilmedic_ssl.post_processing._project import tsne
from vilmedic_ssl.post_processing._scatter import COLOURS, SHAPES
from vilmedic_ssl.post_processing._shared import Features, Value, rows_of
from vilmedic_ssl.post_processing.plot_representation import FEWEST, choose, select
from vilmedic_ssl.registry import proto

COLUMNS = 3
NEAREST, TAU = 5, 0.07  # who says where an unseen image lies, and how sharply (as the kNN vote)


@dataclass(frozen=True)
class Points:
    """Unit features (N, D), the name of each row's class, and what they are in words."""

    x_ND: np.ndarray
    names_N: np.ndarray
    told: str


@proto
def tsne_sweep(
    features: Features,
    out: Path,
    *,
    perplexities: list[float] = (5, 15, 30, 50, 100),  # type: ignore[assignment]
    key: str = "encoder",
    split: str = "train",
    place: str | None = None,
    image: str | None = None,
    max_points: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """Draw one split by t-SNE with several perplexities, side by side: what stays is in the data,
    what moves is t-SNE's.

    t-SNE has no transform, so images that were not in the fit (`place`, `image`) are put at the
    weighted mean of the positions of their 5 nearest neighbours among those that were, by cosine,
    with weights exp(cosine / 0.07). One between two groups therefore lies between them. Rows are
    brought to unit length and, beyond 50 dimensions, reduced to 50 by PCA. Of findings only images
    with exactly one are drawn.

    File: `tsne_sweep_<tag>_<split>_<key>.png`.

    Args:
        perplexities: t-SNE's neighbourhoods, one map each; lowered to a third of the points.
        key: the features to draw: encoder (before the projection) or visual (after it).
        split: the split that is fitted and drawn.
        place: a split whose images are put on that map, with a dark edge.
        image: path of an image file that is put there too, as a star.
        max_points: images at most of either split, drawn at random beyond.

    Raises:
        UserError: no such split, key or image, or fewer than four images to draw.
    """
    if not perplexities or min(perplexities) <= 0:
        raise ConfigError(f"tsne_sweep.perplexities: {perplexities}; write numbers above 0")
    fitted, order = _points(features, split, key, max_points)
    if len(fitted.x_ND) < FEWEST:
        raise UserError(f"tsne_sweep: {split} has {len(fitted.x_ND)} images to draw, 4 are needed")
    placed = []
    if place is not None:
        dark = _points(features, place, key, max_points)[0]
        placed.append(replace(dark, told=f"{dark.told} (dark edge)"))
    if image is not None:
        x_1D = unit_rows(as_features(features.of_file(Path(image))[key], image))
        placed.append(Points(x_1D, np.array([""]), f"{Path(image).name} (star)"))
    most = (len(fitted.x_ND) - 1) / 3
    maps = {}
    for perplexity in progress(
        sorted({min(p, most) for p in perplexities}), desc="tsne_sweep", unit="map"
    ):
        xy_N2 = tsne(fitted.x_ND, perplexity=perplexity, seed=features.seed)
        maps[perplexity] = [xy_N2, *(put(xy_N2, fitted.x_ND, part.x_ND) for part in placed)]
    path = out / f"tsne_sweep_{features.tag}_{split}_{key}.png"
    _draw(maps, [fitted, *placed], order, path, title=f"t-SNE of {key}, {split}")
    yield f"t-SNE of {key} by perplexity, {_told([fitted, *placed])}", path


def put(xy_N2: np.ndarray, known_ND: np.ndarray, new_MD: np.ndarray) -> np.ndarray:
    """(M, 2): where rows that were not in the fit lie on a map of those that were, by the weighted
    mean of their nearest neighbours' positions.
    """
    near_MK, cos_MK = neighbours(new_MD, known_ND, k=NEAREST)
    weight_MK = np.exp((cos_MK - cos_MK.max(axis=1, keepdims=True)) / TAU)
    weight_MK /= weight_MK.sum(axis=1, keepdims=True)
    return np.einsum("mk,mkd->md", weight_MK, xy_N2[near_MK])


def _points(features: Features, split: str, key: str, most: int) -> tuple[Points, list[str]]:
    """What is drawn of a split, and the classes there are."""
    part = features.get(split)
    rows, names_N, order = select(part, None)
    if not len(rows):
        return Points(np.empty((0, 1)), names_N, f"0 of {split}"), order
    few = choose(names_N, None, most, seed=features.seed)["full"]
    x_ND = unit_rows(as_features(rows_of(part, key)[rows[few]], f"{split} {key}"))
    return Points(x_ND, names_N[few], f"{len(few):,} of {split}"), order


def _told(parts: list[Points]) -> str:
    first, *rest = (part.told for part in parts)
    if not rest:
        return f"{first} fitted"
    how = f"by the weighted mean of their {NEAREST} nearest neighbours' positions"
    return f"{first} fitted; {' and '.join(rest)} placed {how}"


def _draw(
    maps: dict[float, list[np.ndarray]],
    parts: list[Points],
    order: list[str],
    path: Path,
    *,
    title: str,
) -> None:
    from matplotlib.figure import Figure

    columns = 2 if len(maps) == 4 else min(COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    size = max(6.0, 3.1 * columns), 3.2 * rows + 0.9 + 0.08 * len(order)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    plots = list(figure.subplots(rows, columns, squeeze=False).flat)
    for plot in plots:
        plot.set_axis_off()
    for plot, (perplexity, places) in zip(plots, maps.items(), strict=False):
        plot.set_title(f"perplexity {perplexity:.3g}", loc="left", fontsize=11)
        for i, (xy_N2, part) in enumerate(zip(places, parts, strict=True)):
            _scatter(plot, xy_N2, part.names_N, order, new=i > 0)
    told = textwrap.fill(_told(parts), width=int(12 * size[0]))
    figure.suptitle(f"{title}\n{told}", x=0.02, ha="left", fontsize=10)
    handles, labels = plots[0].get_legend_handles_labels()
    if order:
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=3,
            fontsize=9,
            frameon=False,
            markerscale=2,
        )
    figure.savefig(path, dpi=150)


def _scatter(
    plot: Any, xy_N2: np.ndarray, names_N: np.ndarray, order: list[str], *, new: bool
) -> None:
    """Small pale points for what was fitted, larger ones with a dark edge for what was placed, and
    a star for what has no class.
    """
    size = float(np.clip(3000 / max(1, len(xy_N2)), 8, 40))
    for name in np.unique(names_N):
        mine = names_N == name
        known = name in order
        at = order.index(name) if known else 0
        look: dict[str, Any] = {
            "marker": SHAPES[(at + at // len(COLOURS)) % len(SHAPES)],
            "color": COLOURS[at % len(COLOURS)],
            "s": size,
            "edgecolors": "white",
            "linewidths": 0.3,
            "alpha": 0.6,
            "label": str(name),
        }
        if new:
            look |= {"s": 24, "edgecolors": "black", "linewidths": 0.7, "alpha": 1.0, "label": None}
        if new and not name:
            look |= {"marker": "*", "color": "black", "s": 220, "edgecolors": "white"}
        plot.scatter(*xy_N2[mine].T, rasterized=True, **look)
