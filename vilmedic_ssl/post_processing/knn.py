"""Weighted nearest-neighbour vote beside an untrained encoder and raw pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from vilmedic_ssl.post_processing._compare import compare, scored_splits
from vilmedic_ssl.post_processing._scores import groups_of, voted
from vilmedic_ssl.post_processing._shared import Features, Source, Value
from vilmedic_ssl.registry import proto


@proto
def knn(
    features: Features,
    out: Path,
    *,
    key: str = "encoder",
    k: int = 20,
    tau: float = 0.07,
    references: tuple[Literal["random_init", "pixels"], ...] = ("random_init", "pixels"),
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """The k nearest training images of other patients by cosine vote with weight exp(cosine / tau);
    nothing is trained or chosen.

    Args:
        key: the model's features to judge: encoder (before the projection) or visual (after it).
        k: neighbours that vote.
        tau: temperature of their weights.
        references: encoders judged in the same way beside it, always by their "encoder" features.
        draws: bootstrap draws of patients for the 95 % intervals; below 20 there are none.

    Yields:
        the metrics of `linear_probe`; for findings the vote is taken per finding, on known labels.

    Raises:
        UserError: no train split, no labels, nothing to score, no such key, k below 1 or tau not
        above 0.
    """

    splits = scored_splits(features, "knn")
    groups = np.concatenate([groups_of(features.get(split)) for split in splits])

    def scorer(source: Source, name: str, rows: np.ndarray) -> np.ndarray:
        return voted(features.get("train", source), name, rows, groups, k=k, tau=tau)

    yield from compare(features, out, "knn", scorer, key=key, references=references, draws=draws)
