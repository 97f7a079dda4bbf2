"""A flow: what is run, what is taken from before, what is compared, and how it ends."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from vilmedic_ssl.cli import main
from vilmedic_ssl.data.budget import Budget
from vilmedic_ssl.data.datasets.manifest import read_table
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.flow import FlowSettings, Stage, slug, steps, told
from vilmedic_ssl.executors.predictions import Predictions, read_predictions
from vilmedic_ssl.executors.trainor import Trainor
from vilmedic_ssl.experiment import load_config, training

CNN = {"proto": "CNN", "backbone": "test_resnet", "in_chans": 1}
CLASSIFIER = {"proto": "Classifier", "cnn": CNN}


def flow(phantom, folder, **more):
    """A flow with every kind of stage, in a few steps."""
    stages = {
        "pretrain": {
            "labels": False,
            "dataset": {"transform": {"views": 2}},
            "model": {"proto": "SimCLR", "cnn": CNN},
            "trainor": {"batch_size": 16},
        },
        "supervised": {"model": CLASSIFIER, "trainor": {}},
        "linear": {"after": "pretrain", "judge": "linear_probe"},
        "random": {"judge": "knn", "model": {"proto": "SimCLR", "cnn": CNN}},
        "finetune": {"after": "pretrain", "model": CLASSIFIER, "trainor": {}},
        "distil": {
            "after": "finetune",
            "unlabelled": "keep",
            "model": {"proto": "Distillation", "cnn": CNN},
            "trainor": {},
        },
    }
    node = {
        "name": "flow",
        "ckpt_dir": str(folder),
        "num_workers": 0,
        "device": "cpu",
        "dataset": {
            "proto": "Manifest",
            "manifest": str(phantom / "manifest.csv"),
            "label": "dominant",
            "transform": {
                "resize": 32,
                "crop": 32,
                "channels": "gray",
                "views": 1,
                "cache": True,
                "train": [{"RandomRotation": {"degrees": 5}}],
            },
        },
        "trainor": {
            "optim_params": {"lr": 1e-3},
            "batch_size": 16,
            "epochs": 50,
            "max_steps": 2,
        },
        "flow": {
            "seeds": [0, 1],
            "budgets": [{"samples": 12}, {"fraction": 1.0}],
            "baseline": "supervised",
            "draws": 40,
            "stages": stages,
        },
    }
    node["flow"].update(more)
    path = folder / "flow.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(node, sort_keys=False))
    return path


def test_every_kind_of_stage_ends_in_one_table(phantom, tmp_path, capfd):
    path = flow(phantom, tmp_path)
    assert main(["train", str(path)]) == 0
    told = capfd.readouterr()
    folder = tmp_path / "flow"
    with (folder / "flow.csv").open() as file:
        rows = list(csv.DictReader(file))
    judged = {"supervised", "linear", "random", "finetune", "distil"}
    assert {row["stage"] for row in rows} == judged
    assert {row["budget"] for row in rows} == {"12 images", "100 %"}
    assert len(rows) == len(judged) * 2 * 2  # two budgets, two metrics
    few = [row for row in rows if row["budget"] == "12 images"]
    assert all(0 < float(row["images"]) <= 12 for row in few)
    for row in rows:  # few test patients: an interval, or why there is none
        if row["low"]:
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        else:
            assert row["interval"].startswith("no interval: ")
    assert all((row["minus"] == "") == (row["stage"] == "supervised") for row in rows)
    assert "finetune against supervised, by accuracy" in told.out
    page = (folder / "flow.html").read_text()
    assert "learning" in page.lower() and (folder / "learning_curve.png").is_file()

    # the labels differ from seed to seed, the pretraining is one per seed
    assert len(list(folder.glob("pretrain-*"))) == 1
    assert len(list(folder.glob("pretrain-*/last_*.pth"))) == 2
    # once more: nothing to do, the same numbers
    before = (folder / "flow.csv").read_text()
    assert main(["train", str(path)]) == 0
    assert " 0 to do" in capfd.readouterr().err
    assert main(["ensemble", str(folder / "flow.yml")]) == 0
    assert (folder / "flow.csv").read_text() == before
    assert "has not been run" not in capfd.readouterr().out
    assert not (folder / "comparisons").exists()  # it is the same one
    # its data is that of the other verbs too
    assert main(["split", str(path), "--out", str(tmp_path / "splits.json")]) == 0
    assert main(["audit", str(path), "--out", str(tmp_path / "audit")]) == 0
    # a stage alone, from the config it left behind
    capfd.readouterr()
    (student,) = folder.glob("distil-12*")
    assert main(["ensemble", str(student / "config_0.yml"), "num_workers=0"]) == 0


def test_a_killed_flow_goes_on(phantom, tmp_path, monkeypatch, capfd):
    """Stopped inside a stage that has a best checkpoint and no last one yet, it ends as if it had
    not been.
    """
    small = {"seeds": [0], "budgets": [{"samples": 12}]}
    whole = flow(phantom, tmp_path / "whole", **small)
    assert main(["train", str(whole)]) == 0
    path = flow(phantom, tmp_path / "cut", **small)
    real, ran = training.train, []

    def dies(config, *, audit=True, rehearse=False):
        if rehearse:
            return real(config, audit=audit, rehearse=True)
        ran.append(config["name"])
        if len(ran) == 3:
            cut = {**config["trainor"], "max_steps": 1}
            folder = real({**config, "trainor": cut}, audit=audit)
            (folder / "last_0.pth").unlink()
            assert list(folder.glob("*.pth"))
            raise KeyboardInterrupt
        return real(config, audit=audit)

    monkeypatch.setattr(training, "train", dies)
    assert main(["train", str(path)]) == 130
    monkeypatch.setattr(training, "train", real)
    capfd.readouterr()
    assert main(["train", str(path)]) == 0
    assert "resumed from" in capfd.readouterr().err
    first, second = (p.parent / "flow" for p in (whole, path))
    assert (first / "flow.csv").read_text() == (second / "flow.csv").read_text()
    for file in first.glob("*/last_0.pth"):
        other = second / file.relative_to(first)
        a, b = (checkpoint.read(p)["model"] for p in (file, other))
        assert all((a[name] == b[name]).all() for name in a), file


def test_a_planted_leak_stops_the_flow_and_names_the_patient(phantom, tmp_path, capfd):
    folder = tmp_path / "leaky"
    shutil.copytree(phantom, folder)
    rows = read_table(folder / "manifest.csv")
    train = next(row for row in rows if row["split"] == "train")
    test = next(row for row in rows if row["split"] == "test")
    test["patient"] = train["patient"]
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path = flow(folder, tmp_path / "ckpt")
    assert main(["train", str(path)]) == 4
    assert train["patient"] in capfd.readouterr().err
    assert not list((tmp_path / "ckpt/flow").glob("*/last_*"))


def test_what_cannot_be_had_is_left_out_and_said(phantom, tmp_path, capfd):
    path = flow(phantom, tmp_path, seeds=[0], budgets=[{"samples": 12}])
    node = yaml.safe_load(path.read_text())
    stages = node["flow"]["stages"]
    node["flow"]["stages"] = {
        "supervised": stages["supervised"],
        "foreign": {"init_from": "nowhere.pth", "optional": True, **stages["supervised"]},
    }
    path.write_text(yaml.safe_dump(node, sort_keys=False))
    assert main(["train", str(path)]) == 0
    assert "foreign, 12 images, seed 0 was left out" in capfd.readouterr().out
    assert main(["ensemble", str(path)]) == 0
    assert "foreign, 12 images, seed 0 has not been run" in capfd.readouterr().out
    held = json.loads((tmp_path / "flow/flow.json").read_text())
    assert {row["stage"] for row in held["rows"]} == {"supervised"}
    node["flow"]["stages"]["foreign"]["optional"] = False
    path.write_text(yaml.safe_dump(node, sort_keys=False))
    assert main(["train", str(path)]) == 2
    assert "nowhere.pth" in capfd.readouterr().err


def test_a_patient_of_the_pretraining_data_is_not_tested_on(phantom, tmp_path, capfd):
    """Pretraining on other data, in which a test patient is a training patient."""
    folder = tmp_path / "other"
    shutil.copytree(phantom, folder)
    rows = read_table(folder / "manifest.csv")
    for row in rows:
        row["split"] = "train"
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path = flow(phantom, tmp_path / "ckpt", seeds=[0], budgets=[{"samples": 12}])
    node = yaml.safe_load(path.read_text())
    own = {"manifest": str(folder / "manifest.csv"), "transform": {"views": 2}}
    node["flow"]["stages"]["pretrain"]["dataset"] = own
    path.write_text(yaml.safe_dump(node, sort_keys=False))
    assert main(["train", str(path)]) == 4
    told = capfd.readouterr().err
    assert "pretrain:train" in told and "patient" in told
    assert not list((tmp_path / "ckpt/flow").glob("*/last_*"))


STAGES = {
    "pretrain": Stage(labels=False, model={"proto": "A"}, trainor={"lr": 1}),
    "linear": Stage(after="pretrain", judge="linear_probe"),
    "fine": Stage(after="pretrain", model={"proto": "B"}, trainor={"lr": 2}),
    "base": Stage(model={"proto": "B"}, trainor={"lr": 3}),
}


def keys_of(stages, data="d", **shared):
    settings = FlowSettings(stages=stages, seeds=[0, 1], budgets=[Budget(samples=5), Budget()])
    plan = list(steps(settings, shared, dict.fromkeys(stages, data)))
    return {(s.name, s.budget and told(s.budget), s.seed): s.key for s in plan}


def test_a_step_is_named_by_all_that_decides_what_comes_out():
    keys = keys_of(STAGES)
    assert len(keys) == 2 * (1 + 3 * 2)
    assert keys["fine", "100 %", 0] == keys["fine", "100 %", 1]  # seeds share a folder
    assert keys == keys_of(STAGES, device="cuda", num_workers=3)
    assert not set(keys.values()) & set(keys_of(STAGES, data="other").values())
    other = {**STAGES, "pretrain": Stage(labels=False, model={"proto": "A"}, trainor={"lr": 9})}
    changed = {name for (name, *_), key in keys_of(other).items() if key not in keys.values()}
    assert changed == {"pretrain", "linear", "fine"}


@pytest.mark.parametrize(
    "stages, sentence",
    [
        ({"a": Stage(after="b", judge="knn")}, "no stage 'b' before it"),
        ({"a": Stage()}, "write a model"),
        ({**STAGES, "x": Stage(after="pretrain")}, "write linear_probe or knn"),
        ({"a": STAGES["pretrain"]}, "none has labels"),
        ({"a b": STAGES["base"]}, "letters, digits"),
        ({"a": Stage(labels=False, judge="knn", model={}, trainor={})}, "judged by another one"),
        ({"a": Stage(labels=False, model={})}, "is there to be trained"),
        ({"a": Stage(model={})}, "an untrained classifier knows nothing"),
        ({**STAGES, "x": Stage(after="pretrain", model={}, judge="knn")}, "learns nothing"),
        ({**STAGES, "x": Stage(after="linear", model={}, trainor={})}, "linear trains nothing"),
        ({**STAGES, "x": Stage(after="base", judge="knn", ckpt="last")}, "x.ckpt: it trains"),
    ],
)
def test_a_flow_that_cannot_run_says_so(stages, sentence):
    with pytest.raises(ConfigError, match=sentence):
        FlowSettings(stages=stages)


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"seeds": [0, 0]}, "write different ones"),
        ({"seeds": [-1]}, "write different ones"),
        ({"budgets": [Budget(samples=5), Budget(samples=5)]}, "5 images stands there twice"),
        ({"budgets": [Budget(samples=5, unlabelled="keep")]}, "a stage says"),
        ({"split": "train"}, "train is what is learned from"),
        ({"baseline": "bass"}, "did you mean 'base'"),
    ],
)
def test_a_comparison_without_meaning_is_refused(keys, sentence):
    with pytest.raises(ConfigError, match=sentence):
        FlowSettings(stages=STAGES, **keys)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["flow.stages.linear.judge=classifier"], "write linear_probe or knn"),
        (["flow.stages.finetune.trainor.early_stop_metric=acuracy"], "'acuracy' is not"),
        (["flow.stages.random.trainor={}", "flow.stages.random.judge=null"], "no class scores"),
        (["flow.stages.supervised.labels=false", "flow.baseline=linear"], "learns from labels"),
        (["flow.stages.distil.after=null"], "name the stage that is the teacher"),
        (["flow.stages.distil.after=pretrain"], "which gives no class scores to learn from"),
        (["flow.stages.pretrian.trainor.epochs=1"], "did you mean 'pretrain'"),
        (["dataset.label=null", "dataset.labels=[Cardiomegaly]"], r"write \[auroc, auprc\]"),
        (["name=../x"], "folder name below"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(
    words, sentence, phantom, tmp_path, capfd
):
    path = flow(phantom, tmp_path)
    assert main(["train", str(path), *words]) == 2
    assert re.search(sentence, capfd.readouterr().err)
    assert not list(tmp_path.glob("**/last_*"))


UNFIT = {
    "flow.budgets=[{samples: 1}]": r"supervised, 1 images, seed 0: budget: .*takes no patient",
    "flow.budgets=[{fraction: 0.001}]": r"write fraction: 0\.\d+ or more",
    "flow.budgets=[{samples_per_class: 1, keep: {Edemma: 0.5}}]": "budget.keep: there is no class",
    "flow.budgets=[{ids: none.txt}]": "there is no none.txt",
    "flow.stages.pretrain.budget={samples: 1}": "pretrain: budget: .*takes no patient",
    "flow.stages.distil.trainor.sampling=balanced": "some training images have no label",
    "flow.stages.finetune.model.cnn.backbone=resnet_none": "finetune, .*backbone",
    "flow.stages.random.model.cnn.backbone=resnet_none": "random, 12 images, seed 0: .*backbone",
    "flow.stages.finetune.model.cnn.backbone=test_vit": "finetune, 12 images, seed 0: .*tensors",
    "flow.stages.distil.dataset.transform.train=[{RandomRotatio: {}}]": "distil, .*RandomRotatio",
    "flow.stages.pretrain.dataset.transform.views=1": "pretrain, seed 0: .*views",
    "flow.stages.finetune.trainor.optimizer=Adamm": "finetune, .*Adamm",
    "flow.stages.finetune.trainor.optim_params.lr=-1": "finetune, .*optim_params.lr",
    "flow.stages.distil.trainor.optim_params.momentom=1": "distil, .*momentom",
    "flow.stages.finetune.trainor.lr_decay=stepp": "finetune, .*lr_decay",
    "flow.stages.finetune.trainor.lr_decay_params={gama: 1}": "finetune, .*lr_decay_params.gama",
    "flow.stages.finetune.trainor.layer_decay=2": "finetune: .*layer_decay",
    "flow.stages.supervised.validator.splits=[valid]": "supervised, .*'valid'",
    "flow.stages.finetune.validator.metrics=[top1]": "finetune, .*top1",
    "flow.stages.finetune.validator.reconstructions=4": "finetune, .*reconstructions",
    "flow.stages.finetune.model.selector=9": "finetune, .*selector",
    "flow.stages.finetune.model.forward_batch_size=0": "finetune, .*forward_batch_size",
    "flow.stages.supervised.model.classes=3": "supervised, .*model.classes: 3",
    "flow.stages.supervised.model.task=findings": "supervised, .*model.task",
    "flow.stages.supervised.init_from=nowhere.pth": "supervised, .*nowhere.pth",
    "flow.stages.pretrain.dataset.transform.channels=rgb": "pretrain, .*images have 3 channels",
    "flow.stages.linear.dataset.label=view": "linear: scored on other images or labels",
    "ckpt_dir=file/x": "cannot write to file/x",
}


@pytest.mark.parametrize("word", UNFIT)
def test_every_kind_of_misfit_is_said_before_anything_is_trained(
    word, phantom, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(Trainor, "fit", lambda self: pytest.fail("a stage was trained"))
    path = flow(phantom, tmp_path, seeds=[0], budgets=[{"samples": 12}])
    audit = [] if word.startswith("ckpt_dir") else ["audit=null"]
    assert main(["train", str(path), *audit, word]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert re.search(UNFIT[word], last), last
    assert not list(tmp_path.glob("**/last_*")) and not list(tmp_path.glob("flow/rehearsal-*"))


def test_images_that_were_learned_from_are_not_tested_on(phantom, tmp_path, monkeypatch, capfd):
    """Whether or not the data is audited: those of train, and those of weights from elsewhere."""
    path = flow(phantom, tmp_path, seeds=[0], budgets=[{"samples": 12}])
    node = yaml.safe_load(path.read_text())
    alone = {k: node[k] for k in ("dataset", "trainor", "device", "num_workers")}
    words = {"name": "elsewhere", "ckpt_dir": str(tmp_path), "model": CLASSIFIER, **alone}
    turned = tmp_path / "turned.json"
    assert main(["split", str(path), "--seed", "5", "--out", str(turned)]) == 0
    words["split_file"] = str(turned)
    (tmp_path / "one.yml").write_text(yaml.safe_dump(words))
    assert main(["train", str(tmp_path / "one.yml"), "audit=null"]) == 0
    monkeypatch.setattr(Trainor, "fit", lambda self: pytest.fail("a stage was trained"))
    start = f"flow.stages.supervised.init_from={tmp_path / 'elsewhere'}"
    capfd.readouterr()
    assert main(["train", str(path), "audit=null", start]) == 4
    assert "are among those a stage learns from" in capfd.readouterr().err


def test_names_of_budgets():
    budgets = [Budget(fraction=0.01), Budget(samples=100), Budget(samples_per_class=10), Budget()]
    assert [told(b) for b in budgets] == ["1 %", "100 images", "10 per class", "100 %"]
    assert told(Budget(keep={"a": 0.5}, seed=0)) == "100 %, a 50 %, label seed 0"
    more = [Budget(keep={"a": 0.5}), Budget(keep={"a": 0.4}), Budget(samples=100, seed=0)]
    slugs = [slug(b) for b in [*budgets, *more]]
    assert len(set(slugs)) == 7 and all(" " not in s and "/" not in s for s in slugs)


def test_a_list_of_labels_that_grew_is_another_budget(tmp_path):
    listed = tmp_path / "labels.txt"

    def keys():
        settings = FlowSettings(stages=STAGES, budgets=[Budget(ids=str(listed))], seeds=[0])
        return {s.name: s.key for s in steps(settings, {}, dict.fromkeys(STAGES, "d"))}

    listed.write_text("a\n")
    before = keys()
    listed.write_text("a\nb\n")
    changed = {name for name, key in keys().items() if key != before[name]}
    assert changed == {"linear", "fine", "base"}


def test_predictions_are_compared_row_by_row(tmp_path):
    y = np.array([0, 1, 2])
    one = Predictions(["a", "b", "c"], None, y, ["x", "y", "z"], np.eye(3), 3)
    order = [2, 0, 1]
    turned = Predictions(["c", "a", "b"], None, y[order], one.label_names, np.eye(3)[order], 3)
    assert np.array_equal(turned.like(one, "s").scores, one.scores)
    for other in (replace(turned, labels=y), replace(turned, ids=["c", "a", "d"])):
        with pytest.raises(UserError, match=r"flow.stages.s: scored on other images or labels"):
            other.like(one, "s")
    one.save(tmp_path / "p.npz")
    assert np.array_equal(read_predictions(tmp_path / "p.npz").scores, one.scores)
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:200])
    with pytest.raises(UserError, match="is damaged"):
        read_predictions(tmp_path / "p.npz")


def test_a_wrong_key_of_a_stage_is_named(phantom, tmp_path):
    path = flow(phantom, tmp_path)
    with pytest.raises(ConfigError, match=r"flow.stages.finetune: model.selectr"):
        load_config(path, ["flow.stages.finetune.model.selectr=1"])
    with pytest.raises(ConfigError, match=r"flow.stages.finetune.aftr: there is no such key"):
        load_config(path, ["flow.stages.finetune.aftr=pretrain"])
    assert Path(tmp_path, "flow").exists() is False
