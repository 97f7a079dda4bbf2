"""Reports that a model writes to the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto

SHOWN = 3  # completions in the picture


@proto
def complete_reports(
    features: Features,
    out: Path,
    *,
    images: int = 4,
    words: int = 2,
    begin: str | None = None,
    candidates: int = 16,
    filter_thres: float = 0.9,
    top_p: float = 1.0,
    temperature: float = 1.0,
    split: str | None = None,
    seed: int | None = None,
) -> Iterator[tuple[str, Value]]:
    """Write the reports of images to the end with a DALLE: the text goes on from its beginning
    alone, since in DALLE the image comes last; of several endings the image then chooses by log
    p(image | text). A picture shows the likeliest beside the film and its own report.

    Nothing a model writes is a report; these files show what it has learned.

    Files: `complete_reports_<tag>_<split>.png` and `.json`.

    Args:
        images: of the split, at random, always the same ones.
        words: that the beginning has, from the image's own report; 0 = none.
        begin: a beginning of your own for all of them.
        candidates: endings per image.
        filter_thres, top_p, temperature: as in generate_images.
        split: null = the first of ensemblor.splits that is not train.
        seed: of the draws; null = that of the run.

    Raises:
        UserError: the model writes no texts; the beginning is as long as a text may be.
    """
    import json

    import torch

    from vilmedic_ssl.errors import ConfigError, UserError
    from vilmedic_ssl.nets.dalle_sampling import Sampling

    features = features.of_best()
    model: Any = features.models[0]
    if not hasattr(model, "complete"):
        raise UserError(
            f"complete_reports: {type(model).__name__} writes no texts; take it out of "
            "ensemblor.post_processing, or train a DALLE"
        )
    if images < 1 or candidates < 1 or words < 0:
        raise ConfigError("complete_reports: write images and candidates from 1, words from 0")
    how = Sampling(filter_thres=filter_thres, top_p=top_p, temperature=temperature)
    split = split or next((s for s in features.splits if s != "train"), features.splits[0])
    said = list(features.dataset(split).said or [])
    texts: Any = features.dataset(split).texts
    rows = [row for row in np.random.default_rng(features.seed).permutation(len(said)) if said[row]]
    if not rows:
        raise UserError(f"complete_reports: no film of {split} has a report; write another split")
    pages = []
    with torch.random.fork_rng():
        torch.manual_seed(features.seed if seed is None else seed)
        for row in map(int, rows[:images]):
            start = " ".join(said[row].split()[:words]) if begin is None else begin
            start = texts.prepare(start) or start
            endings = _endings(features, split, model, row, start, how, candidates)
            pages.append({"image": features.dataset(split).ids[row], "row": row, "begin": start})
            pages[-1] |= {"own": said[row], "endings": endings}
    stem = f"complete_reports_{features.tag}_{split}"
    note = "written by a model; no report of a patient"
    path = out / f"{stem}.json"
    path.write_text(json.dumps({"note": note, "images": pages}, indent=1) + "\n", encoding="utf-8")
    _draw(features, split, pages, out / f"{stem}.png")
    yield "beginnings, and the endings that the image finds likeliest", out / f"{stem}.png"
    yield "all endings with their likelihoods", path


def _endings(
    features: Features, split: str, model: Any, row: int, start: str, how: Any, candidates: int
) -> list[dict[str, Any]]:
    """Different texts with log p(image | text), the likeliest first."""
    import torch

    from vilmedic_ssl.errors import UserError
    from vilmedic_ssl.post_processing.report_likelihood import likelihoods

    texts: Any = features.dataset(split).texts
    tokenizer = texts.tokenizer
    line = tokenizer(start).input_ids
    ends = line[-1] in tokenizer.all_special_ids
    end = line[-1] if ends else tokenizer.eos_token_id
    ids = torch.tensor([line[:-1] if ends else line])
    if ids.shape[1] >= model.dalle.text_seq_len:
        raise UserError(
            f"complete_reports: the beginning {start!r} fills the {model.dalle.text_seq_len} "
            "tokens of a text; write fewer words"
        )
    device = next(model.parameters()).device
    begin, never = ids.repeat(candidates, 1).to(device), tokenizer.unk_token_id
    drawn = model.complete(begin, how, end=end, never=never)
    found = sorted({tokenizer.decode(line, skip_special_tokens=True) for line in drawn.tolist()})
    found = [text for text in found if text.strip()] or [start]
    text_C, image_C = likelihoods(features, split, model, row, found)
    order = np.argsort(-image_C)
    return [
        {
            "text": found[i],
            "log_p_text": float(text_C[i]),
            "log_p_image_given_text": float(image_C[i]),
        }
        for i in order
    ]


def _draw(features: Features, split: str, pages: list[dict[str, Any]], path: Path) -> None:
    import textwrap

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.9 * len(pages)), layout="constrained", facecolor="white")
    plots = figure.subplots(len(pages), 2, squeeze=False, width_ratios=[1, 3])
    for (film, words), page in zip(plots, pages, strict=True):
        film.set_axis_off()
        words.set_axis_off()
        film.imshow(features.images(split, [page["row"]])[0], cmap="gray", vmin=0, vmax=255)
        lines = [f"begins: {page['begin']}"]
        lines += [f"{i}. {e['text']}" for i, e in enumerate(page["endings"][:SHOWN], start=1)]
        lines += [f"its own: {page['own']}"]
        told = "\n".join("\n".join(textwrap.wrap(line, 75)[:3]) for line in lines)
        words.text(0, 0.5, told, fontsize=7.5, va="center", transform=words.transAxes)
    figure.savefig(path, dpi=150)
