"""What every dataset offers the executors."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from vilmedic_ssl.config import digest
from vilmedic_ssl.data.images import Images
from vilmedic_ssl.data.patients import Names, count_unknown
from vilmedic_ssl.data.texts import Texts
from vilmedic_ssl.errors import UserError


@dataclass(frozen=True)
class Context:
    """Why a dataset is built.

    Attributes:
        split: train, validate, test or any other name the data uses.
        augment: random training views instead of the one evaluation view.
        texts: reads the reports, where the model does; shared by all splits.
    """

    split: str
    augment: bool = False
    texts: Texts | None = None


class MedicalDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples with ids, and where the data has them labels, patients and reports.

    Attributes:
        split: name of the split.
        ids: one name per sample, unique within the split.
        labels: (N,) int64 classes, or (N, C) float32 in {0, 1, nan = unknown}; None without labels.
        label_names: class names, in label order.
        patients: group of each sample for splits and intervals, None = all are unknown; an
            unknown one (blank, None or NaN when it is set) becomes an `Unknown`, unlike all others.
        studies: visit of each sample, likewise.
        reports: text of each sample; None = the data has none.
        projections: how each picture was taken, PA or LATERAL for example; None = unknown.
        said: the reports as a model reads them, "" for nothing; None = no model does.
        texts: what reads them.
    """

    split: str
    ids: list[str]
    labels: np.ndarray | None = None
    label_names: list[str] = []
    patients = Names("patient")
    studies = Names("study")
    reports: list[str] | None = None
    projections: list[str] | None = None
    said: list[str] | None = None
    texts: Texts | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def paths(self) -> list[Path] | None:
        """The image file of each sample; None where pictures have no files, or there are none."""
        return None

    @property
    def views(self) -> int | None:
        """Training views per sample; None = plain images, for evaluation."""
        return None

    def item(self, index: int, seed: int) -> dict[str, Any]:
        """One sample; equal (index, seed) give equal tensors."""
        raise TypeError(f"{type(self).__name__} defines no item()")

    def decoded(self, index: int) -> Tensor:
        """The picture of a sample, (C, H, W) float32 in [0, 1], in full size.

        Raises:
            UserError: it is unreadable.
        """
        raise TypeError(f"{type(self).__name__} holds no pictures")

    def picture(self, index: int) -> Tensor:
        """(C, h, w) float32 in [0, 1]: the evaluation view before normalisation."""
        raise TypeError(f"{type(self).__name__} holds no pictures")

    def mask(self, index: int, finding: str, side: str | None = None) -> Tensor | None:
        """(h, w) bool: where in the evaluation view a finding is; None where the data does not say.

        Args:
            side: that of `outlined`; None = all parts of the finding.

        Raises:
            UserError: its file is unreadable.
        """
        return None

    def outlined(self, index: int) -> list[tuple[str, str]]:
        """The (finding, side) pairs of a sample that have a mask; side is left or right of the
        patient, or "" where the data does not say.
        """
        return []

    def ready(self, workers: int = 0) -> None:
        """Decode into memory or cache where the keys ask for it; the loader calls it."""

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        sample = {**self.item(index, seed), "index": index, "id": self.ids[index], "seeds": seed}
        if self.labels is not None:
            sample["labels"] = torch.as_tensor(self.labels[index])
        return sample

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """A list of samples as one batch."""
        try:
            batch = default_collate(items)
        except RuntimeError as error:
            raise UserError(
                f"images of one batch differ in shape ({error}); set dataset.transform.crop"
            ) from error
        return self.texts.collate(batch, items) if self.texts else batch

    def content(self) -> Any:
        """What the fingerprint covers: plain data that changes when the samples do."""
        labels = None if self.labels is None else np.nan_to_num(self.labels, nan=-1).tolist()
        return [self.ids, labels, self.patients]

    def fingerprint(self) -> str:
        """Sixteen hex digits naming ids, labels, patients and file sizes."""
        return digest(self.content())

    def members(self) -> Tensor:
        """(N,) int64, sorted: each sample's id as 63 bits, to find the same sample elsewhere."""
        bits = [
            hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
            for name in self.ids
        ]
        return torch.tensor(sorted(int.from_bytes(b, "big") >> 1 for b in bits))

    def card(self) -> dict[str, Any]:
        """What a reader should know about this split."""
        card: dict[str, Any] = {"images": len(self), "hash": self.fingerprint()}
        if self.patients is not None:
            card["patients"] = len(set(self.patients))
            if unknown := count_unknown(self.patients):
                card["images without a patient"] = unknown
        if self.labels is not None and self.labels.ndim == 1:
            counts = Counter(self.labels.tolist())
            card["classes"] = {name: counts.get(i, 0) for i, name in enumerate(self.label_names)}
        elif self.labels is not None:
            positive, known = np.nansum(self.labels, axis=0), np.sum(~np.isnan(self.labels), axis=0)
            rows = zip(self.label_names, positive, known, strict=True)
            card["positive of known"] = {name: f"{int(p)} of {int(k)}" for name, p, k in rows}
        return card


class ImageRecords(MedicalDataset):
    """A dataset of images, with reports where `said` has them.

    Attributes:
        augment: True when samples are training views.
    """

    files: Images
    augment: bool = False

    @property
    def views(self) -> int | None:
        return self.files.pipeline.views or None

    @property
    def paths(self) -> list[Path] | None:
        return self.files.paths

    def item(self, index: int, seed: int) -> dict[str, Any]:
        if self.said is None or self.texts is None:
            return dict(self.files.sample(index, seed))
        text, mirrored = self.said[index], False
        if self.augment:
            text, mirrored = self.texts.draw(text, seed)
        sample = {**self.files.sample(index, seed, mirrored=mirrored), "text": text}
        for name, values in (("study", self.studies), ("patient", self.patients)):
            if values is not None:
                sample[name] = values[index]
        return sample

    def decoded(self, index: int) -> Tensor:
        return self.files.decoded(index)

    def picture(self, index: int) -> Tensor:
        return self.files.picture(index)

    def ready(self, workers: int = 0) -> None:
        self.files.ready(workers)

    def content(self) -> Any:
        return [super().content(), self.files.sizes()]
