"""Similarities of images with prompts, and the scores that the named protocols make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.metrics.arrays import unit_rows
from vilmedic_ssl.post_processing._prompts import Prompts
from vilmedic_ssl.post_processing._shared import Features, rows_of

Protocol = Literal["chexzero", "class_prompts", "gloria"]
Reduce = Literal["mean_embedding", "mean", "max"]
Reference = Literal["random_init"]
Source = Literal["model", "random_init"]
NAMES: dict[Protocol, str] = {  # in results
    "chexzero": "zero_shot",
    "class_prompts": "zero_shot_class_prompts",
    "gloria": "zero_shot_gloria_transductive",
}
USUAL: dict[Protocol, Reduce] = {
    "chexzero": "mean_embedding",  # as CLIP's prompt ensembles, which CheXzero builds on
    "class_prompts": "mean",
    "gloria": "max",
}


@dataclass(frozen=True)
class Way:
    """A protocol with its prompts. reduce: how the prompts of a label are joined."""

    protocol: Protocol
    reduce: Reduce
    prompts: Prompts

    @property
    def name(self) -> str:
        return NAMES[self.protocol]


@dataclass(frozen=True)
class Similarities:
    """Images of a split against every prompt.

    Attributes:
        place: column of each prompt.  prompt_NM: similarity of N images with M prompts.
        image_NP, text_MP: unit vectors behind the projections; their product is the cosine.
    """

    place: dict[str, int]
    prompt_NM: np.ndarray
    image_NP: np.ndarray
    text_MP: np.ndarray

    def each(self, texts: Sequence[str]) -> np.ndarray:
        """(N, len(texts))."""
        return self.prompt_NM[:, [self.place[text] for text in texts]]

    def together(self, texts: Sequence[str], reduce: Reduce) -> np.ndarray:
        """(N,): mean or maximum of the similarities, or the cosine with the mean unit vector."""
        if reduce == "max":
            return self.each(texts).max(axis=1)
        if reduce == "mean":
            return self.each(texts).mean(axis=1)
        mean_1P = self.text_MP[[self.place[text] for text in texts]].mean(axis=0, keepdims=True)
        return (self.image_NP @ unit_rows(mean_1P).T)[:, 0]


def similarities(features: Features, split: str, source: Source, way: Way) -> Similarities:
    """Of all images of a split with all prompts: cosines for chexzero, the model's own similarity
    for the other protocols.

    Raises:
    UserError: the model reads no text.
    """
    from vilmedic_ssl.executors.pairs import reader_of

    texts = way.prompts.texts()
    reader = reader_of(features, "zero_shot", source)
    image_NP = unit_rows(rows_of(features.get(split, source), "visual"))
    text_MP = unit_rows(reader.embed(texts)["linguistic"])
    chexzero = way.protocol == "chexzero"
    prompt_NM = image_NP @ text_MP.T if chexzero else reader.similarity(split, texts)
    return Similarities({text: m for m, text in enumerate(texts)}, prompt_NM, image_NP, text_MP)


def margins(found: Similarities, way: Way) -> np.ndarray:
    """(N, C) similarity to "X" minus similarity to "no X"; nan for labels without negatives."""
    none_N = np.full(len(found.image_NP), np.nan)
    return np.stack(
        [
            found.together(way.prompts.positive[name], way.reduce)
            - (found.together(negative, way.reduce) if negative else none_N)
            for name, negative in way.prompts.negative.items()
        ],
        axis=1,
    )


def scores(found: Similarities, way: Way, temperature: float) -> np.ndarray:
    """(N, C) float64: probabilities for chexzero, similarities for class_prompts, standardised ones
    for gloria.
    """
    if way.protocol == "chexzero":
        margin_NC = margins(found, way)
        return metrics.two_sided(margin_NC, np.zeros_like(margin_NC), temperature=temperature)
    texts = way.prompts.positive.values()
    score_NC = np.stack([found.together(t, way.reduce) for t in texts], axis=1).astype(np.float64)
    return metrics.standardise(score_NC) if way.protocol == "gloria" else score_NC


@dataclass(frozen=True)
class OfPrompt:
    """AUROC of one prompt by itself; `against` is the negative beside it, "" for none or all."""

    label: str
    prompt: str
    against: str
    auroc: float


def one_by_one(found: Similarities, way: Way, y_NC: np.ndarray) -> list[OfPrompt]:
    """Every prompt by itself; two-sided ones against the negative in the same place where there are
    equally many, else against all of them together.
    """
    made = []
    for y_N, (name, texts) in zip(y_NC.T, way.prompts.positive.items(), strict=True):
        score_NM, against = found.each(texts), [""] * len(texts)
        if way.protocol == "chexzero":
            negative = way.prompts.negative[name]
            if len(negative) == len(texts):
                score_NM, against = score_NM - found.each(negative), negative
            else:
                score_NM = score_NM - found.together(negative, way.reduce)[:, None]
        for text, other, score_N in zip(texts, against, score_NM.T, strict=True):
            made.append(OfPrompt(name, text, other, metrics.auroc(y_N, score_N)))
    return made


def spread(
    found: Similarities, way: Way, y_NC: np.ndarray, of_prompts: Sequence[OfPrompt]
) -> dict[str, float]:
    """How much the AUROC hangs on the wording: min, max, sd over the prompts of a label, and that
    of their mean embedding; the plain name is the mean over labels. {} where no label has two.
    """
    rows: dict[str, dict[str, float]] = {}
    for y_N, (name, texts) in zip(y_NC.T, way.prompts.positive.items(), strict=True):
        auroc_M = np.array([of.auroc for of in of_prompts if of.label == name])
        if len(texts) < 2 or np.isnan(auroc_M).any():
            continue
        score_N = found.together(texts, "mean_embedding")
        if way.protocol == "chexzero":
            score_N = score_N - found.together(way.prompts.negative[name], "mean_embedding")
        rows[name] = {
            "min": float(auroc_M.min()),
            "max": float(auroc_M.max()),
            "sd": float(auroc_M.std()),
            "mean_embedding": metrics.auroc(y_N, score_N),
        }
    kinds = list(next(iter(rows.values()), {}))
    means = {kind: float(np.mean([row[kind] for row in rows.values()])) for kind in kinds}
    return means | {f"{kind}/{name}": rows[name][kind] for kind in kinds for name in rows}
