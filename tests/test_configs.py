"""Every shipped YAML trains three steps and is ensembled on the built-in cohort; those of sweeps
run two tiny trials, those of flows one seed of two steps per stage.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from flows import shortened
from medmnist_files import write_set
from tiny_bert import save_bert

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.cli import main
from vilmedic_ssl.data.datasets.manifest import read_table
from vilmedic_ssl.experiment import load_config

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = sorted(p for p in (REPOSITORY / "config").rglob("*.yml") if p.parent.name != "PROMPTS")
FLOWS = [path for path in FILES if path.parent.name == "FLOW"]
TRAINED = [path for path in FILES if path.parent.name not in ("SWEEP", "FLOW")]
SWEPT = [path for path in FILES if path.parent.name == "SWEEP"]
SMALL = ["num_workers=0", "device=cpu", "trainor.batch_size=8", "trainor.max_steps=3"]
FINDINGS = "[Cardiomegaly, Consolidation, Pneumothorax, Pleural Effusion]"
TINY_TEXT = "model.encoder={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
# Those that differ by an included file's model or place, and run beside it when everything does.
ALIKE = {
    "vae-manifest",
    *("convirt-mimic-balanced", "convirt-padchest", "siglip", "clip-manifest", "siglip-manifest"),
    *("siglip-phantom", "clip-brain-mr", "siglip-brain-mr", "convirt-brain-mr"),
    "convirt-indiana",
}


SMALL_VAE = {
    **{"image_size": 32, "num_layers": 2, "num_tokens": 16, "codebook_dim": 8},
    **{"hidden_dim": 8, "num_resnet_blocks": 0},
}
SMALL_DALLE = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 12}


def drawing(node, phantom):
    """Small networks for what draws, and a VAE for DALLE to read."""
    model = node.get("model") or {"proto": None}  # of a flow
    if model["proto"] == "VAE":
        return [f"model.{key}={value}" for key, value in SMALL_VAE.items()]
    if model["proto"] != "DALLE":
        return []
    run = phantom.with_name("small-vae")
    if not run.is_dir():
        vae = REPOSITORY / "config/SELFSUP/vae-phantom.yml"
        words = [*data(yaml_config.load(vae), phantom), *SMALL]
        assert main(["train", str(vae), f"ckpt_dir={run.parent}", f"name={run.name}", *words]) == 0
    small = [f"model.dalle.{key}={value}" for key, value in SMALL_DALLE.items()]
    return [f"model.vae={{ckpt: {run}, image_size: null}}", *small]


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


def brains(phantom, findings):
    """The cohort as `data/brain-mr` is laid out: findings are called as structures are."""
    root = phantom.with_name("brains")
    if not root.is_dir():
        shutil.copytree(phantom, root)
        called = dict(zip(FINDINGS.strip("[]").split(", "), findings, strict=False))
        for old, new in (("manifest.csv", "manifest.csv"), ("boxes.csv", "masks.csv")):
            rows = read_table(phantom / old)
            for row in rows:
                for finding, structure in called.items():
                    row[structure] = row.get(finding, "0")
                if "finding" in row:
                    row["finding"] = called.get(row["finding"], row["finding"])
                row.update({s: "0" for s in findings if s not in row})
            with (root / new).open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
    return [f"dataset.manifest={root / 'manifest.csv'}"]


def pairs(node, phantom):
    """Where a `.tok` dataset of images and reports finds the cohort, and small networks for it."""
    model, small = node["model"], ["model.cnn.backbone=test_resnet"]
    if "dalle" in model:
        text = ["dataset.seq.file=report.tok", f"dataset.seq.root={phantom}"]
        return [*tok(phantom, labels=True)[:-1], *text, *drawing(node, phantom)]
    if "visual_embedder" in model:
        small += ["model.visual_embedder={interm_feature_dim: null, feature_dim: null}"]
        small += ["model.image_size=32"]
    else:
        small += ["model.projection={visual_embedding_dim: null, textual_embedding_dim: null}"]
    if model["encoder"]["proto"]:
        small += [f"model.encoder.proto={save_bert(phantom.with_name('bert'))}"]
    else:
        small += [TINY_TEXT]
    return [*tok(phantom, labels=True)[:-1], f"dataset.seq.root={phantom}", *small]


def flat(node):
    """Training views of the size that everything has here."""
    listed = isinstance(node["dataset"]["transform"].get("train"), list)
    return ["dataset.transform.train=evaluate"] if listed else []


def data(node, phantom):
    """Overrides that point a config's dataset at the cohort, at 32 pixels."""
    proto = node["dataset"]["proto"]
    if proto == "ImSeq":
        return pairs(node, phantom)
    if proto in ("ImageDataset", "ImLabel"):
        return [*tok(phantom, labels=proto == "ImLabel"), *drawing(node, phantom)]
    size = ["dataset.transform.resize=32", "dataset.transform.crop=32"]
    if proto == "ImageFolder":
        return [f"dataset.root={by_class(phantom)}", *size, *drawing(node, phantom)]
    if proto == "MedMNIST":
        root = phantom.with_name("medmnist")
        write_set(root, node["dataset"]["name"], counts=(48, 16, 24))
        return [f"dataset.root={root}"]
    if small := drawing(node, phantom):
        table = [f"dataset.manifest={phantom / 'manifest.csv'}"]
        return [*table, *flat(node), *size, *small]
    if "text" in node["dataset"]:
        size += [TINY_TEXT, "model.cnn.backbone=test_resnet"]
        if "brain" in node["dataset"]["manifest"]:
            return [*brains(phantom, node["dataset"]["labels"]), *size]
        if node["dataset"]["manifest"] == "???":
            return [f"dataset.manifest={phantom / 'manifest.csv'}", *size]
    label = (
        "dataset.label=dominant" if node["dataset"].get("label") else f"dataset.labels={FINDINGS}"
    )
    return [f"dataset.manifest={phantom / 'manifest.csv'}", label, *size]


def case(path):
    marks = [pytest.mark.slow] if path.stem in ALIKE else []
    return pytest.param(path, id=path.relative_to(REPOSITORY).as_posix(), marks=marks)


@pytest.mark.parametrize("path", [case(path) for path in TRAINED])
def test_config_trains_and_is_ensembled(path, phantom, tmp_path, capsys, quick_scores):
    node = yaml_config.load(path)
    place = [f"ckpt_dir={tmp_path}", "name=run"]
    train = path if "trainor" in node else path.with_name(path.name.replace("-eval", ""))
    source = yaml_config.load(train)
    reads = {"encoder", "dalle"} & set(source["model"])  # scored by many plug-ins
    splits = f"ensemblor.splits=[{'test' if reads else 'train,validate,test'}]"
    assert main(["train", str(train), *place, *data(source, phantom), splits, *SMALL]) == 0
    code = main(["ensemble", str(path), *place, *data(node, phantom), splits, *SMALL[:2]])
    told = capsys.readouterr()
    assert code == 0, told.err
    report = tmp_path / "run" / "report.html"  # the words of the training give its main report
    if train != path:
        (report,) = (tmp_path / "run/evaluations").glob("*/report.html")
    assert report.is_file() and str(report) in told.out
    assert " failed (" not in told.err  # a plug-in may decline (no labels, say) but not break


@pytest.fixture(scope="module")
def pretrained(phantom, tmp_path_factory):
    """A run folder to start from: what the headers train first."""
    place, path = tmp_path_factory.mktemp("first"), REPOSITORY / "config/SELFSUP/simclr-phantom.yml"
    words = [f"ckpt_dir={place}", "name=run", *data(yaml_config.load(path), phantom), *SMALL]
    assert main(["train", str(path), *words]) == 0
    return place / "run"


def from_weights(path, run):
    """Overrides for the sweeps that start from a trained run."""
    if path.stem == "frozen-blocks":
        return [f"init_from={run}"]
    if path.stem == "label-fractions":  # 1 % of this small cohort is a single image
        weights = f"init_from: {{choices: {{pretrained: {run}, random: null}}}}"
        return [f"space={{{weights}, budget.fraction: {{choices: [0.5]}}}}"]
    return []


@pytest.mark.parametrize("path", SWEPT, ids=lambda p: p.stem)
def test_sweep_runs(path, phantom, pretrained, tmp_path, capsys):
    node = yaml_config.load(path)
    measure = node["sweep"].get("measure", "train")
    trials = {"train": 2, "resources": 1, "lr_range": 12}[measure]
    words = [f"ckpt_dir={tmp_path}", "name=run", f"sweep.trials={trials}", *SMALL]
    words += [*data(node, phantom), *from_weights(path, pretrained)]
    if node["sweep"].get("metric") == "knn":  # this small validate has no two patients per class
        words.append("sweep.metric=effective_rank")
    assert main(["sweep", str(path), *words]) == 0, capsys.readouterr().err
    files = {"train": "sweep", "resources": "resources", "lr_range": "lr_range"}
    table = json.loads((tmp_path / f"run/{files[measure]}.json").read_text())
    assert (tmp_path / f"run/{files[measure]}.png").is_file()
    states = [row["state"] for row in table.get("trials") or table.get("settings") or []]
    assert states == ([] if measure == "lr_range" else [states[0]] * trials)
    assert set(states) <= {"finished", "measured"}
    assert main(["train", str(path), *words]) == 2  # it says which verb runs it


@pytest.mark.parametrize("path", FLOWS, ids=lambda p: p.stem)
def test_flow_runs(path, phantom, tmp_path, capsys):
    node = yaml_config.read_with_includes(path)
    words = [f"ckpt_dir={tmp_path}", "name=run", *data(node, phantom), *shortened(path)]
    if node["dataset"]["proto"] == "Manifest":
        words.append("dataset.label=dominant")
    assert main(["train", str(path), *words]) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "run/flow.json").read_text())["rows"]
    stages = yaml_config.load(path)["flow"]["stages"].items()
    # those that want published weights are left out here
    judged = {n for n, s in stages if s.get("labels", True) and not s.get("optional")}
    assert {row["stage"] for row in rows} == judged
    assert {row["budget"] for row in rows} == {"12 images", "100 %"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_what_the_header_offers_can_be_written(path):
    """Every key=value in the comment on top is one that the config takes."""
    header = " ".join(line[1:] for line in path.read_text().split("dataset:")[0].splitlines())
    key = r"(?:dataset|model|trainor|flow)\.[\w.-]+="
    offered = re.findall(rf"(?<!\S)({key}[^\s']+)|'({key}[^']+)'", header)
    words = [(plain or quoted).rstrip(".,;") for plain, quoted in offered if "DIR" not in plain]
    dataset = yaml_config.load(path)["dataset"]
    asked = [f"dataset.{k}=images" for k in ("root", "manifest") if dataset.get(k) == "???"]
    load_config(path, [*asked, *words, "name=run"])
