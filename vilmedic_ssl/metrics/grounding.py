"""Does the heat lie where the finding is?"""

from __future__ import annotations

from typing import Any

import numpy as np

from vilmedic_ssl.errors import UserError


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
    heat_HW, mask_HW = np.asarray(heat, dtype=np.float64), np.asarray(mask) != 0
    if heat_HW.shape != mask_HW.shape:
        raise UserError(
            f"grounding_cnr: heat {heat_HW.shape} and mask {mask_HW.shape} differ in shape"
        )
    known_HW = ~np.isnan(heat_HW)
    inside, outside = heat_HW[mask_HW & known_HW], heat_HW[~mask_HW & known_HW]
    if not len(inside) or not len(outside):
        return float("nan")
    contrast, noise = abs(inside.mean() - outside.mean()), np.sqrt(inside.var() + outside.var())
    if contrast == 0:
        return 0.0
    return float(contrast / noise) if noise > 0 else float("inf")
