"""A trained model and what it takes to feed it, from a run folder or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilmedic_ssl.data.datasets.tok import ImageDataset
from vilmedic_ssl.data.images import ImageFiles
from vilmedic_ssl.data.legacy_keys import modern
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.registry import load_plugins
from vilmedic_ssl.schema import build, schema, without_weights


class Processor:
    """Files as the model saw them in evaluation: the same reading, resizing and normalisation."""

    def __init__(self, transform: Transform):
        self.transform = transform

    def inference(self, *, image: str | Path | list[str | Path]) -> dict[str, Tensor]:
        """Paths as a batch: `images` (B, C, H, W) float32.

        Raises:
            UserError: a file is missing or unreadable.
        """
        paths = [Path(p) for p in (image if isinstance(image, list) else [image])]
        if not paths:
            raise UserError(
                "processor.inference: the list of images is empty; give one path at least"
            )
        files = ImageFiles(paths, self.transform, augment=False)
        return {"images": torch.stack([files.view(i, 0) for i in range(len(paths))])}


class AutoModel:
    """`AutoModel.from_pretrained(path)` gives (model in eval mode, processor)."""

    @staticmethod
    def from_pretrained(
        path: str | Path, *, plugins: Sequence[str] = ()
    ) -> tuple[PretrainingModel, Processor]:
        """Load the best checkpoint of a run folder, or one file, onto the CPU.

        `model(**processor.inference(image="film.png"))` has `encoder` (B, D) and `visual` (B, P).
        Modules that register the model's proto must be named in `plugins`: a checkpoint alone
        never makes code run.

        Raises:
            UserError: nothing there, or not a checkpoint of ours.
        """
        path = Path(path)
        file = checkpoint.find(path, "best") if path.is_dir() else path
        content = checkpoint.read_run(file)
        load_plugins(plugins)
        model: PretrainingModel = build(without_weights(content["config"]["model"]), where="model")
        checkpoint.load_weights(model, content["ema"] or content["model"], file)
        return model.eval(), Processor(transform_of(content["config"]["dataset"]))


def transform_of(node: Mapping[str, Any]) -> Transform:
    """The transform settings inside a dataset node, wherever its proto keeps them."""
    if "image" in node:
        return transform_of(node["image"])
    flat = {ImageDataset.TRANSFORM_KEYS.get(key, key): value for key, value in node.items()}
    flat = {key: value for key, value in flat.items() if key in schema(Transform)}
    keys = node.get("transform") or (flat and modern(flat))
    if not keys:
        raise UserError(f"the dataset {node.get('proto')!r} of this checkpoint tells no transform")
    return Transform(**keys)
