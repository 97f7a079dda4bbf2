"""`elpv`: 2,624 pictures of solar cells with a defect probability (Deitsch et al., 2019)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.data.archive import read_members
from vilmedic_ssl.data.paths import safe_join
from vilmedic_ssl.data.recipes.tables import counts, write_tables
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
          The 44 modules the cells were cut from are not named in the data: cells of one module may
          lie on both sides of the split, and the patient column is the cell itself.
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
    splits = stratified([f"{probability} {kind}" for _, probability, kind in rows])
    samples = [
        _sample(path, float(probability), kind, split)
        for (path, probability, kind), split in zip(rows, splits, strict=True)
    ]
    write_tables(folder, samples, labels=["defect"], classes=["type", "condition"])
    return len(samples), CARD.format(counts=counts(samples))


def stratified(strata: list[str], *, seed: int = 0) -> list[str]:
    """A split for every sample: the same fractions in each stratum, rounded, drawn from `seed`."""
    splits = np.full(len(strata), "test", dtype=object)
    rng = np.random.default_rng(seed)
    for stratum in sorted(set(strata)):
        members = rng.permutation([i for i, s in enumerate(strata) if s == stratum])
        train = round(FRACTIONS["train"] * len(members))
        validate = round((FRACTIONS["train"] + FRACTIONS["validate"]) * len(members))
        splits[members[:train]] = "train"
        splits[members[train:validate]] = "validate"
    return splits.tolist()


def _sample(path: str, probability: float, kind: str, split: str) -> dict[str, object]:
    cell = Path(path).stem
    defect = int(probability >= 0.5)
    verdict = VERDICTS[round(3 * probability)]
    return {
        "patient": cell,
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
