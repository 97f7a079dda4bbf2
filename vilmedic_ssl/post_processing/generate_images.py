"""Images drawn from reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto


@proto
def generate_images(
    features: Features,
    out: Path,
    *,
    num_images: int = 5,
    reports: int = 4,
    ids: list[str] = (),  # type: ignore[assignment]
    texts: list[str] = (),  # type: ignore[assignment]
    split: str | None = None,
    filter_thres: float = 0.9,
    top_p: float = 1.0,
    temperature: float = 1.0,
    cond_scale: float = 1.0,
    begin: float = 0.0,
    rerank: str | None = None,
    candidates: int | None = None,
    judge: str | None = None,
    copies: Literal["withhold", "mark"] = "withhold",
    batch_size: int = 32,
    seed: int | None = None,
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """Draw images from reports with a DALLE, and look whether one is a training image.

    An image is taken for a copy when a training image is closer to it, by its pixels or by its
    codes, than 99 % of the films of other patients (those of a held-out split) come to any training
    image; so 1 % of truly new ones are withheld. Of several checkpoints the best one draws.

    Files, in a folder of their own for each run, `generate_images_<tag>_<number>`: per report a
    folder with `report.txt` and the images, `generated.json` with what each is, `grid.png`. The
    images say of themselves that they are synthetic.

    Args:
        num_images: per report.
        reports: how many reports of the split, drawn at random, always the same ones.
        ids: the films whose reports are taken instead.
        texts: texts of your own instead.
        split: whose reports; null = the first of ensemblor.splits that is not train.
        filter_thres: share of all ids that is out of the question for a code; 1 = the likeliest.
        top_p: of the others, the likeliest that together have this probability.
        temperature: above 1 more varied, below 1 more of the likeliest.
        cond_scale: above 1 the text is followed more strongly (needs dalle.text_dropout in
            training).
        begin: share of the codes that are those of the report's own film, from the top; 0.4375 is
            dalle-pytorch's.
        rerank: run folder of a ConVIRT, CLIP, SigLIP or GLoRIA, which chooses the images that fit
            the text best.
        candidates: how many it chooses from, per report; null = four times num_images.
        judge: run folder of a Classifier for the labels of this data: does it find in the images
            what their reports' labels say?
        copies: withhold = draw another one instead; mark = keep it, and say so in generated.json.
        batch_size: images drawn at once.
        seed: of the draws; null = that of the run.
        draws: bootstrap draws of the reports' patients for the intervals of `judge`.

    Yields:
        "<split>/generate_images/copies" (for texts of your own "texts/..."), share of drawn images
        that were taken for copies; with
        `judge` "<split>/generate_images/judge/auroc" (mean over labels) and "named_first", the
        share of images whose likeliest label is one of their report's, with its chance level.

    Raises:
        UserError: the model draws nothing; no such report, split or run.
    """
    import torch

    from vilmedic_ssl.errors import ConfigError, UserError
    from vilmedic_ssl.nets.dalle_sampling import Sampling
    from vilmedic_ssl.post_processing import _drawn
    from vilmedic_ssl.post_processing._copies import CopyCheck
    from vilmedic_ssl.post_processing._judged import Judge

    features = features.of_best()
    model: Any = features.models[0]
    if not hasattr(model, "generate"):
        raise UserError(
            f"generate_images: {type(model).__name__} draws no images from texts; take it out of "
            "ensemblor.post_processing and leave ensemblor.generate_images out, or train a DALLE"
        )
    for name, value in (
        ("num_images", num_images),
        ("reports", reports),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ConfigError(f"generate_images.{name}: {value}; write 1 or more")
    if not 0 <= begin < 1:
        raise ConfigError(f"generate_images.begin: {begin}; write a share from 0 to below 1")
    if candidates is not None and (rerank is None or candidates < num_images):
        raise ConfigError(
            f"generate_images.candidates: {candidates}; needs rerank, and at least num_images"
        )
    how = Sampling(
        filter_thres=filter_thres, top_p=top_p, temperature=temperature, cond_scale=cond_scale
    )
    if cond_scale != 1 and not model.keys.text_dropout:
        raise ConfigError(
            f"generate_images.cond_scale: {cond_scale}, but this DALLE never saw a blank text; "
            "train one with model.dalle.text_dropout=0.1, or write 1"
        )
    split = split or next((s for s in features.splits if s != "train"), features.splits[0])
    requests = _drawn.chosen_requests(features, split, reports, ids, texts)
    if texts and (ids or judge):
        raise ConfigError(
            "generate_images: texts of your own need no ids, and have no labels to judge"
        )
    court = Judge(features, split, judge) if judge else None
    artist = _drawn.Artist(
        features,
        split,
        how,
        begin=begin,
        rank=_drawn.ranker(features, rerank) if rerank else None,
        check=CopyCheck(features, model),
        withhold=copies == "withhold",
        batch_size=batch_size,
    )
    many = (candidates or 4 * num_images) if rerank else num_images
    with torch.random.fork_rng():
        torch.manual_seed(features.seed if seed is None else seed)
        artist.draw(requests, num_images, many)
    folder = _drawn.new_folder(out, f"generate_images_{features.tag}")
    check = artist.check
    limits = {"held_out": check.held_out, "pixels": check.least, "codes": check.most}
    sampling = {**vars(how), "begin": begin, "rerank": rerank}
    path = _drawn.write_images(requests, folder, {"split": split, **sampling, "copy_if": limits})
    rows = [request.row for request in requests]
    real = [None if row is None else features.images(split, [row])[0] for row in rows]
    _drawn.draw_grid(requests, folder / "grid.png", real)
    drawn, withheld = (sum(getattr(r, name) for r in requests) for name in ("drawn", "copies"))
    yield f"{'texts' if texts else split}/generate_images/copies", withheld / drawn
    if court is not None:
        yield from court.scores(requests, draws)
    kept = sum(len(request.kept) for request in requests)
    caption = f"{kept} images from {len(requests)} reports of {split}; {withheld} of {drawn} drawn"
    yield f"{caption} are too close to a training film", folder / "grid.png"
    yield f"what each image is, and what comes closest to it; images in {folder.name}", path
