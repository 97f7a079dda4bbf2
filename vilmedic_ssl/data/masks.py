"""Outlines of findings, named in a table, for what asks whether a model looks at them."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from vilmedic_ssl.data.paths import safe_join
from vilmedic_ssl.data.read import read_image
from vilmedic_ssl.errors import UserError

COLUMNS = "path", "finding", "mask"


def read_masks(table: Path, images: Collection[str]) -> dict[tuple[str, str], list[Path]]:
    """The mask files of each image and finding, from a CSV file with columns path, finding and mask
    (relative to the table).

    Raises:
        UserError: missing file or column; a table that names none of `images`.
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
        files: dict[tuple[str, str], list[Path]] = {}
        for row in reader:
            place = safe_join(table.parent, row["mask"])
            files.setdefault((row["path"], row["finding"]), []).append(place)
    if not {path for path, _ in files} & set(images):
        raise UserError(
            f"dataset.masks: {table} names none of the manifest's images, for example not "
            f"{next(iter(images))!r}; write paths as the manifest does, or dataset.masks=null"
        )
    return files


def outline(files: list[Path], size: tuple[int, int]) -> Tensor:
    """(H, W) bool: what is bright in any of the files.

    Raises:
        UserError: an unreadable file, or one that is not `size` (height, width).
    """
    joined = torch.zeros(size, dtype=torch.bool)
    for file in files:
        inside = read_image(file)[0] > 0.5
        if inside.shape != joined.shape:
            raise UserError(
                f"{file} has {tuple(inside.shape)} pixels (height, width), its image {size}; draw "
                "masks on images in full size"
            )
        joined |= inside
    return joined
