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
import torch.nn.functional as F
from torch import Tensor, nn

from vilmedic_ssl import dist
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.models.base import PretrainingModel, as_views

Scale = Callable[[Tensor], Tensor]
Cast = Callable[[], contextlib.AbstractContextManager[Any]]
Part = dict[str, Tensor]
ONE = "more than 1 value per channel"  # batch norm on a single one


def backward(
    wrapped: nn.Module, batch: dict[str, Any], *, chunk: int | None, cast: Cast, scale: Scale
) -> dict[str, Any]:
    """Forward and backward of one global batch; gradients end up in the parameters.

    Args:
        wrapped: the model, or DDP around it.
        batch: this rank's part; `images` (n, V, C, H, W) and what the model `takes`.
        chunk: samples per pass on one rank; None = all at once.
        cast: makes the autocast context.
        scale: multiplies the loss before its backward pass (the gradient scaler).

    Returns:
        What the model's `score` gives, `loss` detached, for the whole batch.
    """
    model: PretrainingModel = getattr(wrapped, "module", wrapped)  # type: ignore
    if "images" not in batch:
        raise UserError("dataset: its samples have no images; take a proto that has them")
    pieces = _pieces(batch["images"], chunk, model)
    with _enough_for_batch_norm():
        if pieces == 1:
            with cast():
                out = wrapped(**batch)
            if "loss" not in out:
                return out
            scale(out["loss"]).backward()
            return _detached(out)
        if as_views(batch["images"]) is None:
            return {}
        parts = _parts(batch, model, pieces)
        return (_cached if model.coupled else _added)(wrapped, model, parts, cast, scale)


@torch.no_grad()
def takes_one(model: PretrainingModel, batch: dict[str, Any], cast: Cast) -> bool:
    """True when the rows of a batch of one image can be computed as in training, which batch norm
    refuses where it sees a single value per channel. Leaves the model and the random state as they
    were.
    """
    device = batch["images"].device
    kept, drawn = {n: x.clone() for n, x in model.named_buffers()}, _random_state(device)
    training = model.training
    try:
        with cast():
            model.train()(**batch, rows_only=True)
    except ValueError as error:
        if ONE not in str(error):
            raise
        return False
    finally:
        model.train(training)
        _set_random_state(drawn)
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    return True


@contextlib.contextmanager
def _enough_for_batch_norm() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if ONE not in str(error):
            raise
        raise UserError(
            "batch norm met a single image: raise trainor.batch_size or model.forward_batch_size, "
            "or write trainor.drop_last=true so that no short batch ends an epoch"
        ) from error


def has_batch_norm(model: nn.Module) -> bool:
    """True when a batch norm normalises with the statistics of the batch."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(norm.training for norm in norms)


def _pieces(images: Tensor, chunk: int | None, model: nn.Module) -> int:
    """How many chunks; the same on every rank, because layers inside may talk to the other
    ranks.

    With batch norm none holds a single image of all ranks together, so that the last ones may be
    larger by one; a chunk of 1 that one process asks for remains.
    """
    if chunk is None:
        return 1
    counts = dist.counts_of(len(images), images.device)
    pieces = max(1, math.ceil(max(counts) / chunk))
    if chunk * len(counts) > 1 and has_batch_norm(model):
        while pieces > 1 and sum(n // pieces for n in counts) < 2:  # images of the last chunk
            pieces -= 1
    return pieces


def _parts(batch: dict[str, Any], model: PretrainingModel, pieces: int) -> list[Part]:
    """What `rows` takes of a batch, cut along the samples."""
    taken = (*model.takes, *model.may_take)
    names = ["images", *(name for name in taken if name in batch)]
    cut = {name: batch[name].tensor_split(pieces) for name in names}
    return [{name: cut[name][i] for name in names} for i in range(pieces)]


def _added(
    wrapped: nn.Module, model: PretrainingModel, parts: list[Part], cast: Cast, scale: Scale
) -> dict[str, Any]:
    sizes = [sum(dist.counts_of(len(p["images"]), p["images"].device)) for p in parts]
    loss, out = 0.0, {}
    told: dict[str, float] = {}
    for i, part in enumerate(parts):
        with _synchronised(wrapped, i == len(parts) - 1):
            with cast():
                out = wrapped(**part)
            share = out["loss"] * (sizes[i] / sum(sizes))
            scale(share).backward()
        loss = loss + share.detach()
        for name, value in parts_of(out).items():
            told[name] = told.get(name, 0.0) + value * (sizes[i] / sum(sizes))
    return {**_detached(out), "loss": loss, **told}


def _cached(
    wrapped: nn.Module, model: PretrainingModel, parts: list[Part], cast: Cast, scale: Scale
) -> dict[str, Any]:
    states, device = [], parts[0]["images"].device
    first = []
    with torch.no_grad(), cast(), _still_statistics(model):
        for part in parts:
            states.append(_random_state(device))
            first.append(model(**part, rows_only=True))
    leaves = [torch.cat(row).detach() for row in zip(*first, strict=True)]
    leaves = [x.requires_grad_(x.is_floating_point()) for x in leaves]
    del first
    with _synchronised(wrapped, False):
        with cast():
            out = model.score(*leaves)
        scale(out["loss"]).backward()
    learned = [p for p in model.parameters() if p.grad is not None]  # by the score itself
    gradients = [None if x.grad is None else x.grad.tensor_split(len(parts)) for x in leaves]
    after = _random_state(device)
    for i, part in enumerate(parts):
        _set_random_state(states[i])
        with _synchronised(wrapped, i == len(parts) - 1):
            with cast():
                rows = wrapped(**part, rows_only=True)
            pairs = [(x, g[i]) for x, g in zip(rows, gradients, strict=True) if g is not None]
            sums = [(x.to(g.dtype) * g).sum() for x, g in pairs]
            sums += [0 * p.sum() for p in learned]  # DDP exchanges what takes part
            torch.stack(sums).sum().backward()
    _set_random_state(after)
    return {**_detached(out), "visual": leaves[0].detach()}


@torch.no_grad()
def norm_gap(model: PretrainingModel, batch: dict[str, Any], chunk: int) -> float:
    """How far batch norm's statistics of `chunk` images carry embeddings from those of four times
    as many: mean cosine distance in [0, 2], 0 = not at all. Leaves the model and the random
    state as they were.
    """
    some = {k: v[: 4 * chunk] for k, v in batch.items() if isinstance(v, Tensor)}
    pieces = _pieces(some["images"], chunk, model)
    before = _random_state(some["images"].device)
    with _still_statistics(model):
        (whole,) = (model(**part, rows_only=True)[0] for part in _parts(some, model, 1))
        parts = [model(**part, rows_only=True)[0] for part in _parts(some, model, pieces)]
    _set_random_state(before)
    return float(1 - F.cosine_similarity(whole, torch.cat(parts)).mean())


def parts_of(out: dict[str, Any]) -> dict[str, float]:
    """The numbers that `score` gives beside the loss: its chance level, its parts."""
    return {name: value for name, value in out.items() if isinstance(value, float)}


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
