"""Pictures by number: read, resized (and kept, if asked), turned into views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vilmedic_ssl.config import digest
from vilmedic_ssl.data import store
from vilmedic_ssl.data.paths import cache_folder
from vilmedic_ssl.data.read import channels_of, luma, read_image
from vilmedic_ssl.data.transforms import Pipeline, Transform
from vilmedic_ssl.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".npy")
SNIFFED = 16  # files looked at to tell grey from colour
Mode = Literal["gray", "rgb"]


class Images:
    """Pictures of one split.

    Attributes:
        mode: "gray" (C = 1) or "rgb" (C = 3).
        pipeline: from a resized picture to views.
        paths: the file of each picture; None where they have none of their own.
    """

    paths: list[Path] | None = None

    def __init__(self, transform: Transform, mode: Mode, *, augment: bool):
        self.transform, self.mode = transform, mode
        self.pipeline = Pipeline(transform, channels=mode, random=augment)
        self._store: store.Store | None = None

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} defines no __len__()")

    def decoded(self, index: int) -> Tensor:
        """(C, H, W) float32 in [0, 1], in full size.

        Raises:
            UserError: unreadable.
        """
        raise TypeError(f"{type(self).__name__} defines no decoded()")

    def sizes(self) -> Any:
        """Plain data that changes when the pictures do, quick to get."""
        raise TypeError(f"{type(self).__name__} defines no sizes()")

    def content(self) -> list[str]:
        """Hashes that name what the pictures hold."""
        raise TypeError(f"{type(self).__name__} defines no content()")

    def prepared(self, index: int) -> Tensor:
        """(C, h, w) float32 in [0, 1], resized, rounded to 8 bits, or 16 where the file has more:
        the same from the file, from memory and from a cache.
        """
        if self._store is not None:
            return self._store[index]
        shape, data = self._packed(index)
        return store.unpack(shape.tolist(), data)

    def view(self, index: int, seed: int) -> Tensor:
        """Random views (V, C, h, w), or the evaluation view (C, h, w), normalised."""
        return self.pipeline(self.prepared(index), seed)

    def sample(self, index: int, seed: int, *, mirrored: bool = False) -> dict[str, Tensor]:
        """`images`, as `view` gives them, and `local` (L, C, h, w) where there are local views; of
        the picture's mirror image where asked for.
        """
        image = self.prepared(index)
        return self.pipeline.sample(image.flip(-1) if mirrored else image, seed)

    def picture(self, index: int) -> Tensor:
        """(C, h, w) float32 in [0, 1]: the evaluation view before normalisation."""
        return self.pipeline.evaluation(self.prepared(index)).clamp(0, 1)

    def ready(self, workers: int = 0) -> None:
        """Decode everything once, where `load_memory` or `cache` asks for it."""
        if self._store is not None or not len(self):
            return
        if self.transform.load_memory:
            self._store = store.in_memory(self._packed, len(self), workers=workers)
        elif self.transform.cache:
            self._store = self._on_disk(workers)

    def _on_disk(self, workers: int) -> store.Store | None:
        from vilmedic_ssl import dist

        def make() -> store.Store | None:
            limit = int(self.transform.cache_gb * 1e9)
            return store.on_disk(self._packed, len(self), folder, limit=limit, workers=workers)

        made_of = [store.FORMAT, self.transform.resize, self.mode, self.content()]
        made_of += [list(self.transform.before)] if self.transform.before else []
        folder = cache_folder() / "images" / digest(made_of)
        fits = dist.on_main(lambda: make() is not None)
        return make() if fits else None  # opens it; on a machine with a disk of its own, makes it

    def _packed(self, index: int) -> store.Packed:
        image = self.decoded(index)
        return store.pack(self.pipeline.prepare(image), deep=store.is_deep(image))


class ImageFiles(Images):
    """One picture per file.

    Args:
        transform: how they become tensors; `channels: auto` looks at sixteen of them.
        augment: random training views instead of the one evaluation view.
    """

    paths: list[Path]

    def __init__(self, paths: Sequence[Path], transform: Transform, *, augment: bool):
        self.paths = list(paths)
        mode: Mode
        if transform.channels == "auto":
            step = max(1, len(self.paths) // SNIFFED)
            colour = any(channels_of(path) == 3 for path in self.paths[::step][:SNIFFED])
            mode = "rgb" if colour else "gray"
        else:
            mode = transform.channels
        super().__init__(transform, mode, augment=augment)

    def __len__(self) -> int:
        return len(self.paths)

    def decoded(self, index: int) -> Tensor:
        return read_image(self.paths[index], mode=self.mode)

    def content(self) -> list[str]:
        from vilmedic_ssl.data.facts import content_hashes

        return content_hashes(self.paths)

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


class ImageArray(Images):
    """Pictures in one uint8 array, in memory or mapped from a file.

    Args:
        array: (N, H, W) grey or (N, H, W, 3) colour.
        content: a hash that names what the array holds.
    """

    def __init__(self, array: np.ndarray, transform: Transform, *, augment: bool, content: str):
        self.array, self._content = array, content
        mode: Mode = "rgb" if array.ndim == 4 else "gray"
        super().__init__(
            transform, mode if transform.channels == "auto" else transform.channels, augment=augment
        )

    def __len__(self) -> int:
        return len(self.array)

    def decoded(self, index: int) -> Tensor:
        pixels = self.array[index].astype(np.float32) / np.float32(255)
        if pixels.ndim == 3 and self.mode == "rgb":
            return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        plane_HW = torch.from_numpy(pixels if pixels.ndim == 2 else luma(pixels))
        return plane_HW.expand(3 if self.mode == "rgb" else 1, -1, -1).contiguous()

    def content(self) -> list[str]:
        return [self._content]

    def sizes(self) -> Any:
        return [self._content, list(self.array.shape)]


def channels_owner(node: Any) -> Any:
    """The part of a dataset node that holds the `channels` key, or None."""
    for key in ("image", "transform"):
        if isinstance(node.get(key), dict):
            return channels_owner(node[key])
    return node if "channels" in node else None


def pin_channels(node: Any, files: Images | None) -> None:
    """Write what `channels: auto` came to into a dataset node, for splits and runs to come."""
    owner = channels_owner(node)
    if owner is not None and files is not None:
        owner["channels"] = files.mode


def take_channels(node: Any, trained: Any) -> None:
    """`channels: auto` means what it meant in training."""
    owner, then = channels_owner(node), channels_owner(trained)
    if owner is not None and then is not None and owner["channels"] == "auto":
        owner["channels"] = then["channels"]
