"""What cannot come out well is said before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vilmedic_ssl import dist
from vilmedic_ssl.data.loader import Loader
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import gradient_cache
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.executors.validator import to_device
from vilmedic_ssl.models.base import PretrainingModel


def refuse_single_images(
    model: PretrainingModel,
    loader: Loader,
    settings: TrainorSettings,
    chunk: int | None,
    cast: Callable[[], Any],
) -> None:
    """One image alone has no statistics for batch norm, and no other image to be compared with.

    Args:
        chunk: images per pass of one process; None = the whole batch.

    Raises:
        UserError: a batch of the training, or each of its passes, holds a single image, and the
            model cannot learn from that.
    """
    alone = min(map(len, loader.sampler.batches(1))) == 1
    if not alone and not (chunk == 1 and dist.world_size() == 1):
        return
    if alone and model.coupled:
        problem = "its loss compares the images of a batch"
    else:
        device = next(model.parameters()).device
        batch = to_device(loader.dataset.collate([loader.dataset[0]]), device)
        if gradient_cache.takes_one(model, batch, cast):
            return
        problem = "its batch norm needs the statistics of several images"
    where, remedy = _single(len(loader.dataset), settings, alone, model.forward_batch_size)
    raise UserError(
        f"{where} a single image, and {type(model).__name__} needs two: {problem}; {remedy}"
    )


def _single(
    images: int, settings: TrainorSettings, alone: bool, own: int | None
) -> tuple[str, str]:
    """Where a single image comes from, and what to write instead."""
    if alone and images == 1:
        return "the training split holds", "give it more images"
    if alone:
        return "trainor.batch_size: 1 makes batches of", "write trainor.batch_size=2 or more"
    if own == 1:
        return (
            "model.forward_batch_size: 1 makes passes of",
            "write model.forward_batch_size=2 or more",
        )
    return (
        "trainor.batch_size: 1 makes passes of",
        f"write trainor.batch_size=2 and trainor.grad_accu={max(1, settings.grad_accu // 2)}",
    )
