"""ConVIRT's CheXpert 8x200 retrieval sets, read from their published files (Zhang et al. 2020;
github.com/yuhaozhang/convirt: image-retrieval/ and text-retrieval/, each candidate.csv, query.csv).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vilmedic_ssl.console import progress
from vilmedic_ssl.data.images import ImageFiles, Images
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import unit_rows
from vilmedic_ssl.post_processing._pairs import Reference, Source
from vilmedic_ssl.post_processing._pairs_by_class import Queries, precision_table
from vilmedic_ssl.post_processing._shared import Features, Value

WHERE = "8x200/retrieval_files"
BATCH = 32


def files_table(
    features: Features,
    folder: Path,
    root: Path,
    references: Sequence[Reference],
    ks: Sequence[int],
    *,
    draws: int,
) -> dict[str, Value]:
    """P@k of image and of text queries: a candidate is right when its column of the query's
    variable is 1. Cosines of the vectors behind the projections.

    Raises:
        UserError: a file or image is missing, or not laid out as published.
    """
    from vilmedic_ssl.executors.pairs import reader_of

    candidates = read_rows(folder / "image-retrieval" / "candidate.csv", ["Path"])
    asked = read_rows(folder / "image-retrieval" / "query.csv", ["Variable", "Path"])
    said = read_rows(folder / "text-retrieval" / "query.csv", ["Variable", "Text"])
    names = sorted({row["Variable"] for row in [*asked, *said]})
    missing = [name for name in names if name not in candidates[0]]
    if missing:
        raise UserError(f"{folder}: candidate.csv has no column {', '.join(map(repr, missing))}")
    one_MC = np.array([[_is_one(row[name]) for name in names] for row in candidates])
    paths = [find_image(root, row["Path"]) for row in [*candidates, *asked]]
    sources: list[Source] = ["model", *references]
    images = {s: unit_rows(rows_of_files(features, s, paths)) for s in sources}
    pool = {s: x[: len(candidates)] for s, x in images.items()}
    texts = {
        s: unit_rows(
            reader_of(features, "retrieval", s).embed([row["Text"] for row in said])["linguistic"]
        )
        for s in sources
    }
    of_queries = {s: x[len(candidates) :] for s, x in images.items()}
    patient_Q = np.array([_patient(row["Path"]) for row in asked])
    kinds = (("image_to_image", asked, of_queries, patient_Q), ("text_to_image", said, texts, None))
    table: dict[str, Value] = {}
    for way, rows, vectors, groups in kinds:
        c_Q = np.array([names.index(row["Variable"]) for row in rows])
        right_QM = one_MC.T[c_Q]
        cosines = {s: vectors[s] @ pool[s].T for s in sources}
        queries = Queries(way, c_Q, right_QM, np.ones_like(right_QM), groups, cosines)
        table |= precision_table(WHERE, queries, names, ks, draws=draws, seed=features.seed)
    return table


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV.

    Raises:
        UserError: no such file, no rows, or a column is missing.
    """
    if not path.is_file():
        raise UserError(
            f"retrieval.files: there is no {path}; fetch github.com/yuhaozhang/convirt and write "
            "its folder, which holds image-retrieval/ and text-retrieval/"
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise UserError(f"{path}: expected rows with the columns {', '.join(columns)}")
    return rows


def find_image(root: Path, name: str) -> Path:
    """A path of the lists below `root`, which is the folder with CheXpert-v1.0-small or that folder
    itself; it may not lead out of it.

    Raises:
        UserError: there is no such image.
    """
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"retrieval.files: {name!r} leads out of retrieval.root")
    for candidate in (root / relative, root.joinpath(*relative.parts[1:])):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"retrieval.root: there is no {root / relative}; write the folder that holds "
        f"{relative.parts[0]}"
    )


def rows_of_files(features: Features, source: Source, paths: Sequence[Path]) -> np.ndarray:
    """(N, P) vectors behind the projection of image files, read as the data's images are.

    Raises:
        UserError: the dataset does not say how an image file is read, or one is unreadable.
    """
    split = features.splits[0]
    own = getattr(features.dataset(split), "files", None)
    if not isinstance(own, Images):
        raise UserError("retrieval.files: this dataset does not say how an image file is read")
    files = ImageFiles(paths, replace(own.transform, channels=own.mode), augment=False)
    device = features.inputs(split, [0]).device
    untrained = features.untrained() if source == "random_init" else None
    made = []
    for begin in progress(range(0, len(paths), BATCH), desc=f"8x200, {source}", unit="batch"):
        some = range(begin, min(begin + BATCH, len(paths)))
        images = torch.stack([files.view(i, 0) for i in some]).to(device)
        if untrained is None:
            made.append(features.embed(images)["visual"])
        else:
            with torch.no_grad():
                made.append(untrained.encode(images)["visual"].float().cpu())
    return torch.cat(made).numpy()


def _is_one(cell: str) -> bool:
    """CheXpert writes 1.0, 0.0, -1.0 or nothing."""
    try:
        return float(cell) == 1
    except ValueError:
        return False


def _patient(path: str) -> str:
    """patient00001 of CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg."""
    return next((part for part in Path(path).parts if part.startswith("patient")), path)
