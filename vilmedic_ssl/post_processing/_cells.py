"""Heat maps of phrases: asked for once, smoothed, and brought to the size of the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from vilmedic_ssl.console import progress
from vilmedic_ssl.post_processing._phrases import Reader

CHUNK = 64  # phrases at a time
Cells = dict[tuple[int, str], np.ndarray]
"""(number of the image, phrase) -> (h, w) float32, cosines of its places, smoothed."""


def cells_of(
    reader: Reader, split: str, queries: Iterable[tuple[int, str]], *, sigma: float, desc: str
) -> Cells:
    """The smoothed heat of each image and phrase that is asked for."""
    wanted = list(dict.fromkeys(queries))
    cells: Cells = {}
    for at in progress(range(0, len(wanted), CHUNK), desc=desc, unit="batch"):
        some = wanted[at : at + CHUNK]
        heat_Khw = reader.heat(split, [i for i, _ in some], [text for _, text in some])
        cells.update(zip(some, smoothed(heat_Khw, sigma), strict=True))
    return cells


def smoothed(heat_Khw: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing with a standard deviation of `sigma` times the sides of the maps; what is
    beyond the border is their mirror image. 0.1 are the 1.5 of 15 places of BioViL's code
    (Microsoft, hi-ml-multimodal).
    """
    from scipy.ndimage import gaussian_filter

    height, width = heat_Khw.shape[1:]
    return gaussian_filter(heat_Khw, sigma=(0, sigma * height, sigma * width))


def at_view(heat_hw: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(h, w) -> (H, W), bilinear: values stay between those of the places."""
    map_11hw = torch.from_numpy(np.ascontiguousarray(heat_hw))[None, None]
    return F.interpolate(map_11hw, size=tuple(size), mode="bilinear")[0, 0].numpy()


def scaled(heat_HW: np.ndarray) -> np.ndarray:
    """From its minimum to its maximum as [0, 1]; zeros for a constant map."""
    low, high = heat_HW.min(), heat_HW.max()
    return (heat_HW - low) / (high - low) if high > low else np.zeros_like(heat_HW)
