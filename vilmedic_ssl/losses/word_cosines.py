"""Cosine of every word of every text with what it attends to in every image (GLoRIA, Huang et al.
2021, section 3.2), in blocks.

Shapes: B = images, P = positions of an image, D = width, M = texts, L = columns of words, R = rows
of packed words; of one block: I = images, T = texts, W = rows of packed words.

The attended vector c = sum_p a_p v_p is never made: e . c = sum_p a_p (e . v_p) and |c|^2 = a' G a
with the image's Gram matrix G = V V', so a block holds a few numbers for each pair of position and
word, none of them D times. The backward pass computes a block again. With x = 2 B P D R, one
product of all positions with all words, and g = P / D, that is x (1 + g) forward and x (3 + 2 g)
backward, and 6 B P^2 D for G; the plain form, which keeps c and all before it, takes 2 x and 4 x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = {"cpu": 2**21, "cuda": 2**24}  # most numbers in one of a block's half dozen buffers
PADDING = 1.1  # most packed rows of a group of texts for each real word
EPS = 1e-8  # least product of two norms, as in the authors' code


@dataclass(frozen=True)
class Group:
    """Texts of about equal length in packed rows, each in as many as the longest has words."""

    rows: slice
    longest: int
    pads_TL: Tensor | None  # bool, rows without a word; None: there are none

    def apart(self, x_IPW: Tensor) -> Tensor:
        """Text by text, (I, P, T, L)."""
        return x_IPW.view(*x_IPW.shape[:2], -1, self.longest)


class Packed:
    """Where the words of M texts lie in packed rows.

    Args:
        cap_lens: (M,) int64, words of each text, 1 ... L.
        columns, places, width: L of the words, P of the images, D of both.
        chunk: pairs of an image and a text in a block; None: as many as `BLOCK` allows.
    """

    def __init__(
        self, cap_lens: Tensor, *, columns: int, places: int, width: int, chunk: int | None
    ):
        counts, device = cap_lens.tolist(), cap_lens.device
        if not 1 <= min(counts) <= max(counts) <= columns:
            raise ValueError(f"cap_lens from {min(counts)} to {max(counts)}, of {columns} columns")
        limit = chunk * places * max(counts) if chunk else BLOCK.get(device.type, BLOCK["cuda"])
        self.groups: list[Group] = []
        first_M, begin = [0] * len(counts), 0
        apart = places * torch.get_num_threads()  # an image of a block for each thread
        for texts in _alike(counts, max(1, limit // apart)):
            longest = counts[texts[0]]
            for i, text in enumerate(texts):
                first_M[text] = begin + i * longest
            rows = slice(begin, begin + len(texts) * longest)
            pads_TL = torch.arange(longest, device=device) >= cap_lens[texts, None]
            padded = counts[texts[-1]] < longest
            self.groups.append(Group(rows, longest, pads_TL if padded else None))
            begin = rows.stop
        self.size = begin
        self.most = max(group.rows.stop - group.rows.start for group in self.groups)
        self.images = max(1, limit // (places * max(self.most, places, width)))
        column_L = torch.arange(columns, device=device)
        self.real_ML = column_L < cap_lens[:, None]
        self.row_ML = (torch.tensor(first_M, device=device)[:, None] + column_L) * self.real_ML

    def pack(self, words_MLD: Tensor) -> Tensor:
        """(M, L, D) -> (R, D), zero in rows without a word."""
        empty_RD = words_MLD.new_zeros(self.size, words_MLD.shape[2])
        return empty_RD.index_copy(0, self.row_ML[self.real_ML], words_MLD[self.real_ML])

    def buffers(self, v_BPD: Tensor) -> Tensor:
        """Five for (I, P, W) numbers each, used again by every block: the C library's heap keeps
        what many allocations leave behind.
        """
        images = min(self.images, len(v_BPD))
        return v_BPD.new_empty(5, images * v_BPD.shape[1] * self.most)


def _alike(counts: list[int], most: int) -> Iterator[list[int]]:
    """Texts from the longest to the shortest, in groups of `most` rows and little padding."""
    texts, real = list[int](), 0
    for text in sorted(range(len(counts)), key=lambda i: -counts[i]):
        rows = (len(texts) + 1) * counts[texts[0]] if texts else 0
        if rows > min(most, PADDING * (real + counts[text])):
            yield texts
            texts, real = [], 0
        texts, real = [*texts, text], real + counts[text]
    yield texts


def word_cosines(v_BPD: Tensor, words_MLD: Tensor, packed: Packed, *, temp1: float) -> Tensor:
    """(B, M, L) cosine of each word with its attended vector, 0 beyond a text's words; any float
    dtype, gradients to both.
    """
    cos_BR = _Cosines.apply(v_BPD, packed.pack(words_MLD), packed, temp1)
    return cos_BR[:, packed.row_ML] * packed.real_ML


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v_BPD: Tensor, e_RD: Tensor, packed: Packed, temp1: float) -> Tensor:
        cos_BR, square_BR = v_BPD.new_empty(2, len(v_BPD), len(e_RD))
        norm_R, buffers = e_RD.norm(dim=1), packed.buffers(v_BPD)
        for images, v_IPD in _images(v_BPD, packed):
            gram_IPP = v_IPD @ v_IPD.mT
            for group in packed.groups:
                scores, _, attention, spare, _ = _attend(v_IPD, e_RD, group, temp1, buffers)
                torch.bmm(gram_IPP, attention, out=spare)
                square = spare.mul_(attention).sum(1).clamp_min_(0)
                norms = (square.sqrt() * norm_R[group.rows]).clamp_min_(EPS)
                cos_BR[images, group.rows] = scores.mul_(attention).sum(1) / norms
                square_BR[images, group.rows] = square
        ctx.save_for_backward(v_BPD, e_RD, cos_BR, square_BR)
        ctx.packed, ctx.temp1 = packed, temp1
        return cos_BR

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BR: Tensor) -> tuple[Tensor, Tensor, None, None]:
        v_BPD, e_RD, cos_BR, square_BR = ctx.saved_tensors
        slopes, to_norm_R = _slopes(grad_BR, e_RD, cos_BR, square_BR)
        to_v_BPD, to_e_RD = torch.empty_like(v_BPD), e_RD * to_norm_R[:, None]
        packed, temp1, buffers = ctx.packed, ctx.temp1, ctx.packed.buffers(v_BPD)
        for images, v_IPD in _images(v_BPD, packed):
            gram_IPP, to_v_IPD = v_IPD @ v_IPD.mT, torch.zeros_like(v_IPD)
            to_gram_IPP = torch.zeros_like(gram_IPP)
            for group in packed.groups:
                to_dot, to_square, radial = (x[images, None, group.rows] for x in slopes)
                scores, among, attention, to, spare = _attend(v_IPD, e_RD, group, temp1, buffers)
                torch.addcmul(radial, scores, to_dot, out=to)
                to.addcmul_(torch.bmm(gram_IPP, attention, out=spare), to_square).mul_(attention)
                torch.mul(attention, to_square, out=spare)
                to_gram_IPP.baddbmm_(spare, attention.mT)
                _through_words(to.mul_(temp1), among, group)
                flat = to.addcmul_(attention, to_dot).flatten(0, 1)
                to_v_IPD.view(-1, v_IPD.shape[2]).addmm_(flat, e_RD[group.rows])
                to_e_RD[group.rows].addmm_(flat.T, v_IPD.flatten(0, 1))
            to_v_BPD[images] = to_v_IPD.baddbmm_(to_gram_IPP, v_IPD)
        return to_v_BPD, to_e_RD, None, None


def _images(v_BPD: Tensor, packed: Packed) -> Iterator[tuple[slice, Tensor]]:
    """Images of a block and their places, which a map holds the other way round."""
    for begin in range(0, len(v_BPD), packed.images):
        images = slice(begin, begin + packed.images)
        yield images, v_BPD[images].contiguous()


def _attend(
    v_IPD: Tensor, e_RD: Tensor, group: Group, temp1: float, buffers: Tensor
) -> list[Tensor]:
    """Of a block, each (I, P, W): dot products, their softmax over the words of a text, the softmax
    over positions of `temp1` times that, and two buffers. Rows without a word have 0, 0 and 1 / P.
    """
    shape = *v_IPD.shape[:2], group.rows.stop - group.rows.start
    views = [x[: math.prod(shape)].view(shape) for x in buffers]
    scores, among_words, attention, spare, _ = views
    torch.mm(v_IPD.flatten(0, 1), e_RD[group.rows].T, out=scores.flatten(0, 1))
    masked = scores
    if group.pads_TL is not None:
        masked = spare.copy_(scores)
        group.apart(masked).masked_fill_(group.pads_TL, -torch.inf)
    torch.softmax(group.apart(masked), 3, out=group.apart(among_words))
    torch.softmax(torch.mul(among_words, temp1, out=spare), 1, out=attention)
    return views


def _slopes(
    grad_BR: Tensor, e_RD: Tensor, cos_BR: Tensor, square_BR: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Gradients of e . c and (twice) of |c|^2, minus the gradient along c, each (B, R), and the
    factor (R,) of each word in its own gradient through its norm.
    """
    norm_R = e_RD.norm(dim=1)
    norms_BR = square_BR.sqrt() * norm_R
    free_BR = norms_BR >= EPS
    along_BR = grad_BR * cos_BR
    to_dot_BR = grad_BR / norms_BR.clamp_min(EPS)
    to_square_BR = torch.where(free_BR, -along_BR / square_BR, 0)
    # A cosine does not change along c, unless the product of the norms is clamped.
    radial_BR = torch.where(free_BR, 0, -along_BR)
    to_norm_R = -torch.where(free_BR, along_BR, 0).sum(0)
    factor_R = torch.where(norm_R > 0, to_norm_R / norm_R.square(), 0)
    return (to_dot_BR, to_square_BR, radial_BR), factor_R


def _through_words(to: Tensor, among_words: Tensor, group: Group) -> None:
    """Backward of the softmax over the words of each text, in place."""
    to, weights = group.apart(to), group.apart(among_words)
    to.mul_(weights)
    to.addcmul_(weights, to.sum(3, keepdim=True), value=-1)
