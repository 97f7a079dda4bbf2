"""Is training alive: finite losses, embeddings that have not collapsed, data that arrives in
time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vilmedic_ssl import console, metrics
from vilmedic_ssl.errors import Diverged

# A unit vector with D independent coordinates has a standard deviation of 1 / sqrt(D) per
# coordinate; SimSiam (Chen and He 2021, section 4.1) reads collapse off that ratio falling to 0. A
# tenth is far below any healthy run seen.
COLLAPSED = 0.1


def check_finite(loss: Tensor, ids: list[str], *, epoch: int, step: int) -> float:
    """The loss as a float.

    Raises:
        Diverged: NaN or infinite; the sentence names the batch.
    """
    value = float(loss)
    if not math.isfinite(value):
        shown = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
        raise Diverged(
            f"the loss became {value} in epoch {epoch}, step {step}, on the batch with {shown}; "
            "lower "
            "trainor.optim_params.lr, set trainor.clip_grad_norm, or look at these images"
        )
    return value


def embedding_health(rows_ND: Tensor) -> dict[str, float]:
    """`std`: feature_std of the rows times sqrt(D), 1 = spread evenly, 0 = collapsed; `rank`:
    effective_rank of the rows. Both as in `vilmedic_ssl.metrics`.
    """
    rows = rows_ND.detach().float().cpu().numpy()
    std = metrics.feature_std(rows) * math.sqrt(rows.shape[1])
    return {"std": std, "rank": metrics.effective_rank(rows)}


class CollapseMonitor:
    """Warns once when embeddings collapse, and again only after they recovered."""

    def __init__(self) -> None:
        self.warned = False

    def look(self, health: dict[str, float]) -> None:
        collapsed = health["std"] < COLLAPSED
        if collapsed and not self.warned:
            console.warn(
                f"the embeddings are collapsing (spread {health['std']:.3f} of 1, effective rank "
                f"{health['rank']:.1f}): nearly all images map to one point; lower the learning "
                "rate or check the views"
            )
        self.warned = collapsed


@dataclass
class Meter:
    """Speed, waiting time and mean loss since the last reset; the clock can be replaced in
    tests.
    """

    clock: Callable[[], float] = time.perf_counter
    images: int = 0
    waited: float = 0.0
    losses: float = 0.0
    batches: int = 0
    begin: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.begin = self.clock()

    def add(self, *, images: int, waited: float, loss: float) -> None:
        self.images += images
        self.waited += waited
        self.losses += loss
        self.batches += 1

    def read(self) -> dict[str, float]:
        """`loss` (mean), `images_per_s`, `data_wait` (share of time in [0, 1])."""
        elapsed = max(self.clock() - self.begin, 1e-9)
        return {
            "loss": self.losses / max(1, self.batches),
            "images_per_s": self.images / elapsed,
            "data_wait": min(1.0, self.waited / elapsed),
        }

    def reset(self) -> None:
        self.images, self.waited, self.losses, self.batches = 0, 0.0, 0.0, 0
        self.begin = self.clock()


def line(epoch: int, epochs: int, reading: dict[str, float], *, lr: float) -> str:
    """What stands beside the progress bar; the chance level falls away for losses that have
    none.
    """
    against = f" (chance {reading['chance']:.2f})" if math.isfinite(reading["chance"]) else ""
    return (
        f"epoch {epoch}/{epochs}, loss {reading['loss']:.3f}{against}, lr {lr:.1e}, "
        f"{reading['images_per_s']:.0f} img/s, data wait {reading['data_wait']:.0%}"
    )


def ids_of(batch: dict[str, Any]) -> list[str]:
    """The sample names of a batch, for error messages."""
    return [str(name) for name in batch.get("id", [])]
