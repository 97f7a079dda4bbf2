"""The parts of DALL-E's transformer (Ramesh et al. 2021, appendix B) that know where a token
stands: rotary angles, masks, token shift; and the attention and feed-forward layers around them.

A sequence is <bos>, T text tokens and the image's f x f codes, row by row, without the last one:
L = T + f * f positions, of which the first T + 1 are text. Everything here gives the numbers of
dalle-pytorch 1.6.6.

B = sequences, n = positions at hand, D = width, H = heads, d = width of a head, R = channels of a
head that are rotated.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["full", "axial_row", "axial_col", "conv_like"]
WINDOW = 5  # codes that conv_like sees up and left, itself included
FAR = 8192  # text position of all image tokens
OUTSIDE = -10.0  # image position of all text tokens; image axes run from -1 to 1


def rotary_angles(text: int, side: int, width: int) -> Tensor:
    """(text + side^2, R) float32, each angle twice; a third of R for the place in the text, then
    row and column of the image (Su et al. 2021, applied along three axes).

    Args:
        text: positions of text, <bos> included.  width: d, 6 at least.
    """
    third = width // 3
    half = third // 2
    word = 1.0 / 10000.0 ** (torch.arange(0, third, 2)[:half] / third)
    pixel = torch.linspace(1.0, 5.0, half) * math.pi
    axis = torch.linspace(-1, 1, side)
    at_word = torch.cat([torch.arange(text).float(), torch.full((side * side,), float(FAR))])
    at_row, at_column = (
        torch.cat([torch.full((text,), OUTSIDE), place.flatten()])
        for place in torch.meshgrid(axis, axis, indexing="ij")
    )
    parts = [at_word[:, None] * word, at_row[:, None] * pixel, at_column[:, None] * pixel]
    return torch.cat(parts, 1).repeat_interleave(2, dim=1)


def attention_mask(kind: Kind, text: int, side: int) -> Tensor:
    """(L, L) bool: which position (rows) sees which one; never a later one.

    Image tokens see all of the text and, of the image, what `kind` names: everything before; their
    row; their column; a window of 5 x 5 that ends in themselves.
    """
    length = text + side * side - 1
    at = torch.arange(length)
    seen = at[:, None] >= at
    if kind == "full":
        return seen
    code = at - text
    row, column = code.div(side, rounding_mode="floor"), code % side
    down, across = row[:, None] - row, column[:, None] - column
    near = {
        "axial_row": down == 0,
        "axial_col": across == 0,
        "conv_like": (down >= 0) & (down < WINDOW) & (across >= 0) & (across < WINDOW),
    }[kind]
    both = (code >= 0)[:, None] & (code >= 0)
    return seen & (near | ~both)


class _Shift(torch.autograd.Function):
    """See `shifted`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, text: int, side: int) -> Tensor:
        ctx.places = text, side
        return _moved(x, text, side, forward=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _moved(grad, *ctx.places, forward=False), None, None


def _moved(x: Tensor, text: int, side: int, *, forward: bool) -> Tensor:
    """Channels handed on to later positions, or their gradient handed back."""
    out, n, width = torch.empty_like(x), x.shape[1], x.shape[2]
    half, quarter = width // 2, width // 4
    words, n_words = slice(0, min(n, text)), min(n, text)
    out[:, words, half:] = x[:, words, half:]
    _hand_on(out[:, words, :half], x[:, words, :half], 1, forward=forward)
    if n > n_words:
        image, given = out[:, n_words:], x[:, n_words:]
        image[..., 2 * quarter :] = given[..., 2 * quarter :]
        _hand_on(image[..., :quarter], given[..., :quarter], side, forward=forward)
        left = slice(quarter, 2 * quarter)
        _hand_on(image[..., left], given[..., left], 1, forward=forward)
        if forward:
            image[:, ::side, left] = 0
        else:
            image[:, side - 1 :: side, left] = 0
    return out


def _hand_on(out: Tensor, x: Tensor, by: int, *, forward: bool) -> None:
    """out[p] = x[p - by], zero where there is none; backward the other way round."""
    if forward:
        out[:, :by] = 0
        out[:, by:] = x[:, :-by]
    else:
        out[:, -by:] = 0
        out[:, :-by] = x[:, by:]


def shifted(x_BnD: Tensor, text: int, side: int) -> Tensor:
    """Token shift: of a text token the first half of its channels comes from the token before; of a
    code the first quarter from the code above, the second from the one on its left. Zero at edges.

    Args:
        x_BnD: the first n positions of a sequence.
    """
    return _Shift.apply(x_BnD, text, side)


def shifted_one(now_B1D: Tensor, before_BpD: Tensor, text: int, side: int) -> Tensor:
    """The same for the one position behind p others, (B, 1, D)."""
    at, width = before_BpD.shape[1], now_B1D.shape[2]
    out, code = now_B1D.clone(), at - text
    if code < 0:
        out[..., : width // 2] = before_BpD[:, -1:, : width // 2] if at else 0
        return out
    quarter = width // 4
    left = slice(quarter, 2 * quarter)
    out[..., :quarter] = before_BpD[:, at - side, None, :quarter] if code >= side else 0
    out[..., left] = before_BpD[:, -1:, left] if code % side else 0
    return out


class _Heads(torch.autograd.Function):
    """See `heads_of`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turn_nC: Tensor, heads: int) -> tuple[Tensor, ...]:
        ctx.turn = turn_nC
        parts_3BHnd = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        found = tuple(qkv.new_empty(part.shape) for part in parts_3BHnd)
        for part, out in zip(parts_3BHnd, found, strict=True):
            _turn(part, turn_nC, out)
        return found

    @staticmethod
    def backward(ctx: Any, *grads_BHnd: Tensor) -> tuple[Tensor, None, None]:
        batch, heads, n, width = grads_BHnd[0].shape
        out = grads_BHnd[0].new_empty(batch, n, 3 * heads * width)
        parts_3BHnd = out.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        for grad, part in zip(grads_BHnd, parts_3BHnd, strict=True):
            _turn(grad.contiguous(), ctx.turn.conj(), part)
        return out, None, None


def _turn(x_BHnd: Tensor, turn_nC: Tensor, out_BHnd: Tensor) -> None:
    """Into `out`: the first R channels as complex numbers times `turn_nC`, the rest as it is."""
    width = 2 * turn_nC.shape[1]
    out_BHnd[..., width:] = x_BHnd[..., width:]
    x, out = x_BHnd[..., :width], out_BHnd[..., :width]
    exact = x.dtype in (torch.float32, torch.float64)
    if exact and x_BHnd.shape[3] % 2 == 0:  # else pairs do not lie where complex numbers may
        pairs = (torch.view_as_complex(part.unflatten(3, (-1, 2))) for part in (x, out))
        torch.mul(next(pairs), turn_nC, out=next(pairs))
    else:
        wide = (x if exact else x.float()).unflatten(3, (-1, 2)).contiguous()
        out.copy_(torch.view_as_real(torch.view_as_complex(wide) * turn_nC).flatten(3))


def heads_of(qkv: Tensor, turn_nC: Tensor | None, heads: int) -> tuple[Tensor, ...]:
    """(B, n, 3 H d) -> queries, keys and values (B, H, n, d), all three turned by their position.

    Args:
        turn_nC: exp(i angle) of each position, complex (n, R / 2); None = no positions.
    """
    if turn_nC is None:
        return tuple(qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4))
    return _Heads.apply(qkv, turn_nC, heads)


class Linear(nn.Linear):
    """Weights times columns instead of rows times weights where there are few rows, as when a
    sequence grows: on a CPU that takes half the time.
    """

    FEW = 8

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        if not 0 < rows <= self.FEW or x.is_cuda or torch.is_grad_enabled():
            return super().forward(x)
        out = (self.weight @ x.reshape(rows, -1).T).T.contiguous()
        return (out if self.bias is None else out + self.bias).unflatten(0, x.shape[:-1])


class Attention(nn.Module):
    """Causal attention; which positions are seen is the caller's mask."""

    def __init__(self, dim: int, heads: int, width: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_qkv = Linear(dim, 3 * heads * width, bias=False)
        self.to_out = nn.Sequential(Linear(heads * width, dim), nn.Dropout(dropout))

    def forward(
        self,
        x_BnD: Tensor,
        turn_nC: Tensor | None,
        mask_nm: Tensor | None,
        kept: tuple[Tensor, Tensor] | None = None,
        at: int = 0,
    ) -> Tensor:
        """
        Args:
            mask_nm: what each position sees of those so far; None = everything before it.
            kept: keys and values of all positions, (B, H, L, d) each, to be filled from `at` on.
        """
        q, k, v = heads_of(self.to_qkv(x_BnD), turn_nC, self.heads)
        n = x_BnD.shape[1]
        if kept is not None:
            for memory, new in zip(kept, (k, v), strict=True):
                memory[:, :, at : at + n] = new
            k, v = (memory[:, :, : at + n] for memory in kept)
        causal = mask_nm is None and n > 1
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_nm, is_causal=causal)
        return self.to_out(out.transpose(1, 2).flatten(2))


class _Gated(torch.autograd.Function):
    """Keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        value, gate = x.chunk(2, dim=-1)
        out = torch.empty_like(x)
        of_value, of_gate = out.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(gate), out=of_value)
        torch.ops.aten.gelu_backward.grad_input(grad * value, gate, grad_input=of_gate)
        return out


class GEGLU(nn.Module):
    """One half of the channels, gated by the GELU of the other (Shazeer 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        return _Gated.apply(x)


class FeedForward(nn.Module):
    def __init__(self, dim: int, dropout: float, factor: int = 4):
        super().__init__()
        self.net = nn.Sequential(
            Linear(dim, 2 * factor * dim),
            GEGLU(),
            nn.Dropout(dropout),
            Linear(factor * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
