"""Every image-only method on three data sets at an equal budget of processor time, three seeds.

    python benchmarks/methods_table.py [--jobs 2] [--seeds 0 1 2]
    python benchmarks/methods_table.py --rates      # learning rates, chosen on validation images

A run gets as many steps as 45 s of one core pay for, measured on the method itself; the same steps
for every seed. Each row is kept in ckpt/methods/rows.jsonl as it ends, so that a table that was
interrupted goes on; failures are rows too. Needs the data sets phantom, elpv and mnist.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pairs import TOY, console, sized

from vilmedic_ssl import config as yaml_config

Task = tuple[str, str, int, float]  # data set, method, seed, learning rate
BUDGET = sized(45.0, 0.5)  # s of one core per run, without reading images and without scoring
PLACE = Path("ckpt/methods")
DATA: dict[str, list[str]] = {
    "phantom": [],
    "elpv": ["dataset.transform.resize=64", "dataset.transform.crop=64"],
    "mnist": [],
}
CNN = {"proto": "CNN", "backbone": "test_resnet", "in_chans": 1}
TRANSFORMER = {
    "proto": "CNN",
    "backbone": "vit_tiny_patch16_224",
    "in_chans": 1,
    "options": {
        "img_size": "${dataset.transform.crop}",
        "embed_dim": 96,
        "depth": 6,
        "num_heads": 3,
        "global_pool": "avg",
    },
}
WIDTHS = {"projector": {"widths": [256, 256]}, "predictor": {"widths": [256, 256]}}
METHODS: dict[str, dict[str, Any]] = {
    "SimCLR": {"loss": {"tau": 0.2}},
    "BYOL": {**WIDTHS, "tau": 0.97},
    "SimSiam": {"projector": {"widths": [256, 256, 256]}, "predictor": {"widths": [64, 256]}},
    "BarlowTwins": {"projector": {"widths": [256, 256, 256]}},
    "VICReg": {"projector": {"widths": [256, 256, 256]}},
    "MoCoV3": {**WIDTHS, "temperature": 0.2, "tau": 0.97},
    "DINO": {
        "head": {"hidden_dim": 256, "bottleneck_dim": 64, "prototypes": 512, "batch_norm": True},
        "tau": 0.97,
    },
    "MAE": {"fixed_positions": True, "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 2},
    "Supervised": {},
}
if TOY:
    DATA, METHODS = {"phantom": []}, {name: METHODS[name] for name in ("SimCLR", "MAE")}
RATES = (1e-3, 4e-3)  # AdamW; tried on phantom, seed 100, judged by kNN on validation images
QUICK = ("SimCLR", "SimSiam", "VICReg", "Supervised")  # those with which the larger did better
RATE = {method: 4e-3 if method in QUICK else 1e-3 for method in METHODS}


def node_of(data: str, method: str, seed: int, *, rate: float, steps: int) -> dict[str, Any]:
    """A data set's own SimCLR config with another method, for so many steps."""
    node = yaml_config.load(f"config/SELFSUP/simclr-{data}.yml", DATA[data])
    size = node["dataset"]["transform"]["crop"]
    cnn = {**CNN}
    if method == "MAE":
        cnn = {**TRANSFORMER, "options": {**TRANSFORMER["options"], "img_size": size}}
        cnn["options"]["patch_size"] = 4 if size < 32 else 8
    node["model"] = {"proto": method, "cnn": cnn, **METHODS[method]}
    views = {"views": 1 if method in ("MAE", "Supervised") else 2}
    if method == "DINO":
        zoom = {"RandomResizedCrop": {"size": size // 2, "scale": [0.2, 0.5]}}
        kept = [t for t in node["dataset"]["transform"]["train"] if "RandomResizedCrop" not in t]
        views |= {"local_views": 2, "local_crop": size // 2, "local": [zoom, *kept]}
    node["dataset"]["transform"] |= views
    node["trainor"] = {
        "optimizer": "AdamW",
        "optim_params": {"lr": rate, "weight_decay": 1e-4},
        "lr_decay": "warmup_cosine",
        "lr_decay_params": {"warmup_steps": steps // 10},
        "batch_size": 64,
        "drop_last": True,
        "channels_last": method != "MAE",
        "epochs": 10**6,
        "max_steps": steps,
        "eval_every": 10**6,
    }
    node["validator"] = {"metrics": ["knn", "effective_rank"]}
    references = {"SimCLR": ["random_init", "pixels"], "MAE": ["random_init"]}.get(method, [])
    judges = [{name: {"references": references, "draws": 300}} for name in ("knn", "linear_probe")]
    node["ensemblor"] |= {"mode": "last", "post_processing": judges}
    name = f"{data}-{method}-{rate:g}"
    return {
        **node,
        "name": name,
        "ckpt_dir": str(PLACE),
        "seed": seed,
        "num_workers": 0,
        "audit": None,
    }


def steps_for(data: str, method: str) -> int:
    """Steps that BUDGET pays for, measured once: the last six of ten steps."""
    from vilmedic_ssl import train
    from vilmedic_ssl.executors.trainor import Trainor

    path, marks, step = PLACE / f"steps-{data}-{method}.json", [], Trainor._step
    if path.is_file():
        return int(json.loads(path.read_text()))

    def marked(self: Trainor, *arguments: Any) -> None:
        step(self, *arguments)
        marks.append(time.process_time())

    Trainor._step = marked  # type: ignore[method-assign]
    node = node_of(data, method, 0, rate=1e-3, steps=10)
    train({**node, "name": f"pace/{data}-{method}", "overwrite": True})
    Trainor._step = step  # type: ignore[method-assign]
    steps = round(BUDGET * 6 / (marks[-1] - marks[-7]))
    path.write_text(json.dumps(steps))
    return steps


def run(data: str, method: str, seed: int, rate: float) -> None:
    """Train, score, and print the row as the last line; ends the process on failure."""
    from vilmedic_ssl import ensemble, train
    from vilmedic_ssl.executors.run import read_log

    steps = steps_for(data, method)
    node = node_of(data, method, seed, rate=rate, steps=steps)
    begin = time.process_time()
    folder = train({**node, "overwrite": True})
    spent = time.process_time() - begin
    last = [r for r in read_log(folder / f"log_{seed}.jsonl") if r["kind"] == "eval"][-1]
    judged = ensemble(node) if rate == RATE[method] and seed < 100 else {}
    scores = {k: v for k, v in judged.items() if k.startswith("test/") and "/accuracy" in k}
    row = {"steps": steps, "seconds": round(spent, 1), "validate": last["scores"], **scores}
    console.result(json.dumps(row))


def alone(*words: Any) -> subprocess.CompletedProcess[str]:
    """This file in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def job(task: Task) -> dict[str, Any]:
    """One run; what it found, or why it failed."""
    data, method, seed, rate = task
    done = alone("--one", data, method, seed, rate)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["?"]
    found = json.loads(lines[-1]) if done.returncode == 0 else {"failed": lines[-1]}
    row = {"data": data, "method": method, "seed": seed, "rate": rate, **found}
    with (PLACE / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def all_rows(tasks: list[Task], jobs: int) -> list[dict[str, Any]]:
    """Rows of before, and those still to be had."""
    PLACE.mkdir(parents=True, exist_ok=True)
    kept = PLACE / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    known = {(r["data"], r["method"], r["seed"], r["rate"]): r for r in rows if "failed" not in r}
    rest = [task for task in tasks if task not in known]
    bar = console.Bar(len(rest), desc="methods", unit="run")
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda pair: alone("--pace", *pair), {task[:2]: None for task in rest}))
        for row in pool.map(job, rest):
            known[row["data"], row["method"], row["seed"], row["rate"]] = row
            bar.advance()
    bar.close()
    return [known[task] for task in tasks]


def cell(rows: list[dict[str, Any]], name: str) -> str:
    """Mean over seeds, the mean of their 95 % intervals, and the deviation between seeds."""
    if failed := [row["failed"] for row in rows if "failed" in row]:
        return f"failed: {failed[0][:80]}"
    value, low, high = (
        statistics.mean(row[f"{name}{end}"] for row in rows) for end in ("", "/low", "/high")
    )
    deviation = statistics.stdev(row[name] for row in rows) if len(rows) > 1 else 0.0
    return f"{value:.3f} [{low:.3f}, {high:.3f}] ± {deviation:.3f}"


def table(rows: list[dict[str, Any]]) -> None:
    """One Markdown table per data set."""
    for data in DATA:
        console.result(
            f"\n**{data}**\n\n| method | steps | kNN | linear probe |\n|---|---|---|---|"
        )
        here = [row for row in rows if row["data"] == data]
        for method in METHODS:
            mine = [row for row in here if row["method"] == method]
            cells = [cell(mine, f"test/{judge}/accuracy") for judge in ("knn", "linear_probe")]
            console.result(f"| {method} | {mine[0].get('steps', '')} | {cells[0]} | {cells[1]} |")
        for method, source, told in (
            ("SimCLR", "random_init", "random init, the CNN"),
            ("MAE", "random_init", "random init, the transformer"),
            ("SimCLR", "pixels", "raw pixels, 32 x 32"),
        ):
            mine = [row for row in here if row["method"] == method]
            judges = ("knn", "linear_probe")
            cells = [cell(mine, f"test/{judge}/{source}/accuracy") for judge in judges]
            console.result(f"| {told} | 0 | {cells[0]} | {cells[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)))
    parser.add_argument("--seeds", type=int, nargs="+", default=sized([0, 1, 2], [0]))
    parser.add_argument("--rates", action="store_true")
    parser.add_argument("--one", nargs=4)
    parser.add_argument("--pace", nargs=2)
    options = parser.parse_args()
    if options.one:
        data, method, seed, rate = options.one
        return run(data, method, int(seed), float(rate))
    if options.pace:
        steps_for(*options.pace)
        return None
    if options.rates:
        tasks = [("phantom", method, 100, rate) for method in METHODS for rate in RATES]
        for row in all_rows(tasks, options.jobs):
            console.result(
                f"{row['method']:12} {row['rate']:g} {row.get('validate') or row['failed']}"
            )
        return None
    methods = [(d, m, s, RATE[m]) for s in options.seeds for d in DATA for m in METHODS]
    table(all_rows(methods, options.jobs))
    return None


if __name__ == "__main__":
    main()
