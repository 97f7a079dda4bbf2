"""A model's own loss on a split, at a batch size that is stated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vilmedic_ssl.console import progress, warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._shared import Features, Source, Value
from vilmedic_ssl.registry import proto

if TYPE_CHECKING:
    from vilmedic_ssl.models.base import PretrainingModel
else:
    PretrainingModel = Any


@proto
def pair_loss(
    features: Features,
    out: Path,
    *,
    batch_size: int = 32,
    shuffles: int = 3,
    references: tuple[Literal["random_init"], ...] = ("random_init",),
) -> Iterator[tuple[str, Value]]:
    """The loss that trained the model, on the evaluation views and whole reports of every split, in
    shuffled batches of one size; a last batch that is smaller is dropped, and a split that has no
    batch is left out.

    A contrastive loss grows with the batch: compare only numbers of one batch size. Of several
    checkpoints the best one is measured.

    Args:
        batch_size: pairs in a batch.
        shuffles: times the split is shuffled and read; the numbers are means over all batches.
        references: encoders measured in the same way beside it, on the same batches: random_init.

    Yields:
        "<split>/pair_loss/loss"; chance, the loss of a model that knows nothing (ln of the batch
        size for one cross entropy); below_chance = chance - loss; floor, what equal texts in a
        batch keep the loss from falling below, where the model tells it; batch_size.

    Raises:
        UserError: the model compares no pairs, no split has a batch, or a key is below 1.
    """
    from vilmedic_ssl.executors.pairs import reader_of

    if batch_size < 2 or shuffles < 1:
        raise UserError(
            f"pair_loss: batch_size {batch_size}, shuffles {shuffles}; write 2 or more, 1 or more"
        )
    features = features.of_best()
    sources: list[Source] = ["model", *references]
    models = {source: reader_of(features, "pair_loss", source).model for source in sources}
    for split in _large_enough(features, batch_size):
        table = score_in_batches(features, split, models, batch_size, shuffles)
        for source, numbers in table.items():
            row = "" if source == "model" else f"{source}/"
            for name, value in numbers.items():
                yield f"{split}/pair_loss/{row}{name}", value
        yield f"{split}/pair_loss/batch_size", float(batch_size)


def _large_enough(features: Features, batch_size: int) -> list[str]:
    """The splits that have a batch.

    Raises:
        UserError: none has.
    """
    pairs = {split: len(features.dataset(split)) for split in features.splits}
    small = {split: n for split, n in pairs.items() if n < batch_size}
    if small:
        told = ", ".join(f"{split} has {n} pairs" for split, n in small.items())
        told = f"pair_loss.batch_size: {told}, fewer than a batch of {batch_size}"
        if small == pairs:
            raise UserError(f"{told}; write batch_size: {max(small.values())} or less")
        warn(f"{told}; left out")
    return [split for split in pairs if split not in small]


def score_in_batches(
    features: Features,
    split: str,
    models: Mapping[Source, PretrainingModel],
    batch_size: int,
    shuffles: int,
) -> dict[Source, dict[str, float]]:
    """Mean `loss`, `chance`, `below_chance` and `floor` of each model over the same batches."""
    import torch

    from vilmedic_ssl.data.loader import EpochBatches, Loader
    from vilmedic_ssl.executors.validator import to_device

    dataset = features.dataset(split)
    sampler = EpochBatches(
        len(dataset), batch_size=batch_size, seed=features.seed, shuffle=True, drop_last=True
    )
    loader = Loader(dataset, sampler, workers=0, pin_memory=False)
    device = features.inputs(split, [0]).device
    rows: dict[Source, list[dict[str, float]]] = {source: [] for source in models}
    for epoch in progress(range(1, shuffles + 1), desc=f"{split}, loss", unit="shuffle"):
        for batch in loader.epoch(epoch):
            given = to_device(batch, device)
            views = given.pop("images")[:, None]
            for source, model in models.items():
                with torch.no_grad():
                    found = model(views, **given)
                rows[source].append(
                    {k: float(found[k]) for k in ("loss", "chance", "floor") if k in found}
                )
    return {source: _means(numbers) for source, numbers in rows.items()}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    if "chance" in means:
        means["below_chance"] = means["chance"] - means["loss"]
    return means
