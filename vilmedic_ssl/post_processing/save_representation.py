"""Embeddings as plain arrays for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vilmedic_ssl.post_processing._shared import Features, Value, rows_of
from vilmedic_ssl.registry import proto


@proto
def save_representation(
    features: Features, out: Path, *, keys: list[str]
) -> Iterator[tuple[str, Value]]:
    """Write `save_representation_<tag>_<split>/<split>_<key>_embeddings.npy` and what tells its
    rows apart.

    Beside each: `<split>_ids.npy` (N,) text and, where there are labels, `<split>_labels.npy` ((N,)
    int64 or (N, C) float32, nan = unknown) with `<split>_label_names.npy` (C,) text. No file needs
    pickle to be read.

    Args:
        keys: the features to write: encoder, visual (and linguistic for paired models), each (N, D)
            float32.

    Raises:
        UserError: no such key.
    """
    for split in features.splits:
        part = features.get(split)
        folder = out / f"save_representation_{features.tag}_{split}"
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"{key}_embeddings": rows_of(part, key) for key in keys}
        arrays["ids"] = np.array(part.ids, dtype=str)
        if part.labels is not None:
            arrays |= {"labels": part.labels, "label_names": np.array(part.label_names, dtype=str)}
        for name, array in arrays.items():
            path = folder / f"{split}_{name}.npy"
            np.save(path, array, allow_pickle=False)
            yield f"{name.replace('_', ' ')} of {split}, {' x '.join(map(str, array.shape))}", path
