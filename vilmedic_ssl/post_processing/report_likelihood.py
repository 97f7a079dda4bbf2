"""How likely a model that draws images from reports finds each report, given an image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto

if TYPE_CHECKING:
    from torch import Tensor

BY = {
    "report_likelihood": "log p(text) + log p(image | text)",
    "report_likelihood/image_given_text": "log p(image | text) alone",
    "report_likelihood/text_alone": "log p(text), which looks at no image",
}


@proto
def report_likelihood(
    features: Features,
    out: Path,
    *,
    images: int = 64,
    candidates: int = 10,
    splits: list[str] | None = None,
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """Choose among reports by their likelihood given an image: log p(text | image) is log p(text) +
    log p(image | text) up to what is the same for all texts (Bayes), and DALLE has both.

    Each image is shown with its own report and others of the split, all different as the model
    reads them. Of several checkpoints the best one is asked.

    File: `report_likelihood_<tag>.json`, every image with its candidates and their log
    probabilities in nats.

    Args:
        images: how many of a split, at random, always the same ones.
        candidates: reports per image, its own among them; all, where a split has not as many.
        splits: null = those of ensemblor.splits without train.
        draws: bootstrap draws of patients for the 95 % intervals.

    Yields:
        "<split>/report_likelihood/accuracy", how often the own report is the likeliest, its
        "chance", 1 / candidates; "image_given_text/accuracy" by log p(image | text) alone;
        "text_alone/accuracy" by log p(text), which knows nothing of the image.

    Raises:
        UserError: the model does not draw from texts; no two different reports.
    """
    import json

    from vilmedic_ssl import metrics
    from vilmedic_ssl.console import warn
    from vilmedic_ssl.errors import ConfigError, UserError
    from vilmedic_ssl.post_processing._numbers import numbered, warn_of_intervals

    features = features.of_best()
    model: Any = features.models[0]
    if not hasattr(model, "of_images"):
        raise UserError(
            f"report_likelihood: {type(model).__name__} gives no likelihoods of reports; take it "
            "out of ensemblor.post_processing, or train a DALLE"
        )
    if images < 1 or candidates < 2:
        raise ConfigError("report_likelihood: write images: 1 or more, candidates: 2 or more")
    told: dict[str, Any] = {}
    for split in splits or [split for split in features.splits if split != "train"]:
        read = _read(features, split)
        different = sorted(set(read.values()))
        if len(different) < 2:
            raise UserError(
                f"report_likelihood: to this model all reports of {split} are the same, or it has "
                f"none; take {split} out of ensemblor.splits"
            )
        among = min(candidates, len(different))
        if among < candidates:
            warn(
                f"report_likelihood: to this model {split} has {among} different reports, so its "
                f"films choose among {among}"
            )
        dice = np.random.default_rng(features.seed)
        rows = dice.permutation(sorted(read))[:images]
        found, told[split] = _scores(features, split, model, rows, read, among, dice)
        patients = features.dataset(split).patients
        groups = None if patients is None else [patients[row] for row in rows]
        text_NC, image_NC = found[..., 0], found[..., 1]
        for name, score_NC in zip(BY, (text_NC + image_NC, image_NC, text_NC), strict=True):
            right_N = (score_NC[:, 0] > score_NC[:, 1:].max(1)).astype(float)
            right = metrics.resample(
                np.mean, right_N, groups=groups, draws=draws, limits=metrics.UNIT
            )
            if name == next(iter(BY)):
                warn_of_intervals("report_likelihood", split, right)
            yield from numbered([f"{split}/{name}/accuracy"], right).items()
        yield f"{split}/report_likelihood/chance", 1 / among
    path = out / f"report_likelihood_{features.tag}.json"
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    yield "reports by their likelihood: every candidate", path


def _scores(
    features: Features,
    split: str,
    model: Any,
    rows: np.ndarray,
    read: dict[int, str],
    candidates: int,
    dice: np.random.Generator,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(N, candidates, 2): log p(text), log p(image | text), the own report first; and the same as
    a table.
    """
    from vilmedic_ssl.console import progress

    dataset, found, table = features.dataset(split), [], []
    different = sorted(set(read.values()))
    for row in progress(rows.tolist(), desc=f"{split}, likelihoods", unit="image"):
        own = read[row]
        others = [text for text in different if text != own]
        texts = [own, *dice.choice(others, candidates - 1, replace=False).tolist()]
        text_C, image_C = likelihoods(features, split, model, row, texts)
        found.append(np.stack([text_C, image_C], axis=1))
        told = zip(texts, text_C.tolist(), image_C.tolist(), strict=True)
        named = ("text", "log_p_text", "log_p_image_given_text")
        shown = [dict(zip(named, each, strict=True)) for each in told]
        table.append({"image": dataset.ids[row], "candidates": shown})
    return np.stack(found), table


def _read(features: Features, split: str) -> dict[int, str]:
    """The report of each row that has one; of those that are the same tokens to the model, one."""
    dataset = features.dataset(split)
    texts: Any = dataset.texts
    said = {row: text for row, text in enumerate(dataset.said or []) if text}
    if not said:
        return {}
    ids = texts.batch(list(said.values()))["input_ids"].tolist()
    first: dict[tuple[int, ...], str] = {}
    return {
        row: first.setdefault(tuple(line), text)
        for (row, text), line in zip(said.items(), ids, strict=True)
    }


def likelihoods(
    features: Features, split: str, model: Any, row: int, texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """log p(text) and log p(image | text) of prepared texts, for one image of a split, in nats."""
    reads: Any = features.dataset(split).texts
    images = features.inputs(split, [row])
    tokens = {k: v.to(images.device) for k, v in reads.batch(texts).items()}
    ids: Tensor = model.ids(tokens["input_ids"], tokens["attention_mask"])
    text_1C, image_1C = model.of_images(model.codes(images), ids)
    return text_1C[0].float().cpu().numpy(), image_1C[0].float().cpu().numpy()
