"""Findings and classes scored by prompts, with no label used: named protocols."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from vilmedic_ssl import metrics
from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._compare import write_table
from vilmedic_ssl.post_processing._prompts import matched, read_prompts
from vilmedic_ssl.post_processing._shared import Features, Value, labels_of
from vilmedic_ssl.post_processing._zero_shot import (
    USUAL,
    OfPrompt,
    Protocol,
    Reduce,
    Reference,
    Source,
    Way,
    margins,
    similarities,
)
from vilmedic_ssl.post_processing._zero_shot_table import (
    chosen_labels,
    hot,
    path_of,
    split_table,
    write_prompts,
)
from vilmedic_ssl.registry import proto
from vilmedic_ssl.settle import AsText

TRANSDUCTIVE = (
    "zero_shot: protocol gloria is transductive: each class is standardised over the whole split, "
    "which uses the other images and favours splits with equally many of each class; compare it "
    "only with numbers made in the same way"
)


@proto
def zero_shot(
    features: Features,
    out: Path,
    *,
    prompts: str | Annotated[dict, AsText()],
    protocol: Protocol = "chexzero",
    labels_keep: list[str] | None = None,
    reduce: Reduce | None = None,
    temperature: float | Literal["validate"] = 1.0,
    references: tuple[Reference, ...] = ("random_init",),
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """Score every split but train by the similarity of its images with prompts.

    Images without a label, and findings that are not known, are left out. With one class per image
    the decision is the class with the highest score. Of several checkpoints the best one is asked.

    Args:
        prompts: a prompt manifest (YAML file, see docs/paired-scores.md), or its keys.
        protocol: chexzero = probability of "X" against "no X" from two cosines; class_prompts =
            similarity with the prompts of a class; gloria = the same, maximum over prompts, each
            class standardised over all images of the split (transductive).
        labels_keep: the labels to score; null = all that the manifest and the data both have.
        reduce: how the prompts of a label are joined: mean_embedding (cosine with the mean of their
            unit vectors), mean or max of the similarities; null = mean_embedding for chexzero, mean
            for class_prompts, max for gloria, which has no other.
        temperature: of chexzero's two cosines, 1 as published; validate = fitted there with its
            labels, one number for all findings.
        references: encoders scored in the same way beside it: random_init.
        draws: bootstrap draws of patients for the 95 % intervals; below 20 there are none.

    Yields:
        auroc and auroc/<name>; auprc for findings; accuracy, balanced_accuracy and f1 for one
        class per image; ece and temperature for chexzero; prompt_spread/... and negation/... as
        docs/paired-scores.md describes; the AUROC of every prompt as CSV, all numbers as JSON.

    Raises:
        UserError: the model reads no text; no labels or nothing to score; prompts that are no
            labels of the data; chexzero without negatives; a key that the protocol does not take.
    """
    features = features.of_best()
    _refuse(protocol, reduce, temperature)
    asked = read_prompts(prompts, "zero_shot")
    splits = [split for split in features.splits if split != "train"]
    if not splits:
        raise UserError("zero_shot: only train is asked for; write ensemblor.splits: [test]")
    part = features.get(splits[0])
    labels_of(part, "zero_shot")
    asked = matched(asked, part.label_names, labels_keep, "zero_shot")
    way = Way(protocol, reduce or USUAL[protocol], asked)
    _check_negatives(way)
    sources: list[Source] = ["model", *references]
    at: dict[Source, float] = {}
    table: dict[str, Value] = {}
    rows: list[tuple[str, OfPrompt]] = []
    for source in sources:
        at[source] = (
            _fitted(features, source, way) if temperature == "validate" else float(temperature)
        )
        if temperature == "validate":
            table[path_of("validate", way.name, source, "temperature")] = at[source]
    for split in splits:
        found = {source: similarities(features, split, source, way) for source in sources}
        made, of_prompts = split_table(
            features.get(split), way, found, at, draws=draws, seed=features.seed
        )
        table |= made
        rows += [(split, of) for of in of_prompts]
    if protocol == "gloria":
        warn(TRANSDUCTIVE)
    yield from table.items()
    path = out / f"{way.name}_{features.tag}_prompts.csv"
    yield f"{way.name}: the AUROC of every prompt by itself", write_prompts(rows, path)
    path = out / f"{way.name}_{features.tag}.json"
    yield f"{way.name}: every number with its interval", write_table(table, path)


def _refuse(protocol: Protocol, reduce: Reduce | None, temperature: float | str) -> None:
    """Raises:
    UserError: a key that the protocol does not take.
    """
    if protocol == "gloria" and reduce not in (None, "max"):
        raise UserError(
            f"zero_shot.reduce: gloria takes the maximum over prompts, not {reduce}; write "
            "protocol: class_prompts for another"
        )
    if protocol != "chexzero" and temperature != 1:
        raise UserError(
            f"zero_shot.temperature: {protocol} gives no probabilities; write protocol: chexzero, "
            "or take temperature out"
        )
    if not isinstance(temperature, str) and not temperature > 0:
        raise UserError(f"zero_shot.temperature: {temperature}; write a number above 0")


def _check_negatives(way: Way) -> None:
    """Raises:
    UserError: chexzero needs negatives that are not there.
    """
    bare = [name for name, texts in way.prompts.negative.items() if not texts]
    if way.protocol == "chexzero" and bare:
        raise UserError(
            f"zero_shot.prompts: {', '.join(bare)} has no negative prompts, which chexzero compares"
            ' with; write `negative: ["no {}"]` in the manifest, or protocol: class_prompts'
        )


def _fitted(features: Features, source: Source, way: Way) -> float:
    """The temperature for the two sides, on validate.

    Raises:
        UserError: there is no such split, or nothing labelled in it.
    """
    if not features.has("validate"):
        raise UserError("zero_shot.temperature: the data has no validate split; write a number")
    y = chosen_labels(features.get("validate"), list(way.prompts.positive), way.name)
    found = similarities(features, "validate", source, way)
    return metrics.fit_temperature(hot(y, len(way.prompts.positive)), margins(found, way))
