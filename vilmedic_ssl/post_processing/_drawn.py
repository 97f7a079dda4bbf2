"""Images drawn for reports: which reports, how they are drawn, ranked and written.

R = reports, C = candidates of one, B = images of a batch.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._copies import CopyCheck, Nearest
from vilmedic_ssl.post_processing._shared import Features

if TYPE_CHECKING:
    from torch import Tensor

SYNTHETIC = "synthetic: drawn by a model from a text, shows no patient"
ROUNDS = 4  # draws of a report until enough are no copies
ACROSS = 8  # images of a report in the picture
WRAP, LINES = 30, 9  # letters of a line beside pictures, and lines


@dataclass
class Request:
    """A text to draw from, and what became of it.

    Attributes:
        row: of the split whose report it is; None for a text of the user.
        kept: images (C, H, W) in [0, 1], their nearest training images, and how well each fits the
            text, by the model that ranks; copies: how many were withheld.
    """

    text: str
    name: str
    row: int | None = None
    kept: list[tuple[Tensor, Nearest, float | None]] = field(default_factory=list)
    copies: int = 0
    drawn: int = 0


def chosen_requests(
    features: Features, split: str, reports: int, ids: Sequence[str], texts: Sequence[str]
) -> list[Request]:
    """Texts as given, films by name, or so many different reports by chance, always the same ones.

    Raises:
        UserError: no such film, or one without a report.
    """
    if texts:
        return [Request(text, f"text {i + 1}") for i, text in enumerate(texts)]
    dataset = features.dataset(split)
    said = list(dataset.said or [])
    if ids:
        known = {name: row for row, name in enumerate(dataset.ids)}
        missing = [name for name in ids if name not in known or not said[known[name]]]
        if missing:
            raise UserError(
                f"generate_images.ids: {split} has no film {missing[0]!r} with a report; its films "
                f"are called like {dataset.ids[0]!r}"
            )
        return [Request(said[known[name]], name, known[name]) for name in ids]
    first = {text: row for row, text in reversed(list(enumerate(said))) if text}
    if not first:
        raise UserError(
            f"generate_images: no film of {split} has a report; write texts, or a split"
        )
    rows = np.random.default_rng(features.seed).permutation(sorted(first.values()))[:reports]
    return [Request(said[row], dataset.ids[row], int(row)) for row in rows]


class Artist:
    """Draws for requests.

    Args:
        begin: share of the codes of a report's own film that its images begin with.
        rank: how well an image (C, H, W) fits a text; None = all are equal.
        check: tells copies; withhold: they are not kept.
    """

    def __init__(
        self,
        features: Features,
        split: str,
        how: Any,
        *,
        begin: float,
        rank: Any,
        check: CopyCheck,
        withhold: bool,
        batch_size: int,
    ):
        self.features, self.split, self.how, self.begin = features, split, how, begin
        self.rank, self.check, self.withhold, self.size = rank, check, withhold, batch_size
        self.model: Any = features.models[0]
        self.texts: Any = features.dataset(split).texts
        self.device = next(self.model.parameters()).device

    def draw(self, requests: Sequence[Request], wanted: int, candidates: int) -> None:
        """Fill the requests with `wanted` images each, the best of so many candidates."""
        for round_ in range(ROUNDS):
            short = [r for r in requests if len(r.kept) < (candidates if round_ == 0 else wanted)]
            if not short:
                break
            self._round(short, candidates)
        for request in requests:
            request.kept.sort(key=lambda kept: -(kept[2] or 0.0))
            del request.kept[wanted:]
            if len(request.kept) < wanted:
                console.warn(
                    f"generate_images: {request.name}: of {request.drawn} drawn images only "
                    f"{len(request.kept)} are no copies of training films"
                )

    def _round(self, requests: Sequence[Request], candidates: int) -> None:
        """`candidates` more images of each request."""
        queue = [request for request in requests for _ in range(candidates)]
        batches = [queue[i : i + self.size] for i in range(0, len(queue), self.size)]
        whole = self.model.dalle.image_seq_len
        first = min(round(self.begin * whole), whole - 1)
        codes = whole - first
        bar = console.Bar(len(batches) * codes, desc="drawing", unit="code")
        for batch in batches:
            tokens = {k: v.to(self.device) for k, v in self._tokens(batch).items()}
            primer = self._primer(batch, first)
            images, drawn = self.model.generate(
                tokens["input_ids"],
                tokens["attention_mask"],
                self.how,
                first=primer,
                tick=bar.advance,
            )
            near = self.check.look(images, drawn.cpu().numpy())
            for request, image, nearest in zip(batch, images.cpu(), near, strict=True):
                request.drawn += 1
                if nearest.copy:
                    request.copies += 1
                if not (nearest.copy and self.withhold):
                    fits = None if self.rank is None else self.rank(image, request.text)
                    request.kept.append((image, nearest, fits))
        bar.close()

    def _tokens(self, batch: Sequence[Request]) -> dict[str, Tensor]:
        said = [self.texts.prepare(request.text) or request.text for request in batch]
        return self.texts.batch(said)

    def _primer(self, batch: Sequence[Request], first: int) -> Tensor | None:
        if not first:
            return None
        rows = [request.row for request in batch if request.row is not None]
        if len(rows) < len(batch):
            raise UserError(
                "generate_images.begin: texts of your own have no film to begin with; leave begin "
                "out, or name films by ids"
            )
        return self.model.codes(self.features.inputs(self.split, rows))[:, :first]


def ranker(features: Features, path: str) -> Any:
    """How well an image fits a text, by a trained ConVIRT, CLIP, SigLIP or GLoRIA.

    Raises:
        UserError: no such model, or one that compares no images with texts.
    """
    import torch

    model: Any
    model, processor = features.load(path)
    if not hasattr(model, "similarity") or not hasattr(processor, "texts"):
        raise UserError(
            f"generate_images.rerank: {path} is a {type(model).__name__}, which compares no images "
            "with texts; name the run folder of a ConVIRT, CLIP, SigLIP or GLoRIA"
        )

    @torch.no_grad()
    def fits(image_CHW: Tensor, text: str) -> float:
        view = processor.view_of(image_CHW)
        tokens = processor.inference(seq=text)
        return float(model.similarity(view[None], **tokens)[0, 0])

    return fits


def new_folder(out: Path, name: str) -> Path:
    """`<name>_001` below `out`, or the next number that is free."""
    number = 1
    while (out / f"{name}_{number:03d}").exists():
        number += 1
    folder = out / f"{name}_{number:03d}"
    folder.mkdir(parents=True)
    return folder


def write_images(requests: Sequence[Request], folder: Path, told: dict[str, Any]) -> Path:
    """Per request a folder with its text and images; `generated.json` says what each is."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    rows = []
    for i, request in enumerate(requests):
        home = folder / f"{i:02d}"
        home.mkdir()
        (home / "report.txt").write_text(f"{request.text}\n", encoding="utf-8")
        note = PngInfo()
        note.add_text("Description", SYNTHETIC)
        note.add_text("Title", request.text, zip=True)
        for k, (image, nearest, fits) in enumerate(request.kept):
            pixels = as_bytes(image)
            Image.fromarray(pixels).save(home / f"{k}.png", pnginfo=note)
            near = asdict(nearest)
            rows.append({"file": f"{i:02d}/{k}.png", "fits": fits, "nearest": near})
        told.setdefault("reports", []).append(
            {
                "folder": f"{i:02d}",
                "name": request.name,
                "text": request.text,
                "drawn": request.drawn,
                "copies": request.copies,
            }
        )
    path = folder / "generated.json"
    text = json.dumps({"note": SYNTHETIC, **told, "images": rows}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def as_bytes(image_CHW: Tensor) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3)."""
    pixels = (image_CHW * 255).round().byte().numpy()
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def draw_grid(requests: Sequence[Request], path: Path, real: Sequence[np.ndarray | None]) -> None:
    """A row per request: its text, the film it belongs to, the first images drawn."""
    from matplotlib.figure import Figure

    most = min(ACROSS, max(1, *(len(request.kept) for request in requests)))
    own = any(film is not None for film in real)
    columns = 1 + own + most
    figure = Figure(
        figsize=(1.3 * columns + 1.0, 1.4 * len(requests) + 0.3),
        layout="constrained",
        facecolor="white",
    )
    ratios = [1.7] + [1.0] * (columns - 1)
    plots = figure.subplots(len(requests), columns, squeeze=False, width_ratios=ratios)
    for plot in plots.flat:
        plot.set_axis_off()
    for row, (request, film) in enumerate(zip(requests, real, strict=True)):
        words = textwrap.wrap(request.text, WRAP)
        told = "\n".join(words[:LINES] + ["..."] * (len(words) > LINES))
        at = {"va": "center", "transform": plots[row, 0].transAxes}
        plots[row, 0].text(0, 0.5, told, fontsize=7, **at)
        if film is not None:
            plots[row, 1].imshow(film, cmap="gray", vmin=0, vmax=255)
        for k, (image, _, _) in enumerate(request.kept[:ACROSS]):
            plots[row, 1 + own + k].imshow(as_bytes(image), cmap="gray", vmin=0, vmax=255)
    plots[0, 0].set_title("report", fontsize=8, loc="left")
    if own:
        plots[0, 1].set_title("its film", fontsize=8)
    plots[0, 1 + own].set_title("drawn", fontsize=8)
    figure.savefig(path, dpi=150)
