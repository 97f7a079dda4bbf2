"""Images and reports that find each other: exact pairs, by class, or ConVIRT's published sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from vilmedic_ssl.console import warn
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._compare import write_table
from vilmedic_ssl.post_processing._pairs import Reference, pairs_table
from vilmedic_ssl.post_processing._pairs_by_class import by_class_table
from vilmedic_ssl.post_processing._prompts import matched, read_prompts
from vilmedic_ssl.post_processing._shared import Features, Value, labels_of
from vilmedic_ssl.registry import proto
from vilmedic_ssl.settle import AsText

By = Literal["pairs", "classes", "files"]
NAMES: dict[By, str] = {
    "pairs": "retrieval",
    "classes": "retrieval_classes",
    "files": "retrieval_files",
}
USUAL: dict[By, list[int]] = {
    "pairs": [1, 5, 10],
    "classes": [5, 10, 100],  # GLoRIA, Huang et al. 2021, table 1
    "files": [5, 10, 50, 100],  # ConVIRT, Zhang et al. 2020, table 2
}


@proto
def retrieval(
    features: Features,
    out: Path,
    *,
    by: By = "pairs",
    ks: list[int] | None = None,
    prompts: str | Annotated[dict, AsText()] | None = None,
    files: str | None = None,
    root: str | None = None,
    references: tuple[Reference, ...] = ("random_init",),
    draws: int = 1000,
) -> Iterator[tuple[str, Value]]:
    """Search every split but train, and say how often the right thing is among the first k.

    Reports that read alike, as the model reads them, are one candidate. Of several checkpoints the
    best one searches.

    Args:
        by: pairs = an image and its own report, both ways (R@k, median rank); classes = images,
            reports and prompts look for images of the same class (P@k); files = ConVIRT's CheXpert
            8x200 image and text queries (P@k).
        ks: the numbers k; null = 1, 5, 10 for pairs, 5, 10, 100 for classes, 5, 10, 50, 100 for
            files.
        prompts: for classes: a prompt manifest (docs/paired-scores.md) whose sentences ask too.
        files: for files: the folder with image-retrieval/ and text-retrieval/.
        root: for files: the folder that holds CheXpert-v1.0-small.
        references: encoders scored in the same way beside it: random_init.
        draws: bootstrap draws of the queries' patients for the 95 % intervals; below 20 there are
            none. Prompts and text queries are no patients' and have no interval.

    Yields:
        "<split>/retrieval/<way>/R@k" and the like, as docs/paired-scores.md lists them, chance and
        ceiling beside them; all numbers as JSON.

    Raises:
        UserError: the model reads no text; no labels for classes; files that are missing; a key
            that `by` does not take.
    """
    features = features.of_best()
    _refuse(by, ks, prompts, files, root)
    ks = ks or USUAL[by]
    splits = [split for split in features.splits if split != "train"]
    if not splits and by != "files":
        raise UserError("retrieval: only train is asked for; write ensemblor.splits: [test]")
    table: dict[str, Value] = {}
    if by == "files":
        from vilmedic_ssl.post_processing._pairs_files import files_table

        table = files_table(
            features, Path(str(files)), Path(str(root)), references, ks, draws=draws
        )
    asked = None if prompts is None else read_prompts(prompts, "retrieval")
    for split in splits if by != "files" else ():
        if by == "pairs":
            table |= pairs_table(features, split, references, ks, draws=draws)
            continue
        part = features.get(split)
        labels_of(part, "retrieval")
        if asked is not None:
            asked = matched(asked, part.label_names, None, "retrieval")
        table |= by_class_table(features, split, references, ks, asked, draws=draws)
    if not table:
        warn("retrieval: no k is small enough for these splits, so there are no numbers")
    yield from table.items()
    path = out / f"{NAMES[by]}_{features.tag}.json"
    yield f"{NAMES[by]}: every number with its interval", write_table(table, path)


def _refuse(by: By, ks: list[int] | None, prompts: Any, files: Any, root: Any) -> None:
    """Raises:
    UserError: a key that `by` does not take, or one that is missing.
    """
    if prompts is not None and by != "classes":
        raise UserError("retrieval.prompts: only by: classes takes prompts; take the key out")
    if by != "files" and (files or root):
        raise UserError("retrieval.files, root: write by: files with them, or take them out")
    if by == "files" and not (files and root):
        raise UserError(
            "retrieval: by: files needs files: DIR with image-retrieval/ and text-retrieval/, and "
            "root: DIR with CheXpert-v1.0-small/"
        )
    if ks is not None and (not ks or min(ks) < 1):
        raise UserError(f"retrieval.ks: {ks}; write numbers from 1, for example [1, 5, 10]")
