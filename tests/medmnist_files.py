"""npz files with the keys, shapes and types of MedMNIST, filled with noise and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vilmedic_ssl.data.recipes.medmnist import SETS, SPLITS


def write_set(
    root: Path, name: str, *, size: int = 28, counts: tuple[int, int, int] | None = None
) -> Path:
    """`<root>/<name>[_size].npz`; class c is brighter than class c - 1. `counts` as published
    unless given.
    """
    known, rng = SETS[name], np.random.default_rng(0)
    arrays = {}
    for split, count in zip(SPLITS, counts or known.counts, strict=True):
        classes = len(known.classes)
        many = known.task == "multi-label"
        labels = rng.integers(0, 2 if many else classes, (count, classes if many else 1))
        labels[:classes, 0] = np.arange(classes)[:count] % (2 if many else classes)
        shape = (count, size, size) if known.channels == 1 else (count, size, size, 3)
        noise = rng.integers(0, 60, shape, dtype=np.uint8)
        light = (labels[:, 0] * (190 // classes)).astype(np.uint8)
        arrays[f"{split}_images"] = noise + light.reshape(-1, *[1] * (len(shape) - 1))
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    path = root / known.file(size)
    np.savez_compressed(path, **arrays)
    return path
