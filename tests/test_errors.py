"""Wrong input ends in one sentence and exit code 2: what is wrong, where, what to write instead."""

from __future__ import annotations

import csv
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CONFIG, tiny_overrides
from PIL import Image

from vilmedic_ssl.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail, and returns its sentence."""

    def run(*argv: object, words: list[str]) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        err = capsys.readouterr().err
        lines = err.splitlines()
        assert "Traceback" not in err, err
        assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
        for word in words:
            assert word in lines[-1], lines[-1]
        return lines[-1]

    return run


@pytest.fixture
def train(refused: Refused, tiny: Callable[..., list[str]]) -> Refused:
    """The same for `train` on the cohort with some overrides."""
    return lambda *overrides, words: refused("train", CONFIG, *tiny(), *overrides, words=words)


@pytest.fixture(scope="module")
def trained(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, named tiny; read only."""
    folder = tmp_path_factory.mktemp("trained") / "ckpt"
    assert main(["train", str(CONFIG), *tiny_overrides(phantom, folder)]) == 0
    return folder / "tiny"


def manifest(folder: Path, rows: list[list[str]], encoding: str = "utf-8") -> Path:
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([["patient", "path", "split", "dominant"], *rows])
    return path


@pytest.fixture
def pictures(phantom: Path, tmp_path: Path) -> list[list[str]]:
    """Rows of a manifest in `tmp_path` with 32 training and 8 validation images beside it."""
    rows = []
    for i, source in enumerate(sorted(phantom.rglob("images/**/*.png"))[:40]):
        shutil.copy(source, tmp_path / f"{i}.png")
        rows.append([f"p{i}", f"{i}.png", "train" if i < 32 else "validate", "ab"[i % 2]])
    return rows


CONFIG_MISTAKES = {
    "typo in a section": (["trainer.epochs=1"], ["trainer", "did you mean 'trainor'"]),
    "typo in a key": (["trainor.epoch=1"], ["trainor.epoch", "did you mean 'epochs'"]),
    "typo deep down": (["model.cnn.bakbone=x"], ["model.cnn.bakbone", "'backbone'"]),
    "mistyped value": (["trainor.batch_size=many"], ["trainor.batch_size", "an integer", "'many'"]),
    "mistyped list": (["validator.splits=validate"], ["a list", "square brackets around it"]),
    "percent": (["train_fraction=1%"], ["train_fraction", "write 1 % as 0.01"]),
    "unknown model": (["model.proto=SimCRL"], ["model.proto", "did you mean 'SimCLR'"]),
    "unknown dataset": (["dataset.proto=Manifst"], ["dataset.proto", "did you mean 'Manifest'"]),
    "unknown backbone": (["model.cnn.backbone=resnet51"], ["cnn.backbone", "resnet51", "resnet5"]),
    "unknown layer": (
        ["model.cnn.output_layer=layer9"],
        ["cnn.output_layer", "'layer9'", "one of"],
    ),
    "bad option": (["model.cnn.options={depht: 3}"], ["cnn.options", "depht"]),
    "unknown optimizer": (["trainor.optimizer=AdanW"], ["trainor.optimizer", "'AdamW'"]),
    "optimizer argument": (["trainor.optim_params.lrr=1"], ["trainor.optim_params.lrr", "'lr'"]),
    "no lr": (["trainor.optim_params.lr=null"], ["trainor.optim_params.lr", "positive number"]),
    "negative lr": (["trainor.optim_params.lr=-1"], ["trainor.optim_params.lr", "positive number"]),
    "text lr": (["trainor.optim_params.lr=fast"], ["trainor.optim_params.lr", "'fast'"]),
    "unknown schedule": (["trainor.lr_decay=cosin"], ["trainor.lr_decay", "cosin"]),
    "schedule argument": (["trainor.lr_decay_params={warm: 1}"], ["trainor.lr_decay_params.warm"]),
    "negative batch": (["trainor.batch_size=-4"], ["trainor.batch_size: -4", "above 0"]),
    "zero epochs": (["trainor.epochs=0"], ["trainor.epochs: 0", "above 0"]),
    "negative seed": (["seed=-1"], ["seed: -1", "from 0"]),
    "negative workers": (["num_workers=-2"], ["num_workers: -2", "0 or more"]),
    "ema": (["trainor.ema=1.5"], ["trainor.ema", "0.999"]),
    "unknown device": (["device=tpu"], ["device", "'cuda'", "'cpu'"]),
    "no trainor": (["trainor=null"], ["trainor", "required"]),
    "unknown metric": (["validator.metrics=[top2]"], ["validator.metrics", "'top1'"]),
    "metric not computed": (["trainor.early_stop_metric=auroc"], ["early_stop_metric", "'auroc'"]),
    "unknown plug-in": (["ensemblor.post_processing=[lineer_probe]"], ["'linear_probe'", ".0"]),
    "plug-in key": (["ensemblor.post_processing.1.linear_probe.c=1"], ["linear_probe.c", "key"]),
    "plug-in module": (["plugins=[no_such_thing]"], ["plugins", "no_such_thing", "PYTHONPATH"]),
    "resolver call": (["dataset.root=${oc.env:HOME}"], ["dataset.root", "allow_env=true"]),
    "dangling reference": (["dataset.root=${a.b}"], ["dataset.root", "a.b"]),
    "not an override": (["name"], ["'name'", "key=value"]),
    "name with ..": (["name=../elsewhere"], ["name: '../elsewhere'", "below ckpt_dir"]),
    "absolute name": (["name=/tmp/x"], ["name: '/tmp/x'", "below ckpt_dir"]),
    "empty name": (["name=''"], ["name: ''"]),
    "one view": (["dataset.transform.views=1"], ["write dataset.transform.views=2"]),
    "no view": (["dataset.transform.views=0"], ["dataset.transform.views", "1 or more"]),
    "unknown transform": (
        ["dataset.transform.train=[Blur]"],
        ["dataset.transform.train.0", "Blur"],
    ),
    "unknown preset": (["dataset.transform.train=simclear"], ["simclear", "'simclr'"]),
    "random evaluation": (["dataset.transform.evaluate=simclr"], ["evaluate", "deterministic"]),
    "two means": (["dataset.transform.mean=[0.1, 0.2]"], ["dataset.transform.mean", "gray"]),
    "projection width": (["model.projection.projection_dim=0"], ["projection_dim: 0"]),
    "chunk": (["model.forward_batch_size=-1"], ["model.forward_batch_size: -1"]),
    "dropout": (["model.cnn.dropout_out=2.0"], ["dropout_out: 2.0"]),
    "clip": (["trainor.clip_grad_norm=0"], ["trainor.clip_grad_norm: 0"]),
    "evaluation batch": (["ensemblor.batch_size=0"], ["ensemblor.batch_size: 0"]),
    "crop": (["dataset.transform.crop=-3"], ["dataset.transform.crop"]),
    "resize": (["dataset.transform.resize=0"], ["dataset.transform.resize"]),
    "views of a colour net": (
        [
            "dataset.transform.channels=rgb",
            "dataset.transform.mean=null",
            "dataset.transform.std=null",
        ],
        ["model.cnn.in_chans"],
    ),  # fmt: skip
    "embedding width": (["model.projection.visual_embedding_dim=7"], ["visual_embedding_dim", "7"]),
    "temperature": (["model.loss.tau=0"], ["tau", "0"]),
    "missing manifest": (["dataset.manifest=/no/where.csv"], ["dataset.manifest", "/no/where.csv"]),
    "missing column": (["dataset.label=dominnt"], ["'dominnt'", "did you mean 'dominant'"]),
    "empty split": (["validator.splits=[tset]"], ["'tset'", "test, train, validate"]),
    "empty filter": (["dataset.filter={view: PX}"], ["dataset.filter", "PX"]),
    "resume nothing": (["ckpt=last"], ["ckpt=last", "last_0.pth", "train first"]),
    "resume no best": (["ckpt=best"], ["ckpt=best", "train first"]),
    "resume no file": (["ckpt=nothing.pth"], ["nothing.pth", "train first"]),
}


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_mistakes_in_a_config(train, tmp_path, mistake):
    overrides, words = CONFIG_MISTAKES[mistake]
    train(*overrides, words=words)
    assert not list((tmp_path / "ckpt").rglob("*.pth"))  # the corrected command finds room


def test_missing_config(refused, tmp_path):
    refused("train", tmp_path / "x.yml", words=["there is no config file", "x.yml"])


def test_missing_key(refused, tmp_path):
    path = tmp_path / "x.yml"
    path.write_text("name: x\nmodel: {proto: SimCLR, cnn: {backbone: test_resnet}}\n")
    refused("train", path, words=["dataset", "required"])
    path.write_text("name: x\ndataset: {proto: Manifest}\nmodel: {proto: SimCLR, cnn: {}}\n")
    refused("train", path, words=["dataset.manifest", "required (text)"])


def test_a_key_that_must_be_given(refused):
    path = CONFIG.parent / "simclr-folder.yml"
    refused("train", path, "name=x", words=["dataset.root", "write dataset.root="])


def test_unreadable_yaml(refused, tmp_path):
    path = tmp_path / "x.yml"
    path.write_text("name: x\nmodel: [1, 2\n")
    refused("train", path, words=["x.yml, line", "not readable YAML"])
    path = tmp_path / "my table.csv"
    path.write_text("path,diagnosis\na.png,x\n")
    refused("split", path, "--out", tmp_path / "s.json", words=[f"'dataset.manifest={path}'"])


def test_include_cycle(refused, tmp_path):
    (tmp_path / "a.yml").write_text("includes: [b.yml]")
    (tmp_path / "b.yml").write_text("includes: [a.yml]")
    refused("train", tmp_path / "a.yml", words=["includes itself", "a.yml -> b.yml -> a.yml"])


def test_missing_image(train, pictures, tmp_path):
    (tmp_path / "7.png").unlink()
    train(f"dataset.manifest={manifest(tmp_path, pictures)}", words=["7.png", "no such"])
    for row in pictures:
        row[1] = f"a\\{row[1]}"
    words = ["has backslashes, write 'a/"]
    train(f"dataset.manifest={manifest(tmp_path, pictures)}", "audit=null", words=words)


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image(train, pictures, tmp_path, workers):
    for i in range(31):  # any batch meets one; where none is left, the audit says so
        data = (tmp_path / f"{i}.png").read_bytes()
        (tmp_path / f"{i}.png").write_bytes(data[: len(data) // 2])
    path = manifest(tmp_path, pictures)
    words = [".png: cannot be decoded", "truncated", "fetch it again"]
    said = train(f"dataset.manifest={path}", f"num_workers={workers}", words=words)
    assert said.startswith(f"error: {tmp_path}")


def test_images_of_different_size(train, pictures, tmp_path):
    overrides = ["dataset.transform.train=[]"]
    for i in range(0, 32, 2):
        Image.new("L", (40, 80)).save(tmp_path / f"{i}.png")
    path = manifest(tmp_path, pictures)
    train(f"dataset.manifest={path}", *overrides, words=["differ in shape", "transform.crop"])


def test_manifest_that_is_not_utf8(train, pictures, tmp_path):
    rows = [[row[0], row[1], row[2], "Ödem"] for row in pictures]
    path = manifest(tmp_path, rows, encoding="latin-1")
    train(f"dataset.manifest={path}", words=["manifest.csv", "save it as UTF-8"])


def test_manifest_with_a_path_twice(train, pictures, tmp_path):
    path = manifest(tmp_path, [*pictures, pictures[3]])
    train(f"dataset.manifest={path}", words=["3.png stands in two rows of split 'train'", "keep"])


@pytest.mark.parametrize("text", ["", "patient,path,split\n"])
def test_manifest_without_rows(train, tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    train(f"dataset.manifest={tmp_path / 'm.csv'}", words=["m.csv has no rows"])


def test_manifest_that_leads_out_of_its_folder(train, pictures, tmp_path):
    pictures[0][1] = "../secret.png"
    train(f"dataset.manifest={manifest(tmp_path, pictures)}", words=["../secret.png", "leads out"])


def test_labels_and_images_of_different_number(refused, phantom, tmp_path):
    for split in ("train", "validate", "test"):
        for file in ("image", "label"):
            shutil.copy(phantom / f"{split}.{file}.tok", tmp_path)
    with (tmp_path / "train.label.tok").open("a") as file:
        file.write("No Finding\n")
    n = len((tmp_path / "train.image.tok").read_text().splitlines())
    part = f"{{root: {tmp_path}, file: image.tok, image_path: {phantom}, views: 2}}"
    refused(
        "train",
        CONFIG.parent / "simclr-mimic.yml",
        f"ckpt_dir={tmp_path / 'ckpt'}",
        "dataset=null",
        "dataset.proto=ImLabel",
        f"dataset.image={part}",
        f"dataset.label={{root: {tmp_path}, file: label.tok}}",
        "device=cpu",
        words=["'train'", f"image {n}, label {n + 1}", "align"],
    )


# ---- runs and checkpoints ------------------------------------------------------------------------


def test_an_existing_run(refused, trained, phantom):
    overrides = tiny_overrides(phantom, trained.parent)
    words = ["already holds last_0.pth", "ckpt=last", "overwrite=true", "name="]
    refused("train", CONFIG, *overrides, words=words)


class Touch:
    """Pickled, this creates a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def bad_checkpoints(folder: Path) -> dict[str, Path]:
    (folder / "text.pth").write_text("hello, this is no checkpoint")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "pickle.pth").write_bytes(pickle.dumps(Touch(folder / "owned"), protocol=2))
    torch.save({"model": {}, "x": Touch(folder / "owned")}, folder / "object.pth")
    torch.save({"weights": torch.zeros(2)}, folder / "foreign.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"format": 99, "model": {}}, folder / "newer.pth")
    torch.save({"model": {}}, folder / "bare.pth")
    return {path.stem: path for path in folder.glob("*.pth")}


@pytest.mark.parametrize(
    "kind", ["text", "empty", "pickle", "object", "foreign", "list", "newer", "bare"]
)
@pytest.mark.parametrize("verb", ["train", "ensemble"])
def test_a_bad_checkpoint(refused, trained, phantom, tmp_path, kind, verb):
    path = bad_checkpoints(tmp_path)[kind]
    overrides = [*tiny_overrides(phantom, trained.parent), f"ckpt={path}"]
    refused(verb, CONFIG, *overrides, words=[f"{kind}.pth", "checkpoint"])
    assert not (tmp_path / "owned").exists()  # nothing in it was executed


@pytest.mark.parametrize("verb", ["train", "ensemble"])
@pytest.mark.parametrize(
    ("change", "name"),
    [("model.cnn.backbone=test_vit", "cnn.net."), ("model.projection.projection_dim=7", "(7,")],
)
def test_a_checkpoint_of_another_network(refused, trained, phantom, verb, change, name):
    shape = ["model.cnn.options={img_size: 32}"] if "vit" in change else []
    overrides = [*tiny_overrides(phantom, trained.parent), "ckpt=last", change, *shape]
    words = ["last_0.pth", "does not fit the model", name, "the config it was trained with"]
    refused(verb, CONFIG, *overrides, words=words)


def test_resuming_with_another_optimizer_or_other_data(refused, trained, phantom):
    overrides = [*tiny_overrides(phantom, trained.parent), "ckpt=last"]
    other = [*overrides, "dataset.filter={view: PA}"]
    refused("train", CONFIG, *other, words=["last_0.pth", "split was another one"])


@pytest.mark.parametrize("mode", ["worst-1", "best-x", "best-0", "first", "no/such.pth", ""])
def test_mode(refused, trained, phantom, mode):
    overrides = [*tiny_overrides(phantom, trained.parent), f"ensemblor.mode='{mode}'"]
    refused("ensemble", CONFIG, *overrides, words=["ensemblor.mode", f"{mode!r}", "best-N"])


def test_ensembling_an_unknown_run_or_split(refused, trained, phantom):
    overrides = tiny_overrides(phantom, trained.parent, "never")
    refused("ensemble", CONFIG, *overrides, words=["no run folder", "never", "train it first"])
    overrides = [*tiny_overrides(phantom, trained.parent), "ensemblor.splits=[tset]"]
    refused("ensemble", CONFIG, *overrides, words=["'tset'", "test, train, validate"])


def test_a_run_folder_that_cannot_be_made(train, tmp_path):
    (tmp_path / "file").write_text("in the way")
    train(f"ckpt_dir={tmp_path / 'file'}", words=["cannot write to", "change ckpt_dir"])


def test_unknown_download(refused, tmp_path):
    words = ["'fantom'", "did you mean 'phantom'"]
    refused("download", "fantom", "--root", tmp_path, words=words)


def test_the_command_line_itself(capsys):
    for argv in ([], ["trian"], ["train"], ["train", "x.yml", "--flag"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
        assert "usage: vilmedic-ssl" in capsys.readouterr().err
