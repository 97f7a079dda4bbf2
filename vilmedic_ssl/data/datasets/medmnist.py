"""MedMNIST: small medical pictures of twelve kinds, with the split of their publishers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.data.datasets.base import Context, ImageRecords
from vilmedic_ssl.data.images import ImageArray
from vilmedic_ssl.data.npz import Npz
from vilmedic_ssl.data.recipes.medmnist import SETS, VOLUMES, MedSet
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import ConfigError, MissingSplit, UserError
from vilmedic_ssl.registry import closest, proto

THEIRS = {"train": "train", "validate": "val", "test": "test"}  # our split -> theirs


@proto
class MedMNIST(ImageRecords):
    """One of the twelve two-dimensional MedMNIST sets, from the npz file as published.

    Multi-class, binary and ordinal sets have one class per picture, ChestMNIST fourteen findings.
    Patients are unknown.

    Attributes:
        name: the set, for example pneumoniamnist.
        size: side of the pictures, which chooses the file.
        root: folder of the npz files, as `data/download.py medmnist-NAME` makes it.
        transform: how pictures become tensors.
    """

    def __init__(
        self,
        context: Context,
        *,
        name: str,
        size: Literal[28, 64, 128, 224] = 28,
        root: str = "data/medmnist",
        transform: Transform = Transform(),  # noqa: B008 (frozen)
    ):
        self.set, self.size, self.split = _known(name), size, context.split
        if context.split not in THEIRS:
            raise MissingSplit(
                f"{name} has no split {context.split!r}; its publishers made {', '.join(THEIRS)}"
            )
        self.file = Path(root) / self.set.file(size)
        if not self.file.is_file():
            raise UserError(
                f"dataset.root: there is no {self.file}; write `python data/download.py "
                f"{self.set.recipe(size).name}`, or the folder that holds it"
            )
        pack, theirs = Npz(self.file), THEIRS[context.split]
        images = f"{theirs}_images"
        count = self._check_shape(pack, images)
        self.labels = self._labels(pack.small(f"{theirs}_labels"), count)
        self.label_names = self.set.classes
        self.ids = [f"{name}/{theirs}/{i:06d}" for i in range(count)]
        self.files = ImageArray(
            pack.mapped(images), transform, augment=context.augment, content=pack.content(images)
        )
        self.published = self.set.counts[list(THEIRS).index(context.split)]
        if count != self.published:
            console.warn_once(
                f"{self.file}: {count} {context.split} images, published were {self.published}; "
                "scores do not compare with published ones"
            )

    def _check_shape(self, pack: Npz, images: str) -> int:
        """The number of pictures, if they are of the announced size and depth."""
        shape, kind = pack.shape(images)
        wanted = (self.size, self.size) if self.set.channels == 1 else (self.size, self.size, 3)
        if shape[1:] != wanted or kind != np.uint8 or not shape[0]:
            found, due = (" x ".join(map(str, s)) for s in (shape, ("N", *wanted)))
            raise UserError(
                f"{self.file}: {images} is {found} {kind}, expected {due} uint8; set dataset.name "
                f"and dataset.size to what it holds, or fetch it again"
            )
        return shape[0]

    def _labels(self, found: np.ndarray, count: int) -> np.ndarray:
        """(N,) int64 classes or (N, C) float32 findings, from (N, 1) or (N, C) integers."""
        classes = len(self.set.classes)
        many = self.set.task == "multi-label"
        if found.shape != (count, classes if many else 1) or found.dtype.kind not in "ui":
            raise UserError(
                f"{self.file}: the {self.split} labels are {found.dtype} {found.shape}, expected "
                f"integers ({count}, {classes if many else 1}); fetch it again"
            )
        top = 1 if many else classes - 1
        if found.min() < 0 or found.max() > top:
            raise UserError(f"{self.file}: a {self.split} label is outside 0 to {top}")
        return found.astype(np.float32) if many else found[:, 0].astype(np.int64)

    def card(self) -> dict[str, Any]:
        card = super().card()
        card["task"], card["licence"] = self.set.task, self.set.licence
        card["size"] = f"{self.size} x {self.size}"
        if len(self) != self.published:
            card["published images"] = self.published
        return card | ({"note": self.set.note} if self.set.note else {})


def _known(name: str) -> MedSet:
    if name in VOLUMES:
        raise ConfigError(
            f"dataset.name: {name} holds 3-D volumes, which cannot be read yet; choose one of "
            f"{', '.join(SETS)}"
        )
    if name not in SETS:
        raise ConfigError(f"dataset.name: there is no MedMNIST set {name!r}; {closest(name, SETS)}")
    return SETS[name]
