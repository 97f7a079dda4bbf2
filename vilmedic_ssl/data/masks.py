"""Outlines of findings, named in a table, for what asks whether a model looks at them."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vilmedic_ssl.data.paths import locate
from vilmedic_ssl.data.read import read_image
from vilmedic_ssl.errors import UserError

COLUMNS = "path", "finding", "mask"
SIDES = "left", "right", ""


@dataclass(frozen=True)
class Outline:
    """One row of the table.

    Attributes:
        file: an image as large as the one it belongs to.
        side: of the patient: left, right, or "" where the table does not say.
        values: numbers from 0 to 255 that are inside, of a file that is a map of labels; empty =
            what is bright is inside.
    """

    file: Path
    side: str = ""
    values: tuple[int, ...] = ()


Masks = dict[str, dict[str, list[Outline]]]
"""Image as the manifest names it -> finding -> its outlines."""


def read_masks(table: Path, images: Collection[str]) -> Masks:
    """The outlines of each image, from a CSV file with columns path, finding and mask (relative to
    the table), and where present side (left, right or blank) and values (numbers between blanks).

    Raises:
        UserError: missing file or column; a side or value that is none; a table that names none of
            `images`.
    """
    if not table.is_file():
        raise UserError(
            f"dataset.masks: there is no {table}; write its path relative to root, or null"
        )
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or ()
        if missing := [name for name in COLUMNS if name not in columns]:
            raise UserError(
                f"dataset.masks: {table} has no column {missing[0]!r}; it needs "
                f"{', '.join(COLUMNS)}"
            )
        masks: Masks = {}
        for row in reader:
            of_image = masks.setdefault(row["path"], {})
            of_image.setdefault(row["finding"], []).append(_outline(row, table))
    if not set(masks) & set(images):
        raise UserError(
            f"dataset.masks: {table} names none of the manifest's images, for example not "
            f"{next(iter(images))!r}; write paths as the manifest does, or dataset.masks=null"
        )
    return masks


def _outline(row: dict[str, str], table: Path) -> Outline:
    side = (row.get("side") or "").strip().lower()
    if side not in SIDES:
        raise UserError(
            f"dataset.masks: {table}, {row['path']}: side is {side!r}; write left, right or nothing"
        )
    numbers = (row.get("values") or "").split()
    if not all(number.isdecimal() and int(number) <= 255 for number in numbers):
        raise UserError(
            f"dataset.masks: {table}, {row['path']}: values is {row['values']!r}; write the "
            "numbers from 0 to 255 that are inside, blanks between them, or nothing"
        )
    return Outline(locate(table.parent, row["mask"]), side, tuple(map(int, numbers)))


def joined(outlines: Sequence[Outline], size: tuple[int, int]) -> Tensor:
    """(H, W) bool: what is inside any of the outlines.

    Raises:
        UserError: an unreadable file, or one that is not `size` (height, width).
    """
    whole = torch.zeros(size, dtype=torch.bool)
    for outline in outlines:
        grey_HW = read_image(outline.file)[0]
        if grey_HW.shape != whole.shape:
            raise UserError(
                f"{outline.file} has {tuple(grey_HW.shape)} pixels (height, width), its image "
                f"{size}; draw masks on images in full size"
            )
        if outline.values:
            whole |= torch.isin((grey_HW * 255).round().int(), torch.tensor(outline.values).int())
        else:
            whole |= grey_HW > 0.5
    return whole
