"""The numbers of a zero-shot protocol on one split."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics import Evidence, Support
from vilmedic_ssl.post_processing._compare import Measured, side_by_side
from vilmedic_ssl.post_processing._numbers import Left, warn_of
from vilmedic_ssl.post_processing._reliability import bins_for
from vilmedic_ssl.post_processing._shared import SplitFeatures, Value, labels_of
from vilmedic_ssl.post_processing._zero_shot import (
    OfPrompt,
    Similarities,
    Source,
    Way,
    margins,
    one_by_one,
    scores,
    spread,
)


def chosen_labels(part: SplitFeatures, keep: Sequence[str], plugin: str) -> np.ndarray:
    """Labels of the classes or findings kept: (N,) numbered as `keep`, others -1, or (N, C).

    Raises:
        UserError: the split has no labels, or no image with one of them.
    """
    labels, place = labels_of(part, plugin), [part.label_names.index(name) for name in keep]
    if labels.ndim == 2:
        y = labels[:, place]
    else:
        y = np.full(len(labels), -1)
        for c, old in enumerate(place):
            y[labels == old] = c
        other = int(((labels >= 0) & (y < 0)).sum())
        if other:
            warn(f"{plugin}: {other} images of {part.name} are of other classes; left out")
    if not metrics.labelled(y).any():
        raise UserError(f"{plugin}: no image of {part.name} is labelled for {', '.join(keep)}")
    return y


def hot(y: np.ndarray, classes: int) -> np.ndarray:
    """(N, C) in {0, 1, nan}, of classes or findings."""
    return metrics.one_hot(y, classes) if y.ndim == 1 else y


def path_of(split: str, plugin: str, source: Source, name: str) -> str:
    """A result's name; references stand between the plug-in and the metric."""
    return "/".join([split, plugin, *([] if source == "model" else [source]), name])


def split_table(
    part: SplitFeatures,
    way: Way,
    found: dict[Source, Similarities],
    temperature: dict[Source, float],
    *,
    draws: int,
    seed: int,
) -> tuple[dict[str, Value], list[OfPrompt]]:
    """Every number of one split, and the model's AUROC by prompt."""
    kept, where = list(way.prompts.positive), f"{part.name}/{way.name}"
    references: list[str] = [source for source in found if source != "model"]
    keys: dict[str, Any] = {"groups": part.patients, "draws": draws, "seed": seed}
    y = chosen_labels(part, kept, way.name)
    hot_NC = hot(y, len(kept))
    score = {source: scores(sim, way, temperature[source]) for source, sim in found.items()}
    measure = Measured.on(y, score["model"], kept, part.patients)
    names, support = measure.names, measure.support
    if y.ndim == 1:
        evidence = Evidence(y, len(kept), part.patients)
        f1 = evidence.of_mean(measure.occurring_C, ranking=False)
        names, support = [*names, "f1"], support.followed_by(f1)

    def numbers(y: np.ndarray, score_NC: np.ndarray) -> np.ndarray:
        values = measure(y, score_NC)
        return values if y.ndim == 2 else np.append(values, _macro_f1(y, score_NC))

    table, drawn = side_by_side(
        where, names, numbers, [y], list(score.values()), references, support=support, **keys
    )
    left = Left.of(part, y, score["model"], names=kept)
    means = ["auroc", *["auprc"] * (y.ndim == 2)]
    table |= left.notes(path_of(part.name, way.name, s, mean) for s in found for mean in means)
    warn_of(way.name, part.name, left, drawn)
    if any(way.prompts.negative.values()):
        table |= _negations(where, part, way, found, hot_NC, references, keys)
    of_prompts = one_by_one(found["model"], way, hot_NC)
    for name, value in spread(found["model"], way, hot_NC, of_prompts).items():
        table[f"{where}/prompt_spread/{name}"] = value
    if way.protocol == "chexzero":
        for source, score_NC in score.items():
            path = path_of(part.name, way.name, source, "ece")
            table[path] = _calibration_error(hot_NC, score_NC)
    _warn_of_opposites(table, where)
    return table, of_prompts


def _macro_f1(y: np.ndarray, score_NC: np.ndarray) -> float:
    count_CC = metrics.confusion(y, score_NC.argmax(axis=1), classes=score_NC.shape[1])
    return metrics.macro(metrics.per_class(count_CC).f1)


def _negations(
    where: str,
    part: SplitFeatures,
    way: Way,
    found: dict[Source, Similarities],
    hot_NC: np.ndarray,
    references: Sequence[str],
    keys: dict[str, Any],
) -> dict[str, Value]:
    """Accuracy of choosing between "X" and "no X", its two halves, and accuracy per label."""
    kept = list(way.prompts.positive)
    sides = [margins(sim, way) for sim in found.values()]
    names = [f"negation/{kind}" for kind in ("accuracy", "present", "absent")]
    names += [f"negation/accuracy/{name}" for name in kept]
    present_C, absent_C = (hot_NC == 1).any(axis=0), (hot_NC == 0).any(axis=0)
    counted_3C = np.array([present_C & absent_C, present_C, absent_C])

    def numbers(y_NC: np.ndarray, margin_NC: np.ndarray) -> np.ndarray:
        pairs = zip(y_NC.T, margin_NC.T, strict=True)
        half_C2 = np.array([metrics.right_side(y, margin, 0 * margin) for y, margin in pairs])
        every = (half_C2.mean(axis=1), *half_C2.T)
        means = [metrics.mean_of(*both) for both in zip(every, counted_3C, strict=True)]
        return np.array([*means, *every[0]])

    evidence = Evidence(hot_NC, len(kept), part.patients)
    halves = [
        Support.of(list((hot_NC == kind).T[counted_C]), part.patients)
        for kind, counted_C in ((1, present_C), (0, absent_C))
    ]
    single = [evidence.of_ranking(c) for c in range(len(kept))]
    support = Support.joined([evidence.of_mean(counted_3C[0]), *halves, *single])
    return side_by_side(
        where, names, numbers, [hot_NC], sides, references, support=support, **keys
    )[0]


def _calibration_error(y_NC: np.ndarray, p_NC: np.ndarray) -> float:
    """Mean over labels of the calibration error of "present", where it is known."""
    known = np.flatnonzero(~np.isnan(y_NC).all(axis=0))
    each = [metrics.ece(y_NC[:, c], p_NC[:, c], bins=bins_for(y_NC[:, c], None)) for c in known]
    return metrics.macro(np.array(each))


def _warn_of_opposites(table: dict[str, Value], where: str) -> None:
    """Of labels whose score points the wrong way."""
    for name, value in table.items():
        auroc = value[0] if isinstance(value, tuple) else value
        label = name.removeprefix(f"{where}/auroc/")
        if label != name and isinstance(auroc, float) and auroc < 0.5:
            warn(
                f"{where}: {label} has an AUROC of {auroc:.3f}, below chance: images with it are "
                "less similar to its prompts than images without it"
            )


def write_prompts(rows: Sequence[tuple[str, OfPrompt]], path: Path) -> Path:
    """split, label, prompt, the negative beside it, AUROC (empty where undefined)."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write = csv.writer(file).writerow
        write(["split", "label", "prompt", "against", "auroc"])
        for split, of in rows:
            number = "" if np.isnan(of.auroc) else f"{of.auroc:.6f}"
            write([split, of.label, of.prompt, of.against, number])
    return path
