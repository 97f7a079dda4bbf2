"""Does the heat lie where the finding is?"""

from __future__ import annotations

from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError


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


def pointing_game(heat: Any, mask: Any) -> float:
    """1 when the largest value of a map lies inside a finding, else 0 (Zhang et al. 2018,
    without their tolerance of 15 pixels); where several are the largest, their share inside.

    Arguments and errors as for `energy_inside`; a map of zeros gives the share of the area.
    """
    heat_HW, inside_HW = _pair(heat, mask, "pointing_game")
    return float(inside_HW[heat_HW == np.nanmax(heat_HW)].mean())


def _pair(heat: Any, mask: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    heat_HW, mask_HW = np.asarray(heat, dtype=np.float64), np.asarray(mask) != 0
    if heat_HW.shape != mask_HW.shape:
        raise UserError(f"{name}: heat {heat_HW.shape} and mask {mask_HW.shape} differ in shape")
    return heat_HW, mask_HW


def grounding_cnr(heat: Any, mask: Any) -> float:
    """Contrast-to-noise ratio |mean inside - mean outside| / sqrt(variance inside + variance
    outside).

    Args:
        heat: (H, W) any scale; nan pixels (outside a centre crop, say) are left out, not read as 0.
        mask: (H, W), non-zero inside the finding's box or outline.

    Returns:
        A number >= 0; 0 for a constant map, inf for a noiseless one, nan when inside or outside is
        empty.

    Raises:
        UserError: the shapes differ.
    """
    heat_HW, mask_HW = _pair(heat, mask, "grounding_cnr")
    known_HW = ~np.isnan(heat_HW)
    inside, outside = heat_HW[mask_HW & known_HW], heat_HW[~mask_HW & known_HW]
    if not len(inside) or not len(outside):
        return float("nan")
    contrast, noise = abs(inside.mean() - outside.mean()), np.sqrt(inside.var() + outside.var())
    if contrast == 0:
        return 0.0
    return float(contrast / noise) if noise > 0 else float("inf")
