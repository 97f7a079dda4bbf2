"""Linear probe of the frozen encoder beside an untrained one and raw pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from vilmedic_ssl.post_processing._compare import compare
from vilmedic_ssl.post_processing._scores import probe_of
from vilmedic_ssl.post_processing._shared import Features, Source, Value
from vilmedic_ssl.registry import proto


@proto
def linear_probe(
    features: Features,
    out: Path,
    *,
    key: str = "encoder",
    references: tuple[Literal["random_init", "pixels"], ...] = ("random_init", "pixels"),
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """L2 logistic regression on train, its strength chosen on validate, scored on the other splits
    asked for.

    Images without a label (class -1, or no finding known) take no part. Where validate lacks a
    class of train, has fewer than 10 labelled images, or is not there, the strength is chosen by
    cross-validation over train's patients, which is said. Scores on validate are slightly
    flattering (they chose the strength): they are for choosing models, test is for reporting.

    Args:
        key: the model's features to judge: encoder (before the projection) or visual (after it).
        references: encoders judged in the same way beside it, always by their "encoder" features.
        draws: bootstrap draws of patients for the 95 % intervals; below 20 there are none.

    Yields:
        accuracy, balanced_accuracy, auroc (one class against the rest, mean) and, beyond five
        classes, top5 for one class per image; auroc and auprc (means over findings, known labels
        only) for findings; auroc/<name> for each class or finding.

    Raises:
        UserError: no train split, no labels, nothing to score, or no such key.
    """

    def scorer(source: Source, name: str, rows: np.ndarray) -> np.ndarray:
        return probe_of(features, source, name)(rows)

    yield from compare(
        features, out, "linear_probe", scorer, key=key, references=references, draws=draws
    )
