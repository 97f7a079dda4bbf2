"""What every finished data set holds beside its pictures: manifest.csv and the .tok files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("train", "validate", "test")
Row = Mapping[str, Any]


def write_tables(
    folder: Path, rows: Sequence[Row], *, labels: Sequence[str], classes: Sequence[str] = ()
) -> None:
    """manifest.csv, and `<split>.<file>.tok` files in which line n is the same sample.

    Args:
        rows: one per image, same keys in the same order, with path, report and split among them.
        labels: columns of 1 and 0 that become label.tok: the names of the ones, "No Finding" for
            none. classes: columns of words that become a .tok file of their own; without
            `labels`, the first of them is label.tok as well.
    """
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for split in SPLITS:
        part = [row for row in rows if row["split"] == split]
        columns = {
            "image": [row["path"] for row in part],
            "report": [row["report"] for row in part],
            "label": [_label(row, labels, classes) for row in part],
            **{name: [row[name] for row in part] for name in classes},
        }
        for name, lines in columns.items():
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{split}.{name}.tok").write_text(text, encoding="utf-8")


def _label(row: Row, labels: Sequence[str], classes: Sequence[str]) -> str:
    if not labels and classes:
        return str(row[classes[0]])
    return ",".join(name for name in labels if row[name] == 1) or "No Finding"


def stratified(
    strata: Sequence[str], *, fractions: Mapping[str, float], seed: int = 0
) -> list[str]:
    """A split for every sample: the same fractions in each stratum, rounded, drawn from `seed`."""
    splits = np.full(len(strata), SPLITS[-1], dtype=object)
    rng = np.random.default_rng(seed)
    for stratum in sorted(set(strata)):
        members = rng.permutation([i for i, s in enumerate(strata) if s == stratum])
        begin, share = 0, 0.0
        for split in SPLITS[:-1]:
            share += fractions[split]
            end = round(share * len(members))
            splits[members[begin:end]] = split
            begin = end
    return splits.tolist()


def counts(rows: Sequence[Row]) -> str:
    """The line of a card that says how many images each split has."""
    sizes = (f"{split} {sum(row['split'] == split for row in rows)}" for split in SPLITS)
    return f"{len(rows)} images: {', '.join(sizes)}"
