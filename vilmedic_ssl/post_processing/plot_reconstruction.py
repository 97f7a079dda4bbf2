"""What a masked autoencoder draws where it saw nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto

if TYPE_CHECKING:
    from torch import Tensor

TITLES = "image", "what it sees", "what it draws"
CAPTION = (
    "image, what the model sees of it (hidden patches in blue), what it draws; with normalised "
    "pixels the mean and the contrast of each hidden patch are the image's own: look at shapes"
)
HIDDEN = (0.55, 0.70, 0.90)  # a light blue, which no grey film has


@proto
def plot_reconstruction(
    features: Features, out: Path, *, images: int = 8
) -> Iterator[tuple[str, Value]]:
    """Draw images, what is left of them behind the mask, and what the model makes of that.

    Images are chosen at random, their masks too; both stay the same from run to run. Patches that
    were visible are shown as they are. With normalised pixels the brightness and contrast of a
    drawn patch are those of the image. Of several checkpoints the best one draws.

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
            "model.proto=MAE, or take plot_reconstruction out of ensemblor.post_processing"
        )
    for split in features.splits:
        number = len(features.get(split).ids)
        mixed = np.random.default_rng(features.seed).permutation(number)
        chosen = sorted(mixed[:images].tolist())
        inputs = features.inputs(split, chosen)
        three = reconstruct(inputs, torch.tensor(chosen, device=inputs.device))
        data = features.dataset(split)
        pictures = torch.stack([data.picture(index) for index in chosen]).double()
        three = [part.double().cpu() for part in three]
        hidden = (three[1] == 0) & (three[0] != 0)
        shown = [part.expand(-1, 3, -1, -1) for part in _denormalised(three, pictures)]
        shown[1] = torch.where(hidden, torch.tensor(HIDDEN).view(3, 1, 1), shown[1])
        path = out / f"plot_reconstruction_{features.tag}_{split}.png"
        _draw([part.clamp(0, 1).permute(0, 2, 3, 1).numpy() for part in shown], path)
        yield f"reconstruction, {split}: {CAPTION}", path


def _denormalised(three: list[Tensor], pictures_BCHW: Tensor) -> list[Tensor]:
    """Normalised tensors as pictures in [0, 1]: one scale and shift per channel, found by comparing
    the first of `three` with the pictures it was made of.
    """
    axes = (0, 2, 3)
    spread = three[0].std(axes, keepdim=True)
    scale = pictures_BCHW.std(axes, keepdim=True) / spread.clamp_min(1e-12)
    shift = pictures_BCHW.mean(axes, keepdim=True) - three[0].mean(axes, keepdim=True) * scale
    return [part * scale + shift for part in three]


def _draw(three: list[np.ndarray], path: Path) -> None:
    """Triples of pictures (B, H, W, C), two triples to a row."""
    from matplotlib.figure import Figure

    count, height, width = three[0].shape[:3]
    rows, columns = -(-count // 2), 6 if count > 1 else 3
    size = columns * 1.5, rows * 1.5 * height / width + 0.3
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    plots = figure.subplots(rows, columns, squeeze=False)
    for plot in plots.flat:
        plot.set_axis_off()
    for i in range(count):
        for k, (title, pictures) in enumerate(zip(TITLES, three, strict=True)):
            plot = plots[i // 2, 3 * (i % 2) + k]
            plot.imshow(pictures[i], cmap="gray", vmin=0, vmax=1)
            if i < 2:
                plot.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150)
