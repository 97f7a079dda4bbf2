"""What a model that draws makes of images: what was masked (MAE), or all of it (VAE)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors.reconstructions import as_pictures, draw_columns
from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto

if TYPE_CHECKING:
    from torch import Tensor

MASKED = "what it sees"
HIDDEN_IN_BLUE = (
    " (hidden patches in blue); with normalised pixels the mean and the contrast of each hidden "
    "patch are the image's own: look at shapes"
)
HIDDEN = (0.55, 0.70, 0.90)  # a light blue, which no grey film has


@proto
def plot_reconstruction(
    features: Features, out: Path, *, images: int = 8
) -> Iterator[tuple[str, Value]]:
    """Draw images beside what the model makes of them: MAE of what is left behind its mask, VAE of
    their codes.

    Images are chosen at random, their masks too; both stay the same from run to run. Patches that
    MAE saw are shown as they are; with normalised pixels the brightness and contrast of a drawn
    patch are those of the image. Of several checkpoints the best one draws.

    File: `plot_reconstruction_<tag>_<split>.png`.

    Args:
        images: how many per split.

    Raises:
        UserError: the model cannot reconstruct, or no dataset of pictures.
    """
    import torch

    if images < 1:
        raise ConfigError(f"plot_reconstruction.images: {images}; write 1 or more")
    model = features.models[0]
    reconstruct = getattr(model, "reconstruct", None)
    if reconstruct is None:
        raise UserError(
            f"plot_reconstruction: {type(model).__name__} does not reconstruct images; write "
            "model.proto=MAE or VAE, or take plot_reconstruction out of ensemblor.post_processing"
        )
    for split in features.splits:
        number = len(features.get(split).ids)
        mixed = np.random.default_rng(features.seed).permutation(number)
        chosen = sorted(mixed[:images].tolist())
        inputs = features.inputs(split, chosen)
        drawn = reconstruct(inputs, torch.tensor(chosen, device=inputs.device))
        data = features.dataset(split)
        pictures = torch.stack([data.picture(index) for index in chosen]).double()
        parts = [part.double().cpu() for part in drawn.values()]
        mean, std = _normalisation(parts[0], pictures)
        shown = {
            name: as_pictures(part.expand(-1, 3, -1, -1), mean, std)
            for name, part in zip(drawn, parts, strict=True)
        }
        if MASKED in shown:
            hidden = ((drawn[MASKED] == 0) & (drawn["image"] != 0)).cpu().permute(0, 2, 3, 1)
            shown[MASKED] = np.where(hidden.numpy(), HIDDEN, shown[MASKED])
        path = out / f"plot_reconstruction_{features.tag}_{split}.png"
        draw_columns(shown, path)
        caption = ", ".join(shown) + HIDDEN_IN_BLUE * (MASKED in shown)
        yield f"reconstruction, {split}: {caption}", path


def _normalisation(first_BCHW: Tensor, pictures_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, found by comparing normalised images with the pictures they
    were made of.
    """
    axes = (0, 2, 3)
    spread = first_BCHW.std(axes, keepdim=True)
    std = pictures_BCHW.std(axes, keepdim=True) / spread.clamp_min(1e-12)
    mean = pictures_BCHW.mean(axes, keepdim=True) - first_BCHW.mean(axes, keepdim=True) * std
    return mean, std
