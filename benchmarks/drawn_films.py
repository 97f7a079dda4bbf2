"""Films drawn from reports of the built-in cohort, under the eyes of a classifier of real ones.

    python benchmarks/drawn_films.py [CKPT_DIR]

Needs the runs dalle-phantom and sides-phantom (their files in config/SELFSUP/ say how) and
data/phantom/sides.csv (benchmarks/phantom_sides.py). Four reports, 16 images each: the first test
films by name whose report names exactly one sided finding, each another one; then one film of each
different report, two images each; both without and with guidance.
"""

import csv
import sys
from pathlib import Path

from pairs import console, sized
from phantom_sides import SIDED

from vilmedic_ssl import ensemble, load_config
from vilmedic_ssl.schema import plain

TABLE = Path("data/phantom/sides.csv")
DRAWN = [name for name in SIDED if name not in ("Lung Lesion", "Atelectasis")]


def four_films(labels: list[str]) -> list[str]:
    """Paths of the films described above."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    found: dict[str, str] = {}
    for row in rows:
        said = [label for label in labels if row[label] == "1"]
        clear = len(said) == 1 and all(row[label] for label in labels)
        frontal = row["split"] == "test" and row["view"] in ("PA", "AP")
        if frontal and clear and said[0].partition(" ")[2] in DRAWN:
            found.setdefault(said[0], row["path"])
    return list(found.values())[:4]


def main() -> None:
    place = sys.argv[1] if len(sys.argv) > 1 else "ckpt"
    judge = plain(load_config("config/SELFSUP/sides-phantom.yml"))["dataset"]["labels"]
    rows = []
    for some in (
        {"ids": four_films(judge), "num_images": sized(16, 1)},
        {"reports": sized(1000, 2), "num_images": sized(2, 1)},
    ):
        for scale in (1.0, 3.0):
            config = plain(load_config("config/SELFSUP/dalle-phantom.yml", [f"ckpt_dir={place}"]))
            config["dataset"] |= {"manifest": str(TABLE), "labels": judge}
            keys = {**some, "cond_scale": scale, "judge": f"{place}/sides-phantom"}
            config["ensemblor"] |= {"generate_images": False}
            config["ensemblor"]["post_processing"] = [{"generate_images": keys}]
            found = ensemble(config)
            at = "test/generate_images"
            row = [str(len(some["ids"])) if "ids" in some else "all", f"{scale:g}"]
            for name in ("judge/auroc", "judge/named_first"):
                value, low, high = (found[f"{at}/{name}{end}"] for end in ("", "/low", "/high"))
                row.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
            row.append(f"{found[f'{at}/judge/named_first/chance']:.3f}")
            rows.append([*row, f"{found[f'{at}/copies']:.3f}"])
    header = ("reports", "cond_scale", "AUROC of the judge", "named first", "chance", "copies")
    console.result(console.table(header, rows))


if __name__ == "__main__":
    main()
