"""What every plug-in asks of the features it is given, and the sentence for when it is not
there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vilmedic_ssl.errors import UserError

if TYPE_CHECKING:
    from vilmedic_ssl.executors.features import Features, SplitFeatures
else:
    Features = SplitFeatures = Any  # signatures are read as schemas, which must not import torch

Source = Literal["model", "random_init", "pixels"]
Value = float | tuple[float, float, float] | str | Path
"""A number, with its interval, words about a number (`<name>/interval`), or a file."""


def rows_of(part: SplitFeatures, key: str) -> np.ndarray:
    """The (N, D) features `key` of a split.

    Raises:
        UserError: there is no such key; names those there are.
    """
    if key not in part.rows:
        raise UserError(
            f"ensemblor.post_processing: there are no {key!r} features in {part.name}; "
            f"write one of {', '.join(sorted(part.rows))}"
        )
    return part.rows[key]


def labels_of(part: SplitFeatures, plugin: str) -> np.ndarray:
    """The labels of a split.

    Raises:
        UserError: it has none.
    """
    if part.labels is None:
        raise UserError(
            f"{plugin}: the {part.name} split has no labels; name them in `dataset` (class "
            f"folders, a label column or file), or take {plugin} out of ensemblor.post_processing"
        )
    return part.labels
