"""What every loss here shares: no autocast, and float32 at least."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Tensor])


def exact(loss: F) -> F:
    """Run a loss with autocast off, half-precision inputs in float32; float64 stays float64."""

    @functools.wraps(loss)
    def run(*tensors: Tensor, **keys: Any) -> Tensor:
        wide = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*wide, **keys)

    return run  # type: ignore[return-value]
