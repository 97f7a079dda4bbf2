"""The handful of functions that make N processes one: torchrun + DDP, with gathers that carry
gradient.

Without a process group every function is the identity, so one process runs the very same code.
Losses are written for the whole batch: each rank scores its own anchors against everybody's rows
and divides by the global count through `total`; with the backward passes below and DDP's division
by the number of ranks, parameter gradients equal those of one process holding the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError


def active() -> bool:
    """True when a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def start(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment; nothing to do without
    one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not active():
        # The others wait while the main process reads every image once; torchrun ends them at
        # once if it fails.
        patience = timedelta(hours=12)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)


def stop() -> None:
    if active():
        dist.destroy_process_group()


def choose_device(name: str | None = None) -> torch.device:
    """The device of this process: `name` if given, else cuda, else mps, else cpu.

    Raises:
        UserError: `name` is not available here.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    mps = torch.backends.mps.is_available()
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if mps and not several else "cpu"
    usable = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if not usable.get(name):
        raise UserError(f"device: {name!r} is not available on this machine; leave the key out")
    if name == "mps" and several:
        raise UserError("device: several processes cannot share 'mps'; write device=cpu")
    if name == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"device: process {local} has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; lower --nproc_per_node"
            )
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device(name)


class _Total(torch.autograd.Function):
    """Sum over ranks, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _Gather(torch.autograd.Function):
    """Rows of every rank in rank order; backward sums the ranks' gradients and keeps the own
    slice.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        most = max(counts)
        padded = x_ND.new_zeros(most, *x_ND.shape[1:])
        padded[: len(x_ND)] = x_ND
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        begin = sum(ctx.counts[: rank()])
        return grad[begin : begin + ctx.counts[rank()]], None


def counts_of(n: int, device: torch.device) -> list[int]:
    """How many rows each rank holds, in rank order."""
    if not active():
        return [n]
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([n], device=device))
    return [int(c) for c in counts]


def gather(x_ND: Tensor) -> Tensor:
    """(n, ...) rows of this rank -> (N, ...) rows of all ranks, with gradient; ragged counts
    allowed.
    """
    return _Gather.apply(x_ND, counts_of(len(x_ND), x_ND.device)) if active() else x_ND


def total(x: Tensor) -> Tensor:
    """Sum of a tensor over ranks, with gradient."""
    return _Total.apply(x) if active() else x


def global_mean(x_N: Tensor) -> Tensor:
    """Mean over all ranks' rows of a per-row value (n,), with gradient; a zero-row rank adds
    nothing.
    """
    return total(x_N.sum()) / sum(counts_of(len(x_N), x_N.device))


def first_row(n: int, device: torch.device) -> int:
    """Position of this rank's first row in a gathered tensor."""
    return sum(counts_of(n, device)[: rank()])


def gather_objects(value: Any) -> list[Any]:
    """One picklable value per rank, in rank order, on every rank."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], Any]) -> Any:
    """Run on rank 0 while the others wait, and hand the result (picklable) to all.

    Raises:
        UserError: on every rank, when the function raises it on rank 0.
    """
    if not active():
        return function()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = function()
        except UserError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise UserError(box[1])
    return box[0]


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all ranks, on any device (torch's SyncBatchNorm refuses CPU
    tensors).

    Statistics come from one differentiable sum of (sum, sum of squares, count); buffers move as in
    torch's own: unbiased variance, momentum on the new value.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, got {input.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and active()):
            return super().forward(x)
        axes = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        wide = x if x.dtype == torch.float64 else x.float()
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        # Two sums instead of one: the centred second moment does not cancel for a large mean.
        n = total(count)
        if float(n) < 2:  # as torch's own says it
            raise ValueError(f"Expected more than 1 value per channel when training, got {n}")
        mean = total(wide.sum(axes)) / n
        centred = wide - mean.view(shape)
        variance = total(centred.square().sum(axes)) / n
        if (
            self.track_running_stats
            and self.running_mean is not None
            and self.running_var is not None
        ):
            self._move_buffers(mean.detach(), (variance * n / (n - 1).clamp_min(1)).detach())
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape)
            y = y if self.bias is None else y + self.bias.view(shape)
        return y.to(x.dtype)

    def _move_buffers(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        rate = (
            self.momentum
            if self.momentum is not None
            else 1.0 / float(self.num_batches_tracked or 1)
        )
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)


class GlobalBatchNormAct(GlobalBatchNorm):
    """timm's batch norm with dropout and activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[operator]


def globalise_batch_norm(model: nn.Module) -> nn.Module:
    """Make every batch norm see the whole global batch: SyncBatchNorm on CUDA, GlobalBatchNorm
    elsewhere.
    """
    if not active():
        return model
    if next(model.parameters()).is_cuda:
        from timm.layers import convert_sync_batchnorm  # torch's drops timm's fused activations

        return convert_sync_batchnorm(model)
    for module in model.modules():
        kind = type(module).__name__
        if kind in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"):
            module.__class__ = GlobalBatchNorm
        elif kind == "BatchNormAct2d":  # timm's norm with the activation inside
            module.__class__ = GlobalBatchNormAct
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            console.warn(
                f"{kind} keeps per-process statistics on the CPU, so several processes will not "
                "equal one; use a GPU, or a network with plain batch norm"
            )
    return model


def wrap(model: nn.Module) -> nn.Module:
    """DDP around a model whose parameters already live on its device; the model itself in one
    process.
    """
    if not active():
        return model
    ids = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=False)
