"""Pictures with a map over them, and pages of such pictures in aligned columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vilmedic_ssl.nets.saliency import upscaled

COLOURS = "inferno"  # equal steps of a map look equal, also in grey and to the colour-blind
CELL, GAP, LINE, BETWEEN, LABEL = 1.25, 0.05, 0.19, 0.3, 1.3  # inches
HEAD = 3 * LINE  # title and names of columns
OUTLINE = "#35d0ff"  # of a finding; a blue that inferno does not have


def masked(picture: np.ndarray, map_hw: np.ndarray) -> np.ndarray:
    """A picture seen through a map: 0.05 of its brightness where the map is 0, 1.2 where it is 1.

    Args:
        picture: uint8, (H, W) or (H, W, 3).  map_hw: (h, w) in [0, 1].

    Returns:
        uint8 (H, W, 3).
    """
    light_HW1 = _scaled(map_hw[..., None], picture.shape[:2]) * 1.15 + 0.05
    return (light_HW1 * _rgb(picture)).clip(0, 255).astype(np.uint8)


def coloured(
    picture: np.ndarray,
    map_hw: np.ndarray,
    *,
    colours: str = COLOURS,
    weights: tuple[float, float] = (0.4, 0.7),
) -> np.ndarray:
    """A map in colour added to a darker picture.

    Args:
        picture: uint8, (H, W) or (H, W, 3).  map_hw: (h, w) in [0, 1].  colours: a colour map of
            matplotlib.  weights: of the picture and of the colours.

    Returns:
        uint8 (H, W, 3).
    """
    from matplotlib import colormaps

    colour_hw3 = np.asarray(colormaps[colours](np.uint8(255 * map_hw)))[..., :3]
    shade, light = weights
    mixed = light * 255 * _scaled(colour_hw3, picture.shape[:2]) + shade * _rgb(picture)
    return mixed.clip(0, 255).astype(np.uint8)


def _rgb(picture: np.ndarray) -> np.ndarray:
    grey = picture.ndim == 2
    return np.repeat(picture[..., None], 3, axis=2) if grey else picture


def _scaled(map_hwK: np.ndarray, size: Sequence[int]) -> np.ndarray:
    maps_Khw = torch.from_numpy(map_hwK.astype(np.float64)).permute(2, 0, 1)
    return upscaled(maps_Khw, (size[0], size[1])).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Strip:
    """One line of a page.

    Attributes:
        caption: above the cells.
        cells: uint8 pictures (H, W) or (H, W, 3).
        outline: (H, W) bool, drawn on the first cell; None = nothing to draw.
    """

    caption: str
    cells: Sequence[np.ndarray]
    outline: np.ndarray | None = None


@dataclass(frozen=True)
class Block:
    """Strips below each other under a title, with a name over each column.

    Attributes:
        labels: of each line, to the left of it where they change; empty = none.
        strips: None leaves a line empty.
    """

    title: str
    columns: Sequence[str]
    strips: Sequence[Strip | None]
    labels: Sequence[str] = ()


def page(blocks: Sequence[Block], path: Path, *, beside: bool = True, cell: float = CELL) -> Path:
    """Write blocks beside or below each other as one PNG; cells are `cell` inches wide."""
    from matplotlib.figure import Figure

    height, width = next(s for b in blocks for s in b.strips if s).cells[0].shape[:2]
    tall = cell * height / width
    across = [(LABEL if b.labels else 0.1) + len(b.columns) * (cell + GAP) for b in blocks]
    down = [len(b.strips) * (LINE + tall + GAP) + HEAD for b in blocks]
    right = sum(across) + BETWEEN * (len(blocks) - 1) if beside else max(across)
    low = max(down) if beside else sum(down) + LINE * (len(blocks) - 1)
    figure = Figure(figsize=(right + 0.1, low + 0.1), facecolor="white")
    x, y = 0.0, 0.05
    for i, block in enumerate(blocks):
        _block(figure, block, x, y, cell, tall)
        x += (across[i] + BETWEEN) * beside
        y += (down[i] + LINE) * (not beside)
    figure.savefig(path, dpi=130)
    return path


def _block(figure: Any, block: Block, x: float, y: float, cell: float, tall: float) -> None:
    """Draw a block whose upper left corner is `x` and `y` inches from that of the page."""
    full = figure.get_size_inches()

    def text(x: float, y: float, words: str, **how: Any) -> None:
        figure.text(x / full[0], 1 - y / full[1], words, va="top", **how)

    at = x + (LABEL if block.labels else 0.1)
    text(at, y, block.title, fontsize=10.5, fontweight="bold")
    for k, name in enumerate(block.columns):
        middle = at + k * (cell + GAP) + cell / 2
        text(middle, y + 1.35 * LINE, name, fontsize=8.5, ha="center", color="#444444")
    y += HEAD - 0.4 * LINE
    for number, strip in enumerate(block.strips):
        if block.labels and block.labels[number] not in block.labels[:number]:
            text(x + 0.1, y + LINE, block.labels[number], fontsize=9)
        if strip is not None:
            text(at, y + 0.02, strip.caption, fontsize=7.5, color="#222222")
            for k, picture in enumerate(strip.cells):
                left, low = at + k * (cell + GAP), full[1] - y - LINE - tall
                box = left / full[0], low / full[1], cell / full[0], tall / full[1]
                plot = figure.add_axes(box)
                plot.set_axis_off()
                plot.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect="auto")
                if k == 0 and strip.outline is not None:
                    plot.contour(strip.outline, levels=[0.5], colors=OUTLINE, linewidths=0.9)
        y += LINE + tall + GAP
