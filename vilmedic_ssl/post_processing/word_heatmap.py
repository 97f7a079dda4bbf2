"""Phrases and words as heat over films."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto


@proto
def word_heatmap(
    features: Features,
    out: Path,
    *,
    images: int = 3,
    words: int = 8,
    phrases: list[str] = (),  # type: ignore[assignment]
    named: str | dict[str, str | None] = "{side} {finding}",
    splits: list[str] | None = None,
    sigma: float = 0.1,
) -> Iterator[tuple[str, Value]]:
    """Pictures with the heat of phrases, and of the words of a sentence of the report, over them;
    beside the same network untrained. Of several checkpoints the best one is asked.

    Where the data has outlines (`masks`), films with outlined findings are shown, of different
    findings as far as possible, else any.

    File: `word_heatmap_<tag>_<split>.png`.

    Args:
        images: films per split.
        words: of a sentence, those around the name of the finding where it has more; 0 = none.
        phrases: in the columns; empty = that of the film's finding, that of the other side, and
            those of two other findings.
        named: as `phrases` of grounding: how findings are called.
        splits: null = those of ensemblor.splits without train.
        sigma: as in grounding.

    Raises:
        UserError: the model reads no text; nothing to show.
    """
    from vilmedic_ssl.console import say
    from vilmedic_ssl.errors import ConfigError
    from vilmedic_ssl.executors.pairs import reader_of
    from vilmedic_ssl.post_processing._word_page import Shown, draw

    if images < 1 or words < 0 or sigma < 0:
        raise ConfigError(
            f"word_heatmap: images {images}, words {words}, sigma {sigma:g}; write 1 or more, and "
            "0 or more for the others"
        )
    if len(features.models) > 1:
        say(f"word_heatmap: of {len(features.models)} checkpoints the best one is asked")
    features = features.of_best()
    readers = {
        "trained": reader_of(features, "word_heatmap"),
        "untrained": reader_of(features, "word_heatmap", "random_init"),
    }
    shown = Shown(images, words, phrases, named, sigma)
    chosen = splits or [split for split in features.splits if split != "train"] or features.splits
    for split in chosen:
        path = out / f"word_heatmap_{features.tag}_{split}.png"
        yield f"word_heatmap, {split}: {draw(features, split, readers, shown, path)}", path
