"""Time and memory of training steps, measured in a process of its own."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vilmedic_ssl.executors import gradient_cache
from vilmedic_ssl.executors.amp import amp_dtype
from vilmedic_ssl.executors.optim import build_optimizer
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.ema import WeightAverage

WARM_UP, STEPS, SECONDS = 2, 12, 10.0  # steps that do not count; at most so many, or seconds
GIB = 2**30


def limit_memory(gib: float, device: torch.device) -> None:
    """Let this process have no more than `gib` GiB: of the accelerator, or, on Linux, of private
    memory.
    """
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / whole), device)
    elif sys.platform == "linux":
        import resource

        most = int(gib * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch and Python raise when memory runs out, and for nothing else."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in told or "not enough memory" in told  # CPU; Linux, Windows
    )


def peak_gib(device: torch.device) -> float:
    """The most memory this process held: on the accelerator, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    status = Path("/proc/self/status")
    if status.is_file():  # rusage would also count the parent, as it was when this one began
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def time_steps(
    model: PretrainingModel, settings: TrainorSettings, batch: Mapping[str, Any]
) -> dict[str, float]:
    """`seconds` of one optimizer step on `batch` (the median of several), and `memory_gib`.

    Args:
        model: on its device, in training mode; its weights change.
        batch: of `settings.images_per_step` images, on the same device.
    """
    device = next(model.parameters()).device
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, settings.optimizer, settings.optim_params)
    average = WeightAverage(model, settings.ema) if settings.ema else None
    dtype = amp_dtype(settings, device)
    scaled = dtype == torch.float16 and device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    chunk = _chunk(model, settings)
    times: list[float] = []
    while len(times) < 2 or (len(times) < STEPS and sum(times) < SECONDS):
        _wait(device)
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        gradient_cache.backward(
            model,
            dict(batch),
            chunk=chunk,
            cast=lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
            scale=scaler.scale,
        )
        scaler.step(optimizer)
        scaler.update()
        model.after_step()
        if average:
            average.update(model)
        _wait(device)
        times.append(time.perf_counter() - begin)
    counted = times[min(WARM_UP, len(times) - 1) :]
    return {"seconds": statistics.median(counted), "memory_gib": peak_gib(device)}


def _chunk(model: PretrainingModel, settings: TrainorSettings) -> int | None:
    """Images per pass, as in training by one process."""
    limits = [model.forward_batch_size] if model.forward_batch_size else []
    if settings.grad_accu > 1:
        limits.append(settings.batch_size)
    return min(limits, default=None)


def _wait(device: torch.device) -> None:
    """Until the accelerator has done what it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
