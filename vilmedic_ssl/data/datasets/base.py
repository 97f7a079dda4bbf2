"""What every dataset offers the executors, and the image files most of them hold."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from vilmedic_ssl import console
from vilmedic_ssl.config import digest
from vilmedic_ssl.data.read import channels_of, read_image
from vilmedic_ssl.data.transforms import Pipeline, Transform
from vilmedic_ssl.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".npy")
SNIFFED = 16  # files looked at to tell grey from colour


@dataclass(frozen=True)
class Context:
    """Why a dataset is built.

    Attributes:
        split: train, validate, test or any other name the data uses.
        augment: random training views instead of the one evaluation view.
        run_dir: folder of the run, for vocabularies and label lists that belong to it.
    """

    split: str
    augment: bool = False
    run_dir: Path | None = None


class MedicalDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples with ids, and where the data has them labels, patients and reports.

    Attributes:
        split: name of the split.
        ids: one name per sample, unique within the split.
        labels: (N,) int64 classes, or (N, C) float32 in {0, 1, nan = unknown}; None without labels.
        label_names: class names, in label order.
        patients: group of each sample for splits and intervals; None = unknown.
    """

    split: str
    ids: list[str]
    labels: np.ndarray | None = None
    label_names: list[str] = []
    patients: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, index: int, seed: int) -> dict[str, Any]:
        """One sample; equal (index, seed) give equal tensors."""
        raise TypeError(f"{type(self).__name__} defines no item()")

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        sample = {**self.item(index, seed), "index": index, "id": self.ids[index]}
        if self.labels is not None:
            sample["labels"] = torch.as_tensor(self.labels[index])
        return sample

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """A list of samples as one batch."""
        try:
            return default_collate(items)
        except RuntimeError as error:
            raise UserError(
                f"images of one batch differ in shape ({error}); set dataset.transform.crop"
            ) from error

    def content(self) -> Any:
        """What the fingerprint covers: plain data that changes when the samples do."""
        labels = None if self.labels is None else np.nan_to_num(self.labels, nan=-1).tolist()
        return [self.ids, labels, self.patients]

    def fingerprint(self) -> str:
        """Sixteen hex digits naming ids, labels, patients and file sizes."""
        return digest(self.content())

    def members(self) -> Tensor:
        """(N,) int64, sorted: each sample's id as 63 bits, to find the same sample elsewhere."""
        bits = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in self.ids]
        return torch.tensor(sorted(int.from_bytes(b, "big") >> 1 for b in bits))

    def card(self) -> dict[str, Any]:
        """What a reader should know about this split."""
        card: dict[str, Any] = {"images": len(self), "hash": self.fingerprint()}
        if self.patients is not None:
            card["patients"] = len(set(self.patients))
        if self.labels is not None and self.labels.ndim == 1:
            counts = Counter(self.labels.tolist())
            card["classes"] = {name: counts.get(i, 0) for i, name in enumerate(self.label_names)}
        elif self.labels is not None:
            positive, known = np.nansum(self.labels, axis=0), np.sum(~np.isnan(self.labels), axis=0)
            rows = zip(self.label_names, positive, known, strict=True)
            card["positive of known"] = {name: f"{int(p)} of {int(k)}" for name, p, k in rows}
        return card


class ImageFiles:
    """Image files read, prepared and turned into views."""

    def __init__(self, paths: Sequence[Path], transform: Transform, *, augment: bool):
        self.paths = list(paths)
        self.mode: Literal["gray", "rgb"]
        if transform.channels == "auto":
            step = max(1, len(self.paths) // SNIFFED)
            colour = any(channels_of(path) == 3 for path in self.paths[::step][:SNIFFED])
            self.mode = "rgb" if colour else "gray"
        else:
            self.mode = transform.channels
        self.pipeline = Pipeline(transform, channels=self.mode, random=augment)
        self.memory: list[Tensor] | None = None
        if transform.load_memory:  # before workers are forked, so that they share it
            numbers = console.progress(range(len(self.paths)), desc="images into memory")
            self.memory = [self._read(i).half() for i in numbers]

    def _read(self, index: int) -> Tensor:
        return self.pipeline.prepare(read_image(self.paths[index], mode=self.mode))

    def prepared(self, index: int) -> Tensor:
        """(C, H, W) float32 in [0, 1], resized."""
        return self._read(index) if self.memory is None else self.memory[index].float()

    def view(self, index: int, seed: int) -> Tensor:
        return self.pipeline(self.prepared(index), seed)

    def sizes(self) -> list[int]:
        """Bytes per file.

        Raises:
            UserError: a file is missing.
        """
        try:
            return [path.stat().st_size for path in self.paths]
        except OSError as error:
            raise UserError(
                f"{error.filename}: there is no such image; correct its line or fetch the data"
            ) from error


def channels_owner(node: Any) -> Any:
    """The part of a dataset node that holds the `channels` key, or None."""
    for key in ("image", "transform"):
        if isinstance(node.get(key), dict):
            return channels_owner(node[key])
    return node if "channels" in node else None


def pin_channels(node: Any, files: ImageFiles | None) -> None:
    """Write what `channels: auto` came to into a dataset node, for splits and runs to come."""
    owner = channels_owner(node)
    if owner is not None and files is not None:
        owner["channels"] = files.mode


def take_channels(node: Any, trained: Any) -> None:
    """`channels: auto` means what it meant in training."""
    owner, then = channels_owner(node), channels_owner(trained)
    if owner is not None and then is not None and owner["channels"] == "auto":
        owner["channels"] = then["channels"]


class ImageRecords(MedicalDataset):
    """A dataset of image files."""

    files: ImageFiles

    def item(self, index: int, seed: int) -> dict[str, Any]:
        return {"images": self.files.view(index, seed)}

    def content(self) -> Any:
        return [super().content(), self.files.sizes()]


def patients_of(names: Sequence[str], pattern: str | None) -> list[str] | None:
    """The patient in each file name: the first group of a regular expression that took
    part, or its whole match.

    A name the pattern does not match is its own patient.

    Raises:
        UserError: invalid pattern, or one that matches no name at all.
    """
    if pattern is None:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"dataset.patient_pattern: {pattern!r} is no regular expression ({error})"
        ) from error
    matches = [expression.search(name) for name in names]
    if names and not any(matches):
        raise UserError(
            f"dataset.patient_pattern: {pattern!r} matches no file name, for example not "
            f"{names[0]!r}"
        )
    return [
        next((group for group in m.groups() if group is not None), m.group(0)) if m else name
        for m, name in zip(matches, names, strict=True)
    ]
