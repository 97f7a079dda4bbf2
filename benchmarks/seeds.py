"""Train and score one config under several seeds, print every headline number with its spread.

    python benchmarks/seeds.py config/SELFSUP/simclr-phantom.yml 0 1 2 [key=value ...]

Runs go to ckpt/<name>-seed<seed>; a finished one is scored again, not trained again.
"""

import statistics
import sys
from pathlib import Path

from pairs import console

from vilmedic_ssl import ensemble, load_config, train
from vilmedic_ssl.executors.ensemblor import number_text

MEASURES = ("accuracy", "balanced_accuracy", "auroc", "auprc")
MEASURES += ("chance", "energy_inside", "energy_elsewhere", "pointing_game")  # of grad_cam


def score(config: str, seed: int, overrides: list[str]) -> dict[str, float]:
    """results.json of one seed."""
    name = load_config(config, overrides).name
    node = load_config(config, [*overrides, f"seed={seed}", f"name={name}-seed{seed}"])
    if not (Path(node.ckpt_dir) / node.name / f"last_{seed}.pth").is_file():
        train(node)
    return ensemble(node)


def main() -> None:
    config, *rest = sys.argv[1:]
    seeds = [int(word) for word in rest if word.isdigit()]
    overrides = [word for word in rest if not word.isdigit()]
    found = [score(config, seed, overrides) for seed in seeds]
    rows = []
    for name in found[0]:
        if name.startswith("test/") and name.rsplit("/", 1)[-1] in MEASURES:
            values = [result[name] for result in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            first = number_text(found[0], name)
            rows.append((name, f"{statistics.mean(values):.3f}", f"{spread:.3f}", first))
    header = ("number", "mean", f"sd of {len(seeds)} seeds", f"seed {seeds[0]}, 95 % of patients")
    console.result(console.table(header, rows))


if __name__ == "__main__":
    main()
