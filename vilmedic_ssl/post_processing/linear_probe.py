"""Linear probe of the frozen encoder beside an untrained one and raw pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._compare import compare
from vilmedic_ssl.post_processing._shared import (
    Features,
    Source,
    SplitFeatures,
    Value,
    labels_of,
    rows_of,
)
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

    Without a validate split the strength is chosen on a fifth of train's patients. Scores on
    validate are slightly flattering (they chose the strength): they are for choosing models, test
    is for reporting.

    Args:
        key: the model's features to judge: encoder (before the projection) or visual (after it).
        references: encoders judged in the same way beside it, always by their "encoder" features.
        draws: bootstrap draws of patients for the 95 % intervals; below 20 there are none.

    Yields:
        accuracy, balanced_accuracy and auroc (one class against the rest, mean) for one class per
        image; auroc and auprc (means over findings, known labels only) for findings; auroc/<name>
        for each class or finding.

    Raises:
        UserError: no train split, no labels, nothing to score, or no such key.
    """
    fit_on_validate = features.has("validate")
    if features.has("train") and not fit_on_validate:
        warn("linear_probe: no validate split, so C is chosen on a fifth of train's patients")

    def scorer(source: Source, name: str, rows: np.ndarray) -> np.ndarray:
        train = features.get("train", source)
        x, y = rows_of(train, name), labels_of(train, "linear_probe")
        if fit_on_validate:
            val = features.get("validate", source)
            return metrics.linear_probe(
                x, y, rows_of(val, name), labels_of(val, "linear_probe"), rows
            )
        held = held_out(train, seed=features.seed)
        return metrics.linear_probe(x[~held], y[~held], x[held], y[held], rows)

    yield from compare(
        features, out, "linear_probe", scorer, key=key, references=references, draws=draws
    )


def held_out(train: SplitFeatures, *, seed: int, fraction: float = 0.2) -> np.ndarray:
    """(N,) bool: the rows of a random `fraction` of the patients, at least one.

    Raises:
        UserError: there is a single patient, so nothing would be left to fit on.
    """
    names = train.ids if train.patients is None else train.patients
    patients, of_N = np.unique(names, return_inverse=True)
    if len(patients) < 2:
        raise UserError(
            "linear_probe: train holds a single patient; add patients or a validate split"
        )
    count = max(1, round(fraction * len(patients)))
    chosen = np.random.default_rng(seed).permutation(len(patients))[:count]
    return np.isin(of_N, chosen)
