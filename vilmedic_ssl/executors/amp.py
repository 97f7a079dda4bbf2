"""Mixed precision: where it helps, and in which type."""

from __future__ import annotations

import torch

from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.executors.settings import TrainorSettings


def amp_dtype(settings: TrainorSettings, device: torch.device) -> torch.dtype | None:
    """The autocast type, None for full precision: on request, and where the device gains from it.

    bf16 autocast makes CPUs without matrix units slower, so `use_amp` alone leaves it off there.

    Raises:
        ConfigError: fp16 elsewhere than on cuda, where there is no gradient scaler.
    """
    if settings.amp_dtype == "fp16" and device.type != "cuda":
        raise ConfigError("trainor.amp_dtype: fp16 needs cuda; write bf16 or null")
    if settings.amp_dtype:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[settings.amp_dtype]
    if settings.use_amp and device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )
    if settings.use_amp:
        console.say(
            f"use_amp: full precision on {device.type}, which gains nothing from mixed precision"
        )
    return None
