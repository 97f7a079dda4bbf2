"""One batch in one backward pass, or in chunks with the same gradient.

Losses that add over samples take a weighted mean of the chunks. Losses that couple samples take
two passes (gradient caching, Gao et al. 2021): embeddings of all chunks without a graph, the
gradient of the whole batch's loss with respect to them, then each chunk again with that gradient.
Both are exact up to rounding except for batch norm, whose statistics are those of a chunk.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vilmedic_ssl import dist
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.models.base import PretrainingModel, as_views

Scale = Callable[[Tensor], Tensor]
Cast = Callable[[], contextlib.AbstractContextManager[Any]]


def backward(
    wrapped: nn.Module, batch: dict[str, Any], *, chunk: int | None, cast: Cast, scale: Scale
) -> dict[str, Any]:
    """Forward and backward of one global batch; gradients end up in the parameters.

    Args:
        wrapped: the model, or DDP around it.
        batch: this rank's part; `images` (n, V, C, H, W).
        chunk: samples per pass on one rank; None = all at once.
        cast: makes the autocast context.
        scale: multiplies the loss before its backward pass (the gradient scaler).

    Returns:
        What the model's `score` gives, `loss` detached, for the whole batch.
    """
    model: PretrainingModel = getattr(wrapped, "module", wrapped)  # type: ignore
    if "images" not in batch:
        raise UserError("dataset: its samples have no images; take a proto that has them")
    images: Tensor = batch["images"]
    pieces = _pieces(images, chunk)
    if pieces == 1:
        with cast():
            out = wrapped(**batch)
        if "loss" not in out:
            return out
        scale(out["loss"]).backward()
        return _detached(out)
    if as_views(images) is None:
        return {}
    parts = images.tensor_split(pieces)
    return (_cached if model.coupled else _added)(wrapped, model, parts, cast, scale)


def _pieces(images: Tensor, chunk: int | None) -> int:
    """How many chunks; the same on every rank, because layers inside may talk to the other
    ranks.
    """
    most = max(dist.counts_of(len(images), images.device))
    return 1 if chunk is None else max(1, math.ceil(most / chunk))


def _added(
    wrapped: nn.Module, model: PretrainingModel, parts: tuple[Tensor, ...], cast: Cast, scale: Scale
) -> dict[str, Any]:
    sizes = [sum(dist.counts_of(len(part), part.device)) for part in parts]
    loss, out = 0.0, {}
    for i, part in enumerate(parts):
        with _synchronised(wrapped, i == len(parts) - 1):
            with cast():
                out = wrapped(part)
            share = out["loss"] * (sizes[i] / sum(sizes))
            scale(share).backward()
        loss = loss + share.detach()
    return {**_detached(out), "loss": loss}


def _cached(
    wrapped: nn.Module, model: PretrainingModel, parts: tuple[Tensor, ...], cast: Cast, scale: Scale
) -> dict[str, Any]:
    states, first = [], []
    with torch.no_grad(), cast(), _still_statistics(model):
        for part in parts:
            states.append(_random_state(part.device))
            first.append(model(part, rows_only=True))
    leaves = [torch.cat(view).detach().requires_grad_() for view in zip(*first, strict=True)]
    with cast():
        out = model.score(*leaves)
    scale(out["loss"]).backward()
    gradients = [leaf.grad.tensor_split(len(parts)) for leaf in leaves if leaf.grad is not None]
    after = _random_state(parts[0].device)
    for i, part in enumerate(parts):
        _set_random_state(states[i])
        with _synchronised(wrapped, i == len(parts) - 1):
            with cast():
                rows = wrapped(part, rows_only=True)
            pairs = zip(rows, gradients, strict=True)
            torch.stack([(row.to(g[i].dtype) * g[i]).sum() for row, g in pairs]).sum().backward()
    _set_random_state(after)
    return {**_detached(out), "visual": leaves[0].detach()}


def _detached(out: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in out.items()}


@contextlib.contextmanager
def _synchronised(wrapped: nn.Module, last: bool) -> Iterator[None]:
    """DDP exchanges gradients in the last chunk only."""
    if last or not hasattr(wrapped, "no_sync"):
        yield
    else:
        with wrapped.no_sync():  # type: ignore[operator]
            yield


@contextlib.contextmanager
def _still_statistics(model: nn.Module) -> Iterator[None]:
    """The first of two passes must not move batch norm's running statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """The generators that a forward pass on `device` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def _set_random_state(state: dict[str, Tensor]) -> None:
    for kind, value in state.items():
        (torch if kind == "cpu" else getattr(torch, kind)).set_rng_state(value)
