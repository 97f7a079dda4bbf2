"""What a model that draws makes of images, as a picture: while it trains, and afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilmedic_ssl import console
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.files import atomic
from vilmedic_ssl.models.base import PretrainingModel


class Gallery:
    """The same few images of a split at every evaluation, and what the model draws of them.

    Files: `reconstructions/epoch_<epoch>_step_<step>_<seed>.png` in the run folder.

    Args:
        dataset: of views, whose first `number` images are shown.

    Raises:
        ConfigError: the model does not draw, or the data are no pictures.
    """

    def __init__(
        self, model: PretrainingModel, dataset: MedicalDataset, number: int, folder: Path, seed: int
    ):
        pipeline: Any = getattr(getattr(dataset, "files", None), "pipeline", None)
        if not hasattr(model, "reconstruct") or pipeline is None:
            raise ConfigError(
                f"validator.reconstructions: {number}, but {type(model).__name__} draws no images "
                "of this data; write 0"
            )
        self.folder, self.seed = folder / "reconstructions", seed
        chosen = range(min(number, len(dataset)))
        images = torch.stack([dataset[i]["images"][0] for i in chosen])
        device = next(model.parameters()).device
        self.images, self.seeds = images.to(device), torch.tensor(list(chosen), device=device)
        self.mean, self.std = pipeline.mean, pipeline.std

    @torch.no_grad()
    def draw(self, model: Any, *, epoch: int, step: int) -> None:
        """Write the picture of this moment."""
        training = model.training
        model.eval()
        drawn = model.reconstruct(self.images, self.seeds)
        model.train(training)
        pictures = {name: as_pictures(x, self.mean, self.std) for name, x in drawn.items()}
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"epoch_{epoch:04d}_step_{step:06d}_{self.seed}.png"
        draw_columns(pictures, path, title=f"epoch {epoch}, step {step}")
        console.say(f"reconstructions {path}")


def as_pictures(images_BCHW: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """Normalised tensors as pictures (B, H, W, C) in [0, 1]."""
    shown = images_BCHW.float().cpu() * std + mean
    return shown.clamp(0, 1).permute(0, 2, 3, 1).numpy()


def draw_columns(
    columns: Mapping[str, np.ndarray], path: Path, *, title: str | None = None
) -> None:
    """Pictures (B, H, W, C) in columns with captions, two images to a row."""
    from matplotlib.figure import Figure

    shown: Sequence[np.ndarray] = list(columns.values())
    count, height, width = shown[0].shape[:3]
    across = 2 if count > 1 else 1
    rows, wide = -(-count // across), across * len(shown)
    size = wide * 1.5, rows * 1.5 * height / width + 0.3 + 0.3 * (title is not None)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    plots = figure.subplots(rows, wide, squeeze=False)
    for plot in plots.flat:
        plot.set_axis_off()
    for i in range(count):
        for k, (caption, pictures) in enumerate(columns.items()):
            plot = plots[i // across, len(shown) * (i % across) + k]
            plot.imshow(pictures[i], cmap="gray", vmin=0, vmax=1)
            if i < across:
                plot.set_title(caption, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=10)
    with atomic(path) as file:
        figure.savefig(file, dpi=150)
