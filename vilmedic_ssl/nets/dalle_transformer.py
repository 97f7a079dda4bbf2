"""The layers of DALL-E's transformer, under the parameter names of dalle-pytorch.

There every layer is wrapped several times, each wrapper holding the next as `fn`; here empty
modules stand in for them, so that names agree and the computation stays in one place.

B = sequences, n = positions at hand, D = width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.nets.dalle_attention import (
    Attention,
    FeedForward,
    Kind,
    attention_mask,
    rotary_angles,
    shifted,
    shifted_one,
)


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """How a transformer over text and codes is built.

    Attributes:
        dim: width of a token.
        depth: layers, each of attention and a feed-forward net.
        heads, dim_head: of attention; dim_head is 6 at least with rotary positions.
        attn_dropout, ff_dropout: behind attention, and inside the feed-forward net.
        attn_types: what image tokens see of the image, taken in turn by the layers: full = all
            before, axial_row, axial_col = their row or column, conv_like = 5 x 5 up and left.
        rotary_emb: positions by rotation; false = learned and added.
        shift_tokens: hand a part of the channels on to the next token, and to the codes on the
            right and below.
        sandwich_norm: a norm behind each layer, too (Ding et al. 2021).
        reversible: two streams, whose activations are computed back from the last layer's (Gomez et
            al. 2017): memory does not grow with depth, steps take about a third longer.
        checkpoint_layers: the same saving without another architecture: each layer runs again in
            the backward pass.
        shared_attn_ids, shared_ff_ids: layers with the same number share their weights; null = none
            do.
    """

    dim: int = 512
    depth: int = 2
    heads: int = 8
    dim_head: int = 64
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    attn_types: list[Kind] = ("full",)  # type: ignore[assignment]
    rotary_emb: bool = True
    shift_tokens: bool = True
    sandwich_norm: bool = False
    reversible: bool = False
    checkpoint_layers: bool = False
    shared_attn_ids: list[int] | None = None
    shared_ff_ids: list[int] | None = None

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "dim_head"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.dalle.{name}: {getattr(self, name)}; write 1 or more")
        if self.rotary_emb and self.dim_head < 6:
            raise ConfigError(
                f"model.dalle.dim_head: {self.dim_head}; rotary positions need 6 channels, write "
                "24 or more, or rotary_emb=false"
            )
        if self.shift_tokens and self.dim % 4:
            raise ConfigError(f"model.dalle.dim: {self.dim}; token shift needs a multiple of 4")
        for name in ("attn_dropout", "ff_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.dalle.{name}: write a share from 0 to below 1")
        if not self.attn_types:
            raise ConfigError("model.dalle.attn_types: name one kind at least, for example [full]")
        if self.reversible and self.checkpoint_layers:
            raise ConfigError("model.dalle: reversible needs no checkpoint_layers; keep one")

    def plan(self) -> list[tuple[Kind, int, int]]:
        """Kind of attention, and number of the attention's and the feed-forward's weights, for each
        layer.

        Raises:
            ConfigError: layers of different kinds are to share their attention.
        """
        own = range(self.depth)
        columns = (self.attn_types, self.shared_attn_ids or own, self.shared_ff_ids or own)
        rows = list(islice(zip(*map(cycle, columns), strict=False), self.depth))
        kinds: dict[int, Kind] = {}
        for kind, number, _ in rows:
            if kinds.setdefault(number, kind) != kind:
                raise ConfigError(
                    f"model.dalle.shared_attn_ids: layers with number {number} are {kinds[number]} "
                    f"and {kind}; only layers of one kind can share"
                )
        return rows


class Cache:
    """What the positions so far left behind, for a sequence that grows.

    Attributes:
        at: how many they are.
    """

    def __init__(self, net: Transformer, batch: int):
        shape, like = net.shape, next(net.parameters())
        size = (batch, shape.heads, net.length, shape.dim_head)
        self.at = 0
        self.kept = [(like.new_empty(size), like.new_empty(size)) for _ in range(shape.depth)]
        # Half the channels are ever handed on.
        wide = (batch, net.length, shape.dim // 2)
        self.inputs = [like.new_empty(wide) for _ in range(2 * shape.depth * shape.shift_tokens)]


class _PreNorm(nn.Module):
    def __init__(self, dim: int, inner: nn.Module, *, sandwich: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        if sandwich:
            self.norm_out = nn.LayerNorm(dim)
        self.fn = inner


class Sublayer(nn.Module):
    """scale * norm_out(inner(shift(norm(x)))), without the residual.

    The scale starts small, the smaller the deeper the layer (Touvron et al. 2021).

    Args:
        number: of the layer, from 1.  wraps: how many modules dalle-pytorch puts around `inner`.
    """

    def __init__(self, dim: int, inner: nn.Module, number: int, wraps: int, *, sandwich: bool):
        super().__init__()
        start = 0.1 if number <= 18 else 1e-5 if number <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full((1, 1, dim), start))
        for _ in range(wraps):
            inner = nn.ModuleDict({"fn": inner})
        self.fn = _PreNorm(dim, inner, sandwich=sandwich)

    @property
    def inner(self) -> nn.Module:
        module = self.fn.fn
        while isinstance(module, nn.ModuleDict):
            module = module["fn"]
        return module

    def around(
        self, x_BnD: Tensor, shift: Callable[[Tensor], Tensor], inner: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The layer, given how tokens are shifted and what is inside."""
        out = inner(shift(self.fn.norm(x_BnD)))
        if hasattr(self.fn, "norm_out"):
            out = self.fn.norm_out(out)
        return out * self.scale


class Transformer(nn.Module):
    """
    Args:
        text: positions of text, <bos> included.  side: codes along one side of the image.
    """

    pos_emb: Tensor | None

    def __init__(self, shape: TransformerShape, text: int, side: int):
        super().__init__()
        self.shape, self.text, self.side = shape, text, side
        self.length = text + side * side - 1
        plan = shape.plan()
        pairs: Any = list(self._layers(plan))
        if shape.reversible:
            blocks = (
                nn.ModuleDict({"f": nn.ModuleDict({"net": f}), "g": nn.ModuleDict({"net": g})})
                for f, g in pairs
            )
            self.layers = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        else:
            self.layers = nn.ModuleDict({"layers": nn.ModuleList(pairs)})
        angles = rotary_angles(text, side, shape.dim_head) if shape.rotary_emb else None
        self.register_buffer("pos_emb", None if angles is None else angles[None])
        self.kinds = [kind for kind, _, _ in plan]
        for kind in set(self.kinds) - {"full"}:
            mask = attention_mask(kind, text, side)
            self.register_buffer(f"mask_{kind}", mask, persistent=False)

    def _layers(self, plan: Sequence[tuple[Kind, int, int]]) -> Iterator[nn.ModuleList]:
        shape = self.shape
        attentions: dict[int, Attention] = {}
        nets: dict[int, FeedForward] = {}
        shift = 2 * shape.shift_tokens  # one module that shifts, one that names it
        for number, (_, own_attention, own_net) in enumerate(plan, start=1):
            if own_attention not in attentions:
                size = shape.dim, shape.heads, shape.dim_head
                attentions[own_attention] = Attention(*size, shape.attn_dropout)
            if own_net not in nets:
                nets[own_net] = FeedForward(shape.dim, shape.ff_dropout)
            inner = (attentions[own_attention], 1 + shift), (nets[own_net], shift)
            yield nn.ModuleList(
                Sublayer(shape.dim, x, number, wraps, sandwich=shape.sandwich_norm)
                for x, wraps in inner
            )

    def pairs(self) -> list[tuple[Sublayer, Sublayer]]:
        """Attention and feed-forward of each layer."""
        if "blocks" in self.layers:
            return [(b["f"]["net"], b["g"]["net"]) for b in self.layers["blocks"]]  # type: ignore
        return [(f, g) for f, g in self.layers["layers"]]  # type: ignore

    def forward(self, x_BnD: Tensor) -> Tensor:
        """The first n positions of sequences, embedded -> (B, n, D)."""
        turn, n = self._turn(0, x_BnD.shape[1]), x_BnD.shape[1]
        steps = []
        for kind, (f, g) in zip(self.kinds, self.pairs(), strict=True):
            mask = None if kind == "full" else getattr(self, f"mask_{kind}")[:n, :n]
            steps += [(f, self._step(f, turn, mask)), (g, self._step(g))]
        if self.shape.reversible:
            return _reversible(x_BnD, steps)
        again = self.shape.checkpoint_layers and torch.is_grad_enabled()
        for _, step in steps:
            x_BnD = x_BnD + (checkpoint(step, x_BnD, use_reentrant=False) if again else step(x_BnD))
        return x_BnD

    def _step(self, layer: Sublayer, *of_attention: Any) -> Callable[[Tensor], Tensor]:
        def step(x: Tensor) -> Tensor:
            return layer.around(x, self._shift, lambda y: layer.inner(y, *of_attention))

        return step

    def _shift(self, x_BnD: Tensor) -> Tensor:
        return shifted(x_BnD, self.text, self.side) if self.shape.shift_tokens else x_BnD

    def _turn(self, begin: int, end: int) -> Tensor | None:
        """exp(i angle) of some positions, (n, R / 2) complex."""
        if self.pos_emb is None:
            return None
        angle_nC = self.pos_emb[0, begin:end, ::2]
        return torch.polar(torch.ones_like(angle_nC), angle_nC)

    def grow(self, x_BnD: Tensor, cache: Cache) -> Tensor:
        """The n positions behind those in the cache -> (B, n, D), and adds them to it; n is 1
        unless the cache is empty.
        """
        at, n = cache.at, x_BnD.shape[1]
        turn, streams = self._turn(at, at + n), [x_BnD, x_BnD]
        for i, (f, g) in enumerate(self.pairs()):
            kind = self.kinds[i]
            mask = None if kind == "full" else getattr(self, f"mask_{kind}")[at : at + n, : at + n]
            attend = _with(f.inner, turn, mask, cache.kept[i], at)
            inners: list[Callable[[Tensor], Tensor]] = [attend, g.inner]
            for k, (layer, inner) in enumerate(zip((f, g), inners, strict=True)):
                memory = cache.inputs[2 * i + k] if cache.inputs else None
                out = layer.around(streams[1], _with(self._grown, memory, at), inner)
                if self.shape.reversible:
                    streams = [streams[1], streams[0] + out]
                else:
                    streams = [x_BnD, streams[1] + out]
        cache.at = at + n
        return (streams[0] + streams[1]) / 2 if self.shape.reversible else streams[1]

    def _grown(self, y_BnD: Tensor, memory: Tensor | None, at: int) -> Tensor:
        """Shift, with what is remembered of the positions before."""
        if memory is None:
            return y_BnD
        n = y_BnD.shape[1]
        memory[:, at : at + n] = y_BnD[..., : memory.shape[2]]
        if at == 0:
            return self._shift(y_BnD)
        return shifted_one(y_BnD, memory[:, :at], self.text, self.side)


def _with(function: Callable[..., Tensor], *more: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, *more)


# -- reversible layers ---------------------------------------------------------------------------

Step = tuple[Sublayer, Callable[[Tensor], Tensor]]


def _reversible(x_BnD: Tensor, steps: Sequence[Step]) -> Tensor:
    """y1 = x1 + f(x2), y2 = x2 + g(y1), layer by layer, from x1 = x2 = x to the mean of both."""
    learned = {id(p): p for layer, _ in steps for p in layer.parameters() if p.requires_grad}
    return _Reversible.apply(x_BnD, steps, *learned.values())


class _Reversible(torch.autograd.Function):
    """Keeps the last activations only; parameters are inputs, so that whoever listens to their
    gradients hears of them as usual.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: Sequence[Step], *learned: Tensor) -> Tensor:
        ctx.steps, ctx.learned, ctx.random = steps, learned, []
        ctx.autocast = _autocast(x.device.type)
        one, other = x, x
        for _, step in steps:  # the two streams change places after every step
            ctx.random.append(_random(x.device))
            one, other = other, one + step(other)
        ctx.save_for_backward(one, other)
        return (one + other) / 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        one, other = ctx.saved_tensors
        grad_one, grad_other = grad / 2, grad / 2
        found = {id(p): torch.zeros_like(p) for p in ctx.learned}
        for (layer, step), state in zip(ctx.steps[::-1], ctx.random[::-1], strict=True):
            own = [p for p in layer.parameters() if p.requires_grad]
            leaf = one.detach().requires_grad_()
            with torch.enable_grad(), _replayed(state, one.device), ctx.autocast():
                out = step(leaf)
            grads = torch.autograd.grad(out, [leaf, *own], grad_other.to(out.dtype))
            one, other = other - out.detach(), one
            grad_one, grad_other = grad_other, grad_one + grads[0]
            for p, g in zip(own, grads[1:], strict=True):
                found[id(p)] += g
        return grad_one + grad_other, None, *(found[id(p)] for p in ctx.learned)


def _autocast(device: str) -> Callable[[], torch.autocast]:
    """Makes the autocast context that holds now."""
    dtype, on = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=on)


def _random(device: torch.device) -> list[Tensor]:
    on_device = device.type in ("cuda", "mps")
    module = getattr(torch, device.type, None)
    return [torch.get_rng_state(), *([module.get_rng_state()] if on_device and module else [])]


@contextlib.contextmanager
def _replayed(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Random numbers as they were drawn at `state`."""
    now = _random(device)
    _set_random(state, device)
    try:
        yield
    finally:
        _set_random(now, device)


def _set_random(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        getattr(torch, device.type).set_rng_state(state[1])
