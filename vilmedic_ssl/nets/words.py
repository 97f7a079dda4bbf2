"""From tokens to words. Shapes: B = texts, L = token positions, D = width, W = words of the text
that has most.

`words` (B, L) int64 numbers the word of each token from 0 in reading order; [CLS] and [SEP] are the
first and the last word, padding is -1. It says the same of word pieces and of byte-level pieces.
"""

from __future__ import annotations

import torch
from torch import Tensor


def words_of(hidden_BLD: Tensor, words_BL: Tensor) -> Tensor:
    """Word vectors (B, W, D): the sum of a word's tokens, 0 beyond the words of a text (GLoRIA,
    Huang et al. 2021, section 3.1).
    """
    texts, most = len(words_BL), int(words_BL.max()) + 1
    first_B1 = torch.arange(texts, device=words_BL.device)[:, None] * most
    real_BL = words_BL >= 0
    sums = hidden_BLD.new_zeros(texts * most, hidden_BLD.shape[2])
    sums = sums.index_add(0, (words_BL + first_B1)[real_BL], hidden_BLD[real_BL])
    return sums.view(texts, most, -1)


def cap_lens_of(words_BL: Tensor) -> Tensor:
    """(B,) int64, at least 1: how many words count in GLoRIA's loss, [CLS] and all but [SEP]; they
    are the first columns of `words_of`.
    """
    return words_BL.amax(1).clamp_min(1)
