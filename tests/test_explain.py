"""The plug-ins that explain, masks through the evaluation transform, and the verb `explain`."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import resume
import timm
import torch
from methods import cases, node_of
from PIL import Image

from vilmedic_ssl.cli import main
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.masks import read_masks
from vilmedic_ssl.data.transforms import Pipeline, Transform
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.features import Features
from vilmedic_ssl.experiment import train
from vilmedic_ssl.post_processing import _heat
from vilmedic_ssl.post_processing._inside import NUMBERS
from vilmedic_ssl.post_processing._map_page import surest
from vilmedic_ssl.post_processing.grad_cam import grad_cam
from vilmedic_ssl.post_processing.occlusion import occlusion
from vilmedic_ssl.schema import build

PICTURE = {"resize": 32, "crop": 32, "channels": "gray", "mean": [0.5], "std": [0.25]}
FINDINGS = ["Cardiomegaly", "Consolidation", "Pneumothorax"]


def manifest(phantom, **more):
    return {
        "proto": "Manifest",
        "manifest": str(phantom / "manifest.csv"),
        "masks": "boxes.csv",
        "transform": PICTURE,
        **(more or {"label": "dominant"}),
    }


def features(phantom, node, dataset=None, models=1, splits=("test",)):
    """Features of untrained networks: what they say does not matter here."""

    def made():
        torch.manual_seed(0)
        return build(node, where="model").eval()

    return Features(
        lambda split: build(dataset or manifest(phantom), Context(split), where="dataset"),
        [made() for _ in range(models)],
        made,
        splits=list(splits),
        tag="best-1_0",
        seed=0,
        batch_size=64,
        workers=0,
        device=torch.device("cpu"),
    )


def classifier(**more):
    return node_of("Classifier", "batch norm", classes=6, task="classes", **more)


# ---------------------------------------------------------------- masks


def test_masks_of_the_cohort_belong_to_true_findings(phantom):
    data = build(manifest(phantom), Context("test"), where="dataset")
    none = data.label_names.index("No Finding")
    for i, c in enumerate(data.labels):
        inside = data.mask(i, data.label_names[c])
        assert (inside is None) == (c == none)
        if inside is not None:
            assert inside.dtype == torch.bool and inside.shape == (32, 32) and inside.any()
    assert data.mask(0, "nothing like it") is None
    without = build({**manifest(phantom), "masks": None}, Context("test"), where="dataset")
    assert without.mask(0, without.label_names[without.labels[0]]) is None
    assert without.fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    "evaluate",
    [
        None,
        [{"CenterCropShare": {"share": 0.5, "aspect": 1.0}}, {"EqualizeLuma": {"p": 1.0}}],
        [{"Compose": {"transforms": [{"CenterCrop": {"size": 20}}]}}],
        [{"Pad": {"padding": 3}}],
    ],
)
def test_a_mask_goes_where_the_picture_goes(evaluate):
    picture = torch.zeros(1, 60, 90)
    picture[:, 20:40, 35:60] = 1
    transform = Transform(resize=40, crop=24, channels="gray", evaluate=evaluate)
    pipeline = Pipeline(transform, channels="gray", random=False)
    inside = pipeline.mask(picture[0] > 0.5)
    seen = pipeline.evaluation(pipeline.prepare(picture))[0]
    assert inside.shape == seen.shape and inside.any()
    sure = (seen > 0.95) | (seen < 0.05)
    assert ((seen > 0.5) == inside)[sure].all()


def test_masks_add_up_and_mistakes_are_told(phantom, tmp_path):
    images = {"a.png"}
    rows = ["path,finding,mask", "a.png,x,one.png", "a.png,x,two.png"]
    for name, left in (("one", 0), ("two", 4)):
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[:2, left : left + 2] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    Image.fromarray(mask).save(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    (tmp_path / "manifest.csv").write_text("path,split,kind\na.png,test,x\n")
    node = {**manifest(tmp_path, label="kind"), "masks": "m.csv"}
    data = build({**node, "transform": {**PICTURE, "resize": 8, "crop": 8}}, Context("test"))
    assert data.mask(0, "x").sum() == 8
    with pytest.raises(UserError, match="no column 'finding'"):
        read_masks(tmp_path / "manifest.csv", images)
    with pytest.raises(UserError, match="names none"):
        read_masks(tmp_path / "m.csv", {"b.png"})
    with pytest.raises(UserError, match="dataset.masks: there is no"):
        read_masks(tmp_path / "n.csv", images)
    Image.fromarray(mask[:4]).save(tmp_path / "two.png")
    with pytest.raises(UserError, match="full size"):
        data.mask(0, "x")


# ---------------------------------------------------------------- plug-ins


def names_of(found, plugin="grad_cam", split="test"):
    prefix = f"{split}/{plugin}/"
    return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}


def test_numbers_and_picture_of_a_classifier(phantom, tmp_path):
    found = dict(grad_cam(features(phantom, classifier()), tmp_path, draws=30))
    picture = next(value for value in found.values() if not isinstance(value, (tuple, float)))
    assert picture.name == "grad_cam_best-1_0_test.png" and Image.open(picture).width > 500
    assert set(NUMBERS) <= names_of(found)
    assert "energy_inside/Pneumothorax" in names_of(found)
    assert not any("No Finding" in name for name in names_of(found))
    chance, low, high = found["test/grad_cam/chance"]
    assert 0.02 < low <= chance <= high < 0.2
    # the network is its own untrained one here
    assert found["test/grad_cam/minus_random_init/energy_inside"] == (0, 0, 0)
    value = found["test/grad_cam/energy_inside"][0]
    assert found["test/grad_cam/minus_chance/energy_inside"][0] == pytest.approx(value - chance)
    low, high = found["test/grad_cam/minus_chance/energy_inside"][1:]
    assert low < 0.1 and high > -0.1


@pytest.mark.parametrize(
    ("of", "overlay", "by"), [("each", "mask", "classifier"), ("true", "colour", "linear_probe")]
)
def test_other_pictures(phantom, tmp_path, of, overlay, by):
    keys = {"of": of, "overlay": overlay, "by": by, "classes": ["Pneumothorax", "Cardiomegaly"]}
    found = dict(grad_cam(features(phantom, classifier()), tmp_path, measured=0, n=2, **keys))
    assert len(found) <= 1  # nothing said of these two classes: no picture
    for path in found.values():
        assert Image.open(path).height > 100


def test_findings_and_several_checkpoints(phantom, tmp_path, capsys):
    data = manifest(phantom, labels=FINDINGS)
    made = features(phantom, node_of("SimCLR", "no norm"), data, models=2)
    found = dict(grad_cam(made, tmp_path, draws=0, layer="blocks.0"))
    assert "best one is explained" in capsys.readouterr().err
    assert isinstance(found["test/grad_cam/energy_inside"], float)
    assert {f"chance/{name}" for name in FINDINGS} <= names_of(found)
    alone = dict(grad_cam(features(phantom, node_of("SimCLR", "no norm"), data), tmp_path, draws=0))
    assert alone["test/grad_cam/chance"] == found["test/grad_cam/chance"]


def test_occlusion_and_data_without_masks(phantom, tmp_path):
    made = features(phantom, classifier())
    found = dict(occlusion(made, tmp_path, size=16, stride=16, measured=4, draws=20))
    assert {"chance", "energy_inside", "pointing_game"} <= names_of(found, "occlusion")
    plain = features(phantom, classifier(), {**manifest(phantom), "masks": None})
    assert not names_of(dict(grad_cam(plain, tmp_path)))
    with pytest.raises(UserError, match="stride"):
        dict(occlusion(made, tmp_path, size=8, stride=9))
    with pytest.raises(UserError, match="no class 'Pneumotorax'; did you mean"):
        dict(grad_cam(made, tmp_path, classes=["Pneumotorax"]))
    with pytest.raises(UserError, match="gives no class scores"):
        dict(
            grad_cam(features(phantom, node_of("SimCLR", "batch norm")), tmp_path, by="classifier")
        )


@pytest.mark.parametrize(("name", "encoder"), [c for c in cases() if "cnn" in node_of(*c)])
def test_every_method_is_explained(phantom, tmp_path, name, encoder):
    more = {"classes": 6, "task": "classes"} if name in ("Classifier", "Distillation") else {}
    if name == "Distillation":
        more["teacher"] = node_of("Classifier", encoder, classes=6, task="classes")
    made = features(phantom, node_of(name, encoder, **more))
    found = dict(grad_cam(made, tmp_path, n=0, measured=3, draws=0))
    assert 0 <= found["test/grad_cam/energy_inside"] <= 1


def test_the_surest_are_chosen():
    score = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.7, 0.3]])
    labels = np.array([0, 0, 1, 1, -1])
    assert surest(labels, score, 0, 5) == ([0, 1], [2])
    assert surest(labels, score, 1, 5) == ([3], [])
    many = np.array([[1, 0], [np.nan, 1], [0, 1], [1, 1], [1, np.nan]])
    assert surest(many, score, 0, 1) == ([0], [2])


# ---------------------------------------------------------------- the verb


@pytest.fixture(scope="module")
def film(phantom):
    with (phantom / "manifest.csv").open() as table:
        return str(phantom / next(row["path"] for row in csv.DictReader(table)))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A state dict with names and a wrapper's prefix, of a small network with three classes."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    path = tmp_path_factory.mktemp("foreign") / "w.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    return str(path)


@pytest.mark.parametrize(
    "more",
    [["--layer", "layer2"], ["--method", "occlusion", "--square", "16"], ["--class", "b"]],
)
def test_explain_foreign_weights(film, foreign, tmp_path, more, capsys):
    out = tmp_path / "e.png"
    words = ["explain", film, "--weights", foreign, "--backbone", "test_resnet", "--size", "64"]
    words += ["--classes", "a,b,c", "--beside", "random", "--out", str(out), *more]
    assert main(words) == 0, capsys.readouterr().err
    assert str(out) in capsys.readouterr().out and Image.open(out).width > 1000


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "write --backbone"),
        (["--backbone", "test_resnt"], "did you mean"),
        (["--backbone", "test_vit"], "correct --backbone"),
        (["--backbone", "test_resnet", "--class", "3"], "write 0 to 2"),
        (["--backbone", "test_resnet", "--classes", "a,b"], "2 names for 3 logits"),
        (["--backbone", "test_resnet", "--square", "9"], "--method occlusion"),
        (["--backbone", "test_resnet", "--out", "x.jpg"], ".png"),
        (["--backbone", "test_resnet", "--layer", "layer7"], "no 'layer7'"),
        (["--backbone", "test_resnet", "--weights", "no.pth"], "--weights: there is no"),
    ],
)
def test_explain_says_what_is_wrong(film, foreign, tmp_path, monkeypatch, more, told, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", film, "--weights", foreign, *more]) == 2
    assert told in capsys.readouterr().err


def test_the_picture_says_whose_map_is_empty(film, foreign, tmp_path, monkeypatch, capsys):
    content = torch.load(foreign, weights_only=True)
    head = content["state_dict"]["module.fc.weight"]
    head[0] = -head[0].abs()  # what is averaged before it is never below 0
    torch.save(content, tmp_path / "mine.pth")
    drawn = []
    page = _heat.page
    monkeypatch.setattr(
        _heat, "page", lambda blocks, *a, **keys: (drawn.extend(blocks), page(blocks, *a, **keys))
    )
    words = ["explain", film, "--weights", str(tmp_path / "mine.pth"), "--backbone", "test_resnet"]
    words += ["--beside", "random", "--class", "0", "--out", str(tmp_path / "e.png")]
    assert main(words) == 0
    assert drawn[0].columns == ["image", "mine.pth: nothing speaks for it", "untrained"]
    assert "classes; from the network's own classifier" in drawn[0].strips[0].caption
    assert "nothing in the image speaks for class 0 in the map of mine.pth" in (
        capsys.readouterr().err
    )


def test_explain_own_checkpoints(film, tiny, tmp_path, capsys):
    """One that classifies, by its own logit; one that does not, by a linear probe."""
    config = "config/SELFSUP/simclr-phantom.yml"
    assert main(["train", config, *tiny("ssl")]) == 0
    words = ["explain", film, "--weights", str(tmp_path / "ckpt/ssl")]
    out = ["--out", str(tmp_path / "e.png")]
    assert main([*words, *out]) == 2
    assert f"--data {tmp_path / 'ckpt/ssl/config_0.yml'}" in capsys.readouterr().err
    words += ["--data", str(tmp_path / "ckpt/ssl/config_0.yml")]
    assert main([*words, "--beside", "random", "--class", "Cardiomegaly", *out]) == 0
    assert main([*words, "--backbone", "resnet18"]) == 2
    assert "knows its own" in capsys.readouterr().err
    assert Image.open(tmp_path / "e.png").width > 1000


def test_class_names_come_with_the_checkpoint(film, tiny, tmp_path, capsys):
    """The data of the training is not needed, nor looked at; older checkpoints have numbers."""
    folder = train(resume.config_of("Classifier", [*tiny("own"), "trainor.max_steps=1"]))
    path = folder / "last_0.pth"
    content = checkpoint.read(path)
    content["config"]["dataset"]["manifest"] = str(tmp_path / "gone.csv")
    checkpoint.write(content, path)
    words = ["explain", film, "--weights", str(path), "--out", str(tmp_path / "e.png")]
    words.append("--overwrite")
    assert main([*words, "--class", content["label_names"][2]]) == 0
    assert main([*words, "--class", "nothing"]) == 2
    capsys.readouterr()
    content.pop("label_names")
    checkpoint.write(content, path)
    assert main([*words, "--class", "class 2"]) == 0
