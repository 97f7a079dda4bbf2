"""How much of a codebook is in use."""

from __future__ import annotations

from typing import Any

import numpy as np


def codebook_usage(codes: Any, tokens: int) -> float:
    """Share of a codebook of `tokens` entries that occurs in some codes (whole numbers from 0, of
    any shape), 0 to 1.
    """
    return len(np.unique(np.asarray(codes))) / tokens


def code_perplexity(codes: Any) -> float:
    """exp of the entropy of the codes' frequencies: as many equally frequent codes would tell as
    much; from 1 to the number of codes in use.
    """
    _, counts = np.unique(np.asarray(codes), return_counts=True)
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
