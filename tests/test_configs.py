"""Every shipped YAML trains three steps and is ensembled on the built-in cohort."""

import re
import shutil
from pathlib import Path

import pytest
from medmnist_files import write_set

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.cli import main
from vilmedic_ssl.data.datasets.manifest import read_table
from vilmedic_ssl.experiment import load_config

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = sorted((REPOSITORY / "config").rglob("*.yml"))
SMALL = ["num_workers=0", "device=cpu", "trainor.batch_size=8", "trainor.max_steps=3"]
FINDINGS = "[Cardiomegaly, Consolidation, Pneumothorax, Pleural Effusion]"


def tok(phantom, *, labels):
    """Where a `.tok` dataset finds the cohort: flat for images alone, nested for pairs."""
    image = "dataset.image." if labels else "dataset."
    paths = [f"{image}root={phantom}", f"{image}image_path={phantom}", f"{image}resize=32"]
    return [*paths, f"{image}crop=32", *([f"dataset.label.root={phantom}"] if labels else [])]


def by_class(phantom):
    """The cohort as split/class/image."""
    root = phantom.with_name("by_class")
    for row in read_table(phantom / "manifest.csv"):
        target = root / row["split"] / row["dominant"] / Path(row["path"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom / row["path"], target)
    return root


def data(node, phantom):
    """Overrides that point a config's dataset at the cohort, at 32 pixels."""
    proto = node["dataset"]["proto"]
    if proto in ("ImageDataset", "ImLabel"):
        return tok(phantom, labels=proto == "ImLabel")
    size = ["dataset.transform.resize=32", "dataset.transform.crop=32"]
    if proto == "ImageFolder":
        return [f"dataset.root={by_class(phantom)}", *size]
    if proto == "MedMNIST":
        root = phantom.with_name("medmnist")
        write_set(root, node["dataset"]["name"], counts=(48, 16, 24))
        return [f"dataset.root={root}"]
    label = (
        "dataset.label=dominant" if node["dataset"].get("label") else f"dataset.labels={FINDINGS}"
    )
    return [f"dataset.manifest={phantom / 'manifest.csv'}", label, *size]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_config_trains_and_is_ensembled(path, phantom, tmp_path, capsys):
    node = yaml_config.load(path)
    place = [f"ckpt_dir={tmp_path}", "name=run"]
    train = path if "trainor" in node else path.with_name(path.name.replace("-eval", ""))
    source = yaml_config.load(train)
    assert main(["train", str(train), *place, *data(source, phantom), *SMALL]) == 0
    splits = "ensemblor.splits=[train,validate,test]"
    code = main(["ensemble", str(path), *place, *data(node, phantom), splits, *SMALL[:2]])
    told = capsys.readouterr()
    assert code == 0, told.err
    report = tmp_path / "run" / "report.html"
    assert report.is_file() and str(report) in told.out
    assert " failed (" not in told.err  # a plug-in may decline (no labels, say) but not break


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_what_the_header_offers_can_be_written(path):
    """Every key=value in the comment on top is one that the config takes."""
    header = " ".join(line[1:] for line in path.read_text().split("dataset:")[0].splitlines())
    key = r"(?:dataset|model|trainor)\.[\w.]+="
    offered = re.findall(rf"(?<!\S)({key}[^\s']+)|'({key}[^']+)'", header)
    words = [(plain or quoted).rstrip(".,;") for plain, quoted in offered if "DIR" not in plain]
    root = ["dataset.root=images"] if "root: ???" in path.read_text() else []
    load_config(path, [*words, *root, "name=run"])
