"""`vilmedic-ssl preview`: what training will see, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment.data import dataset_of
from vilmedic_ssl.experiment.outputs import output_place, write_picture
from vilmedic_ssl.experiment.settings import check, typed
from vilmedic_ssl.experiment.texts import settle_flips, texts_for
from vilmedic_ssl.schema import plain

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from vilmedic_ssl.data.datasets.base import MedicalDataset
    from vilmedic_ssl.data.images import Images

DEFAULT = "preview.png"
SAMPLES = 5  # of each image, as the first so many epochs will draw them
CELL, LOCAL, LINE, GAP = 112, 56, 18, 14  # side of a view, of a local one; title; space: pixels
PAPER, INK = "white", "black"


def preview(
    config: Mapping[str, Any],
    *,
    images: int = 6,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw images of the training split beside the views that the first epochs draw of them, as
    they were before normalisation; returns the file.

    Args:
        out: None = preview.png, or the next number that is free.
        overwrite: replace something else at `out`.

    Raises:
        UserError: no pictures in this data; nowhere to write, or something else stands there.
    """
    file = Path(out or DEFAULT)
    if file.suffix.lower() != ".png":
        raise UserError(f"--out {file}: write the name of a .png file")
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: there is no folder {file.parent}; make it, or name another")
    if images < 1:
        raise UserError(f"--images {images}: write 1 or more")
    from vilmedic_ssl.data.advice import advise_on

    node = check(plain(config))
    sources = ["preview", node["dataset"], node["split_file"], node["seed"], images]
    file, mark = output_place(out, DEFAULT, sources, overwrite=overwrite)
    experiment = typed(node)
    texts = texts_for(node)
    if texts is not None:
        settle_flips(node)
    dataset = dataset_of(experiment, node, "train", augment=True, texts=texts)
    if getattr(dataset, "files", None) is None:
        raise UserError(f"dataset.proto: {node['dataset']['proto']} holds no images to preview")
    for sentence in advise_on(dataset):
        console.warn(sentence)
    count = min(images, len(dataset))
    chosen = [i * len(dataset) // count for i in range(count)]  # from all of it
    drawing = sheet([row_of(dataset, index, experiment.seed) for index in chosen])
    write_picture(drawing, file, mark)
    return file


def row_of(dataset: MedicalDataset, index: int, seed: int) -> dict[str, Any]:
    """One image: its `name`, `original` picture, and `samples`, each with `images` and `local`
    views; all of them (C, H, W) in [0, 1].
    """
    from vilmedic_ssl.data.loader import sample_seed

    files: Images = dataset.files  # type: ignore[attr-defined]
    drawn = [dataset.item(index, sample_seed(seed, e + 1, index)) for e in range(SAMPLES)]

    def shown(views_VCHW: Tensor | None) -> list[Tensor]:
        if views_VCHW is None:
            return []
        pipeline = files.pipeline
        return list((views_VCHW * pipeline.std + pipeline.mean).clamp(0, 1))

    samples = [{key: shown(sample.get(key)) for key in ("images", "local")} for sample in drawn]
    return {"name": dataset.ids[index], "original": dataset.picture(index), "samples": samples}


def sheet(rows: list[dict[str, Any]]) -> Image:
    """The rows below each other, with their names."""
    from PIL import Image, ImageDraw

    first = rows[0]["samples"][0]
    views, local = len(first["images"]), len(first["local"])
    across = max(views, min(local, 2)) * CELL  # width of a sample
    beside = across // LOCAL  # local views in a line
    tall = LINE + CELL + -(-local // beside) * LOCAL + GAP
    width = GAP + CELL + SAMPLES * (GAP + across) + GAP
    page = Image.new("RGB", (width, LINE + GAP + tall * len(rows)), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, 6), "evaluation", fill=INK)
    lefts = [GAP + CELL + GAP + k * (across + GAP) for k in range(SAMPLES)]
    for k, left in enumerate(lefts, start=1):
        pen.text((left, 6), f"epoch {k}", fill=INK)
    for number, row in enumerate(rows):
        top = LINE + GAP + number * tall
        pen.text((GAP, top), shortened(row["name"], width - 2 * GAP, pen), fill=INK)
        top += LINE
        page.paste(tile(row["original"], CELL), (GAP, top))
        for left, sample in zip(lefts, row["samples"], strict=True):
            for k, view in enumerate(sample["images"]):
                page.paste(tile(view, CELL), (left + k * CELL, top))
            for k, view in enumerate(sample["local"]):
                at = (left + k % beside * LOCAL, top + CELL + k // beside * LOCAL)
                page.paste(tile(view, LOCAL), at)
    return page


def tile(image_CHW: Tensor, side: int) -> Image:
    """A picture fitted into a square with a thin margin."""
    from PIL import Image, ImageOps

    levels: np.ndarray = image_CHW.mul(255).round().byte().expand(3, -1, -1).numpy()
    picture = Image.fromarray(levels.transpose(1, 2, 0).copy())
    fitted = ImageOps.pad(picture, (side - 2, side - 2), color=PAPER)
    return ImageOps.expand(fitted, 1, fill=PAPER)


def shortened(text: str, width: int, pen: Any) -> str:
    """The end of a text, which names most, as far as there is room."""
    if pen.textlength(text) <= width:
        return text
    while text and pen.textlength(f"... {text}") > width:
        text = text[1:]
    return f"... {text}"
