"""`elpv`: 2,624 pictures of solar cells with a defect probability (Deitsch et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.data.archive import read_members
from vilmedic_ssl.data.paths import safe_join
from vilmedic_ssl.data.recipes.elpv_twins import groups
from vilmedic_ssl.data.recipes.tables import counts, write_tables
from vilmedic_ssl.data.stratify import stratify
from vilmedic_ssl.errors import UserError

UNDER = "elpv_dataset/data/"
FRACTIONS = {"train": 0.60, "validate": 0.15, "test": 0.25}  # the authors test on 25 %
VERDICTS = {
    0: "functional",
    1: "probably functional",
    2: "probably defective",
    3: "defective",
}  # thirds
TYPES = {"mono": "monocrystalline", "poly": "polycrystalline"}

CARD = """\
elpv: electroluminescence images of solar cells, 300 x 300, 8-bit grey. Not medical, but real.
{counts}

Split     stratified by defect probability and cell type, from a fixed seed, 60 / 15 / 25 %.
          734 cells have twins that show almost the same picture (neighbouring wafers of one block,
          or one cell twice). Twins stay in one split: they share the patient column. The 44 modules
          the cells were cut from are not named, so other cells of one module may be divided.
Labels    defect: 1 where the annotated probability (0, 1/3, 2/3 or 1) is at least 0.5; condition
          is the same in words; type: mono or poly, the crystal of the cell.
Reports   one sentence written from the annotation, so it contains the label; no person wrote it.

manifest.csv   patient, study, view, path, report, split, probability, type, condition, defect
SPLIT.image.tok .report.tok .label.tok (defect | No Finding) .type.tok (mono | poly)
               .condition.tok (defective | functional)
"""


def build_elpv(archive: Path, folder: Path) -> tuple[int, str]:
    """Fill `folder` from the wheel; returns (number of images, text of the card)."""
    table = b""
    (folder / "images").mkdir()
    found = set()
    for name, content in console.progress(
        read_members(archive, under=UNDER), desc="elpv", total=2625, unit="file"
    ):
        relative = name.removeprefix(UNDER)
        if relative == "labels.csv":
            table = content
        elif relative.startswith("images/") and relative.endswith(".png"):
            safe_join(folder, relative).write_bytes(content)
            found.add(relative)
    rows = [line.split() for line in table.decode().splitlines() if line.strip()]
    if not rows or {path for path, _, _ in rows} != found:
        raise UserError(
            "elpv: labels.csv and the images of the archive do not match: fetch it again"
        )
    owner = {cell: twins[0] for twins in groups() for cell in twins}
    owners = [owner.get(Path(path).stem, Path(path).stem) for path, _, _ in rows]
    splits = _split(owners, [f"{probability} {kind}" for _, probability, kind in rows])
    samples = [
        _sample(path, float(probability), kind, who, split)
        for (path, probability, kind), who, split in zip(rows, owners, splits, strict=True)
    ]
    write_tables(folder, samples, labels=["defect"], classes=["type", "condition"])
    return len(samples), CARD.format(counts=counts(samples))


def _split(owners: Sequence[str], strata: Sequence[str]) -> list[str]:
    """A split for every cell, each stratum near its share, twins together."""
    _, of_N, sizes_G = np.unique(owners, return_inverse=True, return_counts=True)
    names, stratum_N = np.unique(strata, return_inverse=True)
    counts_GL = np.zeros((len(sizes_G), len(names)))
    np.add.at(counts_GL, (of_N, stratum_N), 1)
    shares = np.array(list(FRACTIONS.values()))
    home_G = stratify(counts_GL, sizes_G.astype(float), shares, seed=0)
    return [list(FRACTIONS)[home] for home in home_G[of_N]]


def _sample(path: str, probability: float, kind: str, owner: str, split: str) -> dict[str, object]:
    cell = Path(path).stem
    defect = int(probability >= 0.5)
    verdict = VERDICTS[round(3 * probability)]
    return {
        "patient": owner,
        "study": cell,
        "view": "EL",
        "path": path,
        "report": f"Electroluminescence image of a {TYPES[kind]} solar cell, {verdict}.",
        "split": split,
        "probability": f"{probability:.4f}",
        "type": kind,
        "condition": "defective" if defect else "functional",
        "defect": defect,
    }
