"""Every benchmark runs at toy size: what it prints is no measurement, but it is printed."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bert import save_bert

HERE = Path(__file__).resolve().parents[1]
MODULES = {"pairs", "peers", "peers_mae", "twins"}  # what the others import
SIMCLR = "config/SELFSUP/simclr-phantom.yml"
LITTLE = ("num_workers=0", "device=cpu", "trainor.max_steps=2", "trainor.batch_size=16")
ARGUMENTS = {
    "near_duplicates": ["data/phantom/manifest.csv"],
    "seeds": [SIMCLR, "0", "1", *LITTLE, "ensemblor.post_processing=[knn: {draws: 20}]"],
    "indiana_text": ["--reports", "data/indiana-reports", "--minilm", "bert"],
    "phantom_sides": ["data/phantom"],
}
PEERS = {"methods", "curves", "dalle"}
SLOW = {"startup", "methods_table", "seeds", "drawn_films", "indiana_text"}
SCRIPTS = sorted({path.stem for path in (HERE / "benchmarks").glob("*.py")} - MODULES)


def run(where: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=where, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr  # tables stand on one, sentences on the other


@pytest.fixture
def place(tmp_path, phantom):
    """A folder as the repository is for a benchmark, with small data in it."""
    (tmp_path / "config").symlink_to(HERE / "config")
    shutil.copytree(phantom, tmp_path / "data" / "phantom")
    return tmp_path


def add_reports(place: Path) -> None:
    """A table of twelve reports, and a text encoder."""
    save_bert(place / "bert")
    folder = place / "data" / "indiana-reports"
    folder.mkdir()
    with (folder / "reports.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["findings", "impression", "normal"])
        for i in range(12):
            table.writerow([f"Heart size is {i}. Lungs are clear.", f"Effusion number {i}.", "0"])


def train_generators(place: Path) -> None:
    """The runs that drawn_films.py takes up."""
    run(place, str(HERE / "benchmarks" / "phantom_sides.py"), "data/phantom")
    train = str(HERE / "bin" / "train.py")
    for name, *keys in (
        ("vae-phantom",),
        ("dalle-phantom", "model.vae.ckpt=ckpt/vae-phantom"),
        ("sides-phantom", "dataset.manifest=data/phantom/sides.csv"),
    ):
        run(place, train, f"config/SELFSUP/{name}.yml", *LITTLE, *keys)


BEFORE = {"indiana_text": add_reports, "drawn_films": train_generators}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SCRIPTS]
)
def test_a_benchmark_runs(name, place):
    if name in PEERS:
        pytest.importorskip("dalle_pytorch" if name == "dalle" else "lightly")
    BEFORE.get(name, lambda _: None)(place)
    printed = run(place, str(HERE / "benchmarks" / f"{name}.py"), *ARGUMENTS.get(name, []), "--toy")
    assert printed.strip() or name == "phantom_sides"


def test_make_bench_runs_benchmarks_that_exist():
    lines = (HERE / "Makefile").read_text().splitlines()
    named = {Path(line.split()[-1]).stem for line in lines if "benchmarks/" in line}
    assert named and named <= set(SCRIPTS)
