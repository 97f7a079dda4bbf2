"""A table of the built-in cohort with findings and their sides as labels: data/phantom/sides.csv.

    python benchmarks/phantom_sides.py [FOLDER]

A column "left Pneumothorax" is 1 where the film shows one and its report affirms it, 0 where it
shows none, blank where it shows one that the report hedges or leaves out.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

SIDED = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Lung Lesion", "Atelectasis")
LABELS = [*(f"{side} {name}" for name in SIDED for side in ("left", "right")), "Cardiomegaly"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "data/phantom")
    drawn = defaultdict(set)
    for box in read(root / "boxes.csv"):
        drawn[box["path"]].add(f"{box['side']} {box['finding']}".strip())
    rows = []
    for film in read(root / "manifest.csv"):
        kept = {
            name: film[name] for name in ("patient", "study", "view", "path", "report", "split")
        }
        for label in LABELS:
            said = film[label.removeprefix("left ").removeprefix("right ")]
            shown = label in drawn[film["path"]]
            kept[label] = "0" if not shown else "1" if said == "1" else ""
        rows.append(kept)
    with (root / "sides.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
