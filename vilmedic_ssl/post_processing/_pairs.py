"""Exact pairs of images and reports: who finds its partner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import say, warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._compare import side_by_side
from vilmedic_ssl.post_processing._numbers import warn_of_intervals
from vilmedic_ssl.post_processing._shared import Features, Value

Reference = Literal["random_init"]
Source = Literal["model", "random_init"]


def pairs_table(
    features: Features,
    split: str,
    references: Sequence[Reference],
    ks: Sequence[int],
    *,
    draws: int,
) -> dict[str, Value]:
    """R@k, median rank, chance and ceiling of one split, both ways.

    Reports that read alike are one candidate: an image looks for its text, a text for any of its
    images. A text counts to the patient of its first image.

    Raises:
        UserError: the model reads no text, or fewer than two different reports.
    """
    from vilmedic_ssl.executors.pairs import reader_of

    sources: list[Source] = ["model", *references]
    readers = {source: reader_of(features, "retrieval", source) for source in sources}
    reports, part = readers["model"].reports(split), features.get(split)
    kept = np.flatnonzero([bool(text.strip()) for text in reports])
    if len(kept) < len(reports):
        warn(f"retrieval: {len(reports) - len(kept)} images of {split} have no report; left out")
    texts = list(dict.fromkeys(reports[i] for i in kept))
    if len(texts) < 2:
        raise UserError(
            f"retrieval: {split} has {len(texts)} different report(s), so nothing can be searched"
        )
    of_N = metrics.merged([reports[i] for i in kept])
    names = np.array(part.ids if part.patients is None else part.patients)[kept]
    ranks: dict[str, list[np.ndarray]] = {"image_to_text": [], "text_to_image": []}
    for source in sources:
        similarity_NT = readers[source].similarity(split, texts)[kept]
        for way, rank in zip(ranks, metrics.pair_ranks(similarity_NT, of_N), strict=True):
            ranks[way].append(rank)
    _, first_T = np.unique(of_N, return_index=True)
    groups = {"image_to_text": names, "text_to_image": names[first_T]}
    where, table = f"{split}/retrieval", _frame(f"{split}/retrieval", of_N, ks)
    keys: dict[str, Any] = {"draws": draws, "seed": features.seed}
    for way, of_sources in ranks.items():
        metric = [f"{way}/{name}" for name in (*(f"R@{k}" for k in ks), "median_rank")]

        def numbers(rank_Q: np.ndarray) -> np.ndarray:
            return np.array([*((rank_Q <= k).mean() for k in ks), np.median(rank_Q)])

        made, drawn = side_by_side(
            where,
            metric,
            numbers,
            [],
            of_sources,
            references,
            groups=groups[way],
            limits=[metrics.UNIT] * len(ks) + [metrics.UNLIMITED],
            **keys,
        )
        table |= made
        warn_of_intervals(f"retrieval, {way}", split, drawn)
    ceiling = table[f"{where}/duplicate_ceiling"]
    say(
        f"retrieval: {split}: {len(kept)} images, {len(texts)} different reports, merged; told "
        f"apart, equal reports would keep R@1 below {ceiling:.3f}; chance "
        + ", ".join(f"R@{k} {table[f'{where}/image_to_text/chance_R@{k}']:.3f}" for k in ks)
    )
    return table


def _frame(where: str, of_N: np.ndarray, ks: Sequence[int]) -> dict[str, Value]:
    """What the data alone decides: candidates, ceiling, and R@k of a random order."""
    images_T = np.bincount(of_N)
    table: dict[str, Value] = {
        f"{where}/images": float(len(of_N)),
        f"{where}/texts": float(len(images_T)),
        f"{where}/duplicate_ceiling": len(images_T) / len(of_N),
    }
    for k in ks:
        one_each = np.ones(len(of_N))
        text = metrics.recall_by_chance(one_each, len(images_T), k=k)
        image = metrics.recall_by_chance(images_T, len(of_N), k=k)
        table[f"{where}/image_to_text/chance_R@{k}"] = text
        table[f"{where}/text_to_image/chance_R@{k}"] = image
    return table
