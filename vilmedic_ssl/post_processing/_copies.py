"""Is a drawn image one of the training images? By its pixels, and by its codes.

N = training images, M = images that are looked at, P = pixels of a small picture, K = codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._shared import Features

if TYPE_CHECKING:
    from torch import Tensor

TRAIN = "train"
AT_ONCE = 256  # images compared with all of the training split
SHARE = 0.01  # of new films of other patients that would be taken for copies


@dataclass(frozen=True)
class Nearest:
    """What of the training split comes closest to an image.

    Attributes:
        pixels, pixels_id: distance of the standardised 32 x 32 grey pictures, 0 to 2, and whose.
        codes, codes_id: share of places with the same code, 0 to 1, and whose.
        copy: True when one of them is closer than all but 1 % of films of other patients come.
    """

    pixels: float
    pixels_id: str
    codes: float
    codes_id: str
    copy: bool


class CopyCheck:
    """
    Args:
        model: has `codes`.

    Raises:
        UserError: no training split, or none whose patients are not in it.
    """

    def __init__(self, features: Features, model: Any):
        others = [s for s in (*features.splits, "validate", "test") if not s.startswith(TRAIN)]
        held_out = next((split for split in others if features.has(split)), None)
        if not features.has(TRAIN) or held_out is None:
            raise UserError(
                "generate_images: to tell copies of training images, the splits train and one of "
                "validate and test are needed; give the dataset keys of the training"
            )
        self.ids = features.dataset(TRAIN).ids
        self.pixel_NP = standardised(features.get(TRAIN, "pixels").rows["encoder"])
        self.code_NK = codes_of(features, model, TRAIN)
        pixel_MP = standardised(features.get(held_out, "pixels").rows["encoder"])
        code_MK = codes_of(features, model, held_out)
        self.held_out = held_out
        self.least = float(np.quantile(self._pixels(pixel_MP)[0], SHARE))
        self.most = float(np.quantile(self._codes(code_MK)[0], 1 - SHARE))
        for what, blind in (("pixels", self.least <= 0), ("codes", self.most >= 1)):
            if blind:
                console.warn(
                    f"generate_images: films of {held_out} equal films of {TRAIN} in their {what}, "
                    "so a copy is not told by these"
                )

    def look(self, images_MCHW: Tensor, code_MK: np.ndarray) -> list[Nearest]:
        """Of images in [0, 1] on any device, with their codes."""
        from vilmedic_ssl.executors.features import small_pixels

        pixels = self._pixels(standardised(small_pixels(images_MCHW).numpy()))
        found = []
        for distance, i, share, k in zip(*pixels, *self._codes(code_MK), strict=True):
            copy = bool(distance < self.least or share > self.most)
            found.append(Nearest(float(distance), self.ids[i], float(share), self.ids[k], copy))
        return found

    def _pixels(self, pixel_MP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance to the nearest training image, and its row, (M,) each."""
        best: list[tuple[np.ndarray, np.ndarray]] = []
        for begin in range(0, len(pixel_MP), AT_ONCE):
            cosine_mN = pixel_MP[begin : begin + AT_ONCE] @ self.pixel_NP.T
            best.append((cosine_mN.max(1), cosine_mN.argmax(1)))
        best_M, rows_M = (np.concatenate(part) for part in zip(*best, strict=True))
        return np.sqrt(np.maximum(0.0, 2 - 2 * best_M)), rows_M

    def _codes(self, code_MK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Largest share of places with the code of a training image, and its row, (M,) each."""
        best = []
        for row_K in code_MK:
            share_N = (self.code_NK == row_K).mean(1)
            best.append((share_N.max(), share_N.argmax()))
        share_M, rows_M = zip(*best, strict=True)
        return np.array(share_M), np.array(rows_M)


def standardised(pixel_MP: np.ndarray) -> np.ndarray:
    """Without mean and contrast: unit length around 0."""
    centred = pixel_MP - pixel_MP.mean(1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def codes_of(features: Features, model: Any, split: str) -> np.ndarray:
    """(N, K) int32 of a split in its evaluation view."""
    import torch

    with torch.no_grad():
        found = [model.codes(batch["images"]).cpu() for batch in features.batches(split, "codes")]
    return torch.cat(found).int().numpy()
