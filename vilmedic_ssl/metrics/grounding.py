"""Does the heat lie where the finding is?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError

THRESHOLDS = 0.1, 0.2, 0.3, 0.4, 0.5  # of `miou`


def energy_inside(heat: Any, mask: Any) -> float:
    """Share of a map that lies inside a finding (Wang et al. 2020, Score-CAM, section 4.3).

    Args:
        heat: (H, W), at least 0; nan pixels are left out.
        mask: (H, W), non-zero inside the finding's box or outline; or floats from 0 to 1, the share
            of each pixel that is inside, of the mean of several outlines for example.

    Returns:
        A number from 0 to 1. A map of zeros points nowhere and counts as an even one: it gives the
        share of the area, which is what chance gives.

    Raises:
        UserError: the shapes differ; a negative value.
    """
    heat_HW, inside_HW = _pair(heat, mask, "energy_inside")
    if np.asarray(mask).dtype.kind == "f":
        inside_HW = np.asarray(mask)
    if np.nanmin(heat_HW, initial=0) < 0:
        raise UserError("energy_inside: the map has negative values; take its positive part")
    known_HW = ~np.isnan(heat_HW)
    total = heat_HW[known_HW].sum()
    if total == 0:
        return float(inside_HW[known_HW].mean())
    return float((heat_HW * inside_HW)[known_HW].sum() / total)


def pointing_game(heat: Any, mask: Any, *, tolerance: float = 0) -> float:
    """1 when the largest value of a map lies inside a finding, else 0 (Zhang et al. 2018); where
    several are the largest, their share inside.

    Args:
        heat: (H, W) any scale; nan pixels are left out.
        mask: (H, W), non-zero inside the finding's box or outline.
        tolerance: pixels from the finding that still count as inside; theirs is 15.

    Returns:
        A number from 0 to 1; nan for a map of nan. An even map gives the share of the area.

    Raises:
        UserError: the shapes differ.
    """
    heat_HW, inside_HW = _pair(heat, mask, "pointing_game")
    if tolerance > 0 and inside_HW.any():
        from scipy.ndimage import distance_transform_edt

        inside_HW = distance_transform_edt(~inside_HW) <= tolerance
    if np.isnan(heat_HW).all():
        return float("nan")
    return float(inside_HW[heat_HW == np.nanmax(heat_HW)].mean())


def miou(heat: Any, mask: Any, *, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Mean over thresholds of the intersection over union of where a map is above the threshold
    and a finding (Boecking et al. 2022, BioViL).

    Args:
        heat: (H, W) in [-1, 1]: cosines, or a map scaled to [0, 1], which gives another number;
            nan pixels are left out.
        mask: (H, W), non-zero inside the finding's box or outline, of one part or several.
        thresholds: theirs are 0.1, 0.2, 0.3, 0.4 and 0.5.

    Returns:
        A number from 0 to 1; nan for an empty finding. A map that is high everywhere gives the
        share of the area.

    Raises:
        UserError: the shapes differ; a value outside [-1, 1].
    """
    heat_HW, mask_HW = _pair(heat, mask, "miou")
    known_HW = ~np.isnan(heat_HW)
    heat_K, inside_K = heat_HW[known_HW], mask_HW[known_HW]
    if not inside_K.any():
        return float("nan")
    if np.abs(heat_K).max() > 1 + 1e-5:  # a cosine in float32 may pass 1 by rounding
        raise UserError(
            f"miou: the map goes from {heat_K.min():.3g} to {heat_K.max():.3g}; give cosines, or "
            "scale it to [0, 1]"
        )
    above_TK = heat_K > np.asarray(thresholds)[:, None]
    both_T, either_T = (above_TK & inside_K).sum(1), (above_TK | inside_K).sum(1)
    return float((both_T / either_T).mean())


def _pair(heat: Any, mask: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    heat_HW, mask_HW = np.asarray(heat, dtype=np.float64), np.asarray(mask) != 0
    if heat_HW.shape != mask_HW.shape:
        raise UserError(f"{name}: heat {heat_HW.shape} and mask {mask_HW.shape} differ in shape")
    return heat_HW, mask_HW


def grounding_cnr(heat: Any, mask: Any, *, signed: bool = False) -> float:
    """Contrast-to-noise ratio |mean inside - mean outside| / sqrt(variance inside + variance
    outside).

    Args:
        heat: (H, W) any scale; nan pixels (outside a centre crop, say) are left out, not read as 0.
        mask: (H, W), non-zero inside the finding's box or outline.
        signed: without the bars: a map that spares the finding, which by the published definition
            does as well as one that shows it, gets a negative number.

    Returns:
        A number >= 0, or of either sign; 0 for a constant map, inf for a noiseless one, nan when
        inside or outside is empty.

    Raises:
        UserError: the shapes differ.
    """
    heat_HW, mask_HW = _pair(heat, mask, "grounding_cnr")
    known_HW = ~np.isnan(heat_HW)
    inside, outside = heat_HW[mask_HW & known_HW], heat_HW[~mask_HW & known_HW]
    if not len(inside) or not len(outside):
        return float("nan")
    contrast, noise = inside.mean() - outside.mean(), np.sqrt(inside.var() + outside.var())
    if contrast == 0:
        return 0.0
    contrast = contrast if signed else abs(contrast)
    return float(contrast / noise) if noise > 0 else float(np.copysign(np.inf, contrast))
