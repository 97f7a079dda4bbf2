"""Features of every split, extracted once, for the post-processing plug-ins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from vilmedic_ssl import console
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.data.images import ImageFiles, Images
from vilmedic_ssl.data.loader import EpochBatches, Loader
from vilmedic_ssl.errors import MissingSplit, UserError
from vilmedic_ssl.executors.validator import to_device
from vilmedic_ssl.models.base import READ, PretrainingModel

Source = Literal["model", "random_init", "pixels"]
PIXELS = 32  # side of the raw-pixel reference


@dataclass
class SplitFeatures:
    """What plug-ins know of one split.

    Attributes:
        name: the split.
        rows: per key (N, D) float32: encoder = before the projection, visual = after it; of paired
            models also text and linguistic, the same of the reports; of models that classify
            scores = the probability of each class, (N, C).
        labels: (N,) int64, -1 = unlabelled, or (N, C) float32 in {0, 1, nan = unknown}; None
            without labels.
        label_names: class names, in label order.
        ids: sample names.
        patients: group per sample; None = every sample its own.
    """

    name: str
    rows: dict[str, np.ndarray]
    labels: np.ndarray | None
    label_names: list[str]
    ids: list[str]
    patients: list[str] | None


class Features:
    """Features by split and source, computed on first use and kept.

    Args:
        make_dataset: dataset for a split in the evaluation view.
        models: the checkpoints' models; embeddings, whose axes differ from run to run, are
            normalised and concatenated; class scores are averaged.
        untrained: makes the same network with fresh weights.
        splits: the splits asked for in `ensemblor.splits`.
        tag: names the checkpoints in file names, for example best-1_0.
        load: the model of another run, and what it takes to feed it, by the path of its folder.

    Attributes:
        memory: what a plug-in computed from the features and another may ask for again, by name.
    """

    def __init__(
        self,
        make_dataset: Callable[[str], MedicalDataset],
        models: list[PretrainingModel],
        untrained: Callable[[], PretrainingModel],
        *,
        splits: list[str],
        tag: str,
        seed: int,
        batch_size: int,
        workers: int,
        device: torch.device,
        load: Callable[[str], tuple[PretrainingModel, Any]] | None = None,
    ):
        self.splits, self.tag, self.seed = splits, tag, seed
        self._make_dataset, self._models, self._untrained = make_dataset, models, untrained
        self._batch_size, self._workers, self._device = batch_size, workers, device
        self._load = load
        self._datasets: dict[str, MedicalDataset] = {}
        self._kept: dict[tuple[str, Source], SplitFeatures] = {}
        self.memory: dict[str, Any] = {}

    def load(self, path: str) -> tuple[PretrainingModel, Any]:
        """The model of another run in eval mode, on the CPU, and its processor.

        Raises:
            UserError: nothing there.
        """
        if self._load is None:
            raise UserError(f"{path}: no other run can be looked at from here")
        return self._load(path)

    def has(self, split: str) -> bool:
        """True when the data has such a split."""
        try:
            self.dataset(split)
        except MissingSplit:
            return False
        return True

    def dataset(self, split: str) -> MedicalDataset:
        """The split in its evaluation view.

        Raises:
            MissingSplit: the data has no such split.
        """
        if split not in self._datasets:
            self._datasets[split] = self._make_dataset(split)
        return self._datasets[split]

    def get(self, split: str, source: Source = "model") -> SplitFeatures:
        """Features of a split: of the model, of the same network untrained, or its raw 32 x 32
        grey pixels, which have only the key `encoder`.
        """
        if (split, source) not in self._kept:
            self._extract(split, source)
        return self._kept[split, source]

    def _extract(self, split: str, source: Source) -> None:
        dataset = self.dataset(split)
        models = [self._untrained()] if source == "random_init" else self._models
        parts: list[dict[str, torch.Tensor]] = []
        for batch in self.batches(split, source):
            images = batch["images"]
            with torch.no_grad():
                pixels = source == "pixels"
                found = {"encoder": small_pixels(images)} if pixels else self._embed(models, batch)
                parts.append(found)
        rows = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        self._kept[split, source] = SplitFeatures(
            split,
            rows,
            dataset.labels,
            list(dataset.label_names),
            list(dataset.ids),
            dataset.patients,
        )

    def batches(self, split: str, told: str) -> Iterator[dict[str, Any]]:
        """A split in its evaluation view, on the device, in order, with a progress bar that says
        `told`.
        """
        loader = self._loader(self.dataset(split))
        bar = console.Bar(len(loader), desc=f"{split}, {told}", unit="batch")
        for batch in loader.epoch(0):
            yield to_device(batch, self._device)
            bar.advance()
        bar.close()
        loader.close()

    def embed(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C, H, W) on the device -> what `get` has as rows, on the CPU."""
        with torch.no_grad():
            return self._embed(self._models, {"images": images})

    def _embed(
        self, models: list[PretrainingModel], batch: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """One model's embeddings as they are; several models' normalised and side by side, their
        class scores averaged.
        """
        outs = [model.encode(batch["images"]) for model in models]
        if READ[0] in batch:
            read = {name: batch[name] for name in READ}
            outs = [
                out | model.encode_text(**read) for out, model in zip(outs, models, strict=True)
            ]
        if len(outs) == 1:
            return {key: value.float().cpu() for key, value in outs[0].items()}
        joined = {}
        for key in outs[0]:
            values = [out[key].float() for out in outs]
            if key == "scores":
                joined[key] = torch.stack(values).mean(dim=0).cpu()
            else:
                joined[key] = torch.cat([F.normalize(value) for value in values], dim=1).cpu()
        return joined

    def _loader(self, dataset: MedicalDataset) -> Loader:
        sampler = EpochBatches(len(dataset), batch_size=self._batch_size, seed=0, shuffle=False)
        pin = self._device.type == "cuda"
        return Loader(dataset, sampler, workers=self._workers, pin_memory=pin)

    @property
    def models(self) -> list[PretrainingModel]:
        """The checkpoints' models in eval mode, best first."""
        return list(self._models)

    def untrained(self) -> PretrainingModel:
        """The same network with fresh weights, in eval mode; each call gives the same ones."""
        return self._untrained()

    def of_best(self) -> Features:
        """Features of the best checkpoint alone, for plug-ins that look into one network."""
        if len(self._models) == 1:
            return self
        best = copy.copy(self)
        best._models, best.memory = self._models[:1], {}
        best._kept = {key: kept for key, kept in self._kept.items() if key[1] != "model"}
        return best

    def inputs(self, split: str, indices: list[int]) -> torch.Tensor:
        """Evaluation views of samples as the network sees them, (B, C, H, W), on its device."""
        items = [self.dataset(split)[index]["images"] for index in indices]
        return torch.stack(items).to(self._device)

    def of_file(self, path: Path) -> dict[str, np.ndarray]:
        """The model's features of an image file, read and resized as the data's images are: per key
        (1, D) float32.

        Raises:
            UserError: no such file, unreadable, or no dataset of image files.
        """
        files = getattr(self.dataset(self.splits[0]), "files", None)
        if not isinstance(files, Images):
            raise UserError(f"{path}: this dataset does not say how an image file is read")
        if not path.is_file():
            raise UserError(f"{path}: there is no such image; write the path of one")
        transform = replace(files.transform, channels=files.mode)
        image = ImageFiles([path], transform, augment=False).view(0, 0)
        with torch.no_grad():
            rows = self._embed(self._models, {"images": image[None].to(self._device)})
        return {key: value.numpy() for key, value in rows.items()}

    def images(self, split: str, indices: list[int]) -> list[np.ndarray]:
        """uint8 pictures (H, W) or (H, W, 3) of samples as the network sees them, before
        normalisation.
        """
        dataset, pictures = self.dataset(split), []
        for index in indices:
            image = dataset.picture(index)
            array = (image * 255).round().to(torch.uint8).numpy()
            pictures.append(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
        return pictures


def small_pixels(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> mean over channels at 32 x 32, flattened, on the CPU."""
    grey = images.float().cpu().mean(1, keepdim=True)
    small = F.interpolate(
        grey, size=(PIXELS, PIXELS), mode="bilinear", antialias=True, align_corners=False
    )
    return small.flatten(1)
