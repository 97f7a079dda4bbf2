"""A fresh reader's path: every command and Python block of README.md and docs/*.md runs, page by
page, in order, in a folder that holds the built-in cohort and nothing else.

Trainings are cut to three steps, bootstraps to a few draws, pictures to one kind. What is not run
as it stands is listed below, with its reason.
"""

from __future__ import annotations

import csv
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import flows
import pytest
from conftest import REPOSITORY

from vilmedic_ssl.cli import main

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
VERBS = {"bin/train.py": "train", "bin/ensemble.py": "ensemble", "data/download.py": "download"}
QUICK = ["num_workers=0", "device=cpu"]
STEPS = ["trainor.max_steps=3", "trainor.batch_size=16"]
MORE_STEPS = ["trainor.max_steps=5", "trainor.batch_size=16"]  # for a run that is continued

DEMO = "config/SELFSUP/simclr-phantom.yml"
INSTEAD = {  # what runs in place of a line, and in its place in the order
    "make demo": [  # makes an environment first; these are the stages of bin/demo.py
        f"python bin/train.py {DEMO} name=demo overwrite=true",
        f"python bin/ensemble.py {DEMO} name=demo",
    ],
    "make test": [],  # runs this test
    ". .venv/bin/activate": [],  # the environment is that of the tests
    "export PYTHONPATH=.": [],  # the page's folder is on the path from the start
    "python data/download.py phantom": [],  # there already, smaller
    # the audit's page names files of the reader; the cohort's stand for them
    "vilmedic-ssl audit path/to/manifest.csv dataset.label=diagnosis": [
        "vilmedic-ssl audit data/phantom/manifest.csv dataset.label=dominant"
    ],
    r"vilmedic-ssl audit path/to/images 'dataset.patient_pattern=^(person\d+)_'": [
        r"vilmedic-ssl audit path/to/images 'dataset.patient_pattern=^(p\d+)_'"
    ],
    # other data is other files; test_audit.py compares two
    "vilmedic-ssl audit config/SELFSUP/simclr-phantom.yml --against other/manifest.csv "
    "--out somewhere": [],
    # zenodo.org cannot be counted on; test_medmnist.py runs the same on files of that layout
    "python data/download.py medmnist-pneumoniamnist,medmnist-bloodmnist-64": [],
    "python bin/train.py config/SELFSUP/simclr-medmnist.yml": [],
    "python bin/train.py config/SELFSUP/simclr-medmnist.yml dataset.name=bloodmnist "
    "dataset.size=64 name=simclr-blood": [],
    # minutes of drawing; test_generate.py does the same in small
    "python benchmarks/phantom_sides.py": [],
    "python bin/train.py config/SELFSUP/sides-phantom.yml": [],
    "python benchmarks/drawn_films.py": [],
    # credentialed data; own-pairs.md runs the same on the built-in cohort
    "python bin/train.py config/SELFSUP/simclr-mimic.yml trainor.batch_size=16 name=simclr_32": [],
    'python bin/ensemble.py config/SELFSUP/simclr-mimic-eval.yml ckpt_dir=ckpt "ensemblor.splits='
    '[train,validate,test]" name="simclr_32"': [],
}
LONG = {
    "pictures-from-reports.md",
    "from-the-seeds.md",
    "own-pairs.md",
    "transfer.md",
    "sweeps.md",
}  # many trainings each
FRAGMENTS = {  # Python that shows a form and is no program: page -> first words
    "architecture.md": ("class ImageFolder(ImageRecords):",),
    "audit.md": ("from vilmedic_ssl.data import audit",),
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"))


def lines(page: Path) -> list[str]:
    """The lines of a page's bash blocks, continuations joined, comments left out."""
    text = re.sub(r"\s*\\\n\s*", " ", "".join(blocks(page, "bash")))
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def commands(page: Path) -> list[str]:
    return [command for line in lines(page) for command in INSTEAD.get(line, [line])]


def files(page: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the blocks that begin with a comment naming a file."""
    for language in ("python", "yaml"):
        for text in blocks(page, language):
            if name := re.match(r"# ([\w/-]+\.(?:py|yml))\n", text):
                yield name[1], text


def online(page: Path) -> bool:
    """True when a command fetches something."""
    fetching = [c for c in commands(page) if re.search(r"\bdownload(\.py)? \S", c)]
    return bool(fetching)


@pytest.fixture
def folder(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_scores: None
) -> Iterator[Path]:
    """Where a reader stands: `data/phantom`, and a folder of images of their own."""
    shutil.copytree(phantom, tmp_path / "data/phantom")
    with (phantom / "manifest.csv").open(encoding="utf-8") as table:
        for row in csv.DictReader(table):
            home = tmp_path / "my-images" / row["dominant"]
            home.mkdir(parents=True, exist_ok=True)
            shutil.copy(phantom / row["path"], home)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/images").symlink_to(tmp_path / "my-images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def shortened(verb: str, arguments: list[str]) -> list[str]:
    """A command of this program with what makes it quick."""
    if verb == "sweep":
        return [verb, *arguments, *QUICK, *STEPS, "sweep.trials=2"]
    if arguments and "/FLOW/" in arguments[0]:
        return [verb, *arguments, *flows.shortened(arguments[0])]
    if verb not in ("train", "ensemble"):
        return [verb, *arguments]
    steps = MORE_STEPS if "ckpt=last" in arguments else STEPS
    return [verb, *arguments, *QUICK, *(steps if verb == "train" else [])]


def run(command: str, folder: Path) -> None:
    """Run one line; the exit code must be 0."""
    words = shlex.split(command)
    if words[0] == "torchrun":
        launch = [sys.executable, "-m", "torch.distributed.run"]
        script = [str(REPOSITORY / w) if w in VERBS else w for w in words[1:]]
        path = os.pathsep.join([str(folder), str(REPOSITORY)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launch, *script, *QUICK, *STEPS], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    elif words[0] == "vilmedic-ssl":
        assert main(shortened(words[1], words[2:])) == 0, command
    elif words[0] == "python" and words[1] in VERBS:
        assert main(shortened(VERBS[words[1]], words[2:])) == 0, command
    elif words[0] == "python" and (folder / words[1]).is_file():
        runpy.run_path(str(folder / words[1]), run_name="__main__")
    else:
        pytest.fail(f"no way to run {command!r}; add one, or list it in INSTEAD with a reason")


def marks(page: Path) -> list:
    if online(page):
        return [pytest.mark.slow, pytest.mark.network]
    return [pytest.mark.slow] if page.name in LONG else []


def cases() -> list:
    return [pytest.param(page, id=page.name, marks=marks(page)) for page in PAGES if lines(page)]


@pytest.mark.parametrize("page", cases())
def test_commands_run(page, folder, capsys):
    for name, text in files(page):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    ran = commands(page)
    for command in ran:
        run(command, folder)
        told = capsys.readouterr().err
        assert not re.search(r"failed|did not finish", told), f"{command}\n{told}"
    for name, _ in files(page):  # each was run, imported or read
        module = name.removesuffix(".py").replace("/", ".")
        assert any(name in c for c in ran) or module in sys.modules, f"{page.name}: {name} unused"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_python_block_is_a_file_that_runs(page):
    named = {text for _, text in files(page)}
    for text in blocks(page, "python"):
        fragment = text.startswith(FRAGMENTS.get(page.name, ("\0",)))
        assert text in named or fragment, f"{page.name}: begin this block with `# name.py`:\n{text}"


def test_no_exception_is_left_over():
    shown = {line for page in PAGES for line in lines(page)}
    assert set(INSTEAD) <= shown
    for name, openings in FRAGMENTS.items():
        texts = blocks(REPOSITORY / "docs" / name, "python")
        assert all(any(text.startswith(opening) for text in texts) for opening in openings)
