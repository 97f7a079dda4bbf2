"""Active learning: scores without labels, exact counts, and models that know too much."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY

from vilmedic_ssl.cli import main
from vilmedic_ssl.data.budget_rows import read_ids
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.selection import (
    CUT,
    NOISE,
    disagreement_of,
    entropy_of,
    highest,
    perturbed,
)
from vilmedic_ssl.experiment import load_config
from vilmedic_ssl.experiment.data import dataset_of
from vilmedic_ssl.experiment.settings import typed
from vilmedic_ssl.experiment.training import _steered_by_labels
from vilmedic_ssl.schema import plain

SIMCLR = REPOSITORY / "config/SELFSUP/simclr-phantom.yml"
CLASSIFIER = """
dataset: {proto: Manifest, manifest: "???", label: dominant, transform: {resize: 32, crop: 32}}
model: {proto: Classifier, cnn: {proto: CNN, backbone: test_resnet}}
trainor: {optim_params: {lr: 0.01}, batch_size: 8, epochs: 1, max_steps: 2}
"""


# ---- scores --------------------------------------------------------------------------------------


def test_entropy():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
    told = entropy_of({"scores": p})
    assert told.tolist() == pytest.approx(
        [math.log(2), 0, -0.9 * math.log(0.9) - 0.1 * math.log(0.1)]
    )
    several = entropy_of({"scores": torch.tensor([[0.5, 0.5, 1.0]])}, findings=True)
    assert several.item() == pytest.approx(2 * math.log(2))
    z = torch.tensor([[3.0, 4.0], [1.0, 1.0], [300.0, 400.0]])
    told = entropy_of({"visual": z, "encoder": z})
    q = torch.tensor([0.6, 0.8]).softmax(0)
    assert told.tolist() == pytest.approx(
        [-(q * q.log()).sum().item(), math.log(2), told[0].item()]
    )


def test_disagreement():
    random = np.random.default_rng(0)
    p_VBC = random.dirichlet(np.ones(3), (6, 4)).astype(np.float32)
    told = disagreement_of([{"scores": torch.from_numpy(p)} for p in p_VBC])
    assert np.allclose(told, p_VBC.var(0).mean(1), atol=1e-7)
    z_VBD = torch.from_numpy(random.normal(size=(6, 4, 5)).astype(np.float32))
    told = disagreement_of([{"encoder": z, "visual": z[:, :1]} for z in z_VBD])
    cosines = torch.stack([F.cosine_similarity(z_VBD[0], z) for z in z_VBD[1:]])
    assert torch.allclose(told, 1 - cosines.mean(0), atol=1e-6)
    assert disagreement_of([{"encoder": z_VBD[0]}] * 6).abs().max() < 1e-6


def test_six_views():
    images = torch.rand(2, 1, 40, 30)
    views = perturbed(images, ["a", "b"], torch.tensor([[[4.0]]]))
    assert len(views) == 6 and all(view.shape == images.shape for view in views)
    assert torch.equal(views[0], images)
    noise = (views[5] - images) / 4
    assert noise.std().item() == pytest.approx(NOISE, rel=0.1) and abs(noise.mean()) < 2e-3
    assert not torch.equal(noise[0], noise[1]) and len(noise[0].unique()) > 1000  # per pixel
    again = perturbed(images.flip(0), ["b", "a"], torch.tensor([[[4.0]]]))
    assert torch.equal(again[5].flip(0), views[5])  # whatever batch an image is in
    ramp = torch.linspace(0, 1, 40).expand(1, 1, 40, 40)
    left, right = (view[0, 0, 20] for view in perturbed(ramp, ["a"], torch.ones(1, 1, 1))[1:3])
    assert left.min() >= CUT - 0.01 and left.max() == 1
    assert right.max() <= 1 - CUT + 0.01 and right.min() == 0
    for view, gone in zip(perturbed(ramp.mT, ["a"], torch.ones(1, 1, 1))[3:5], (0, 1), strict=True):
        assert (view.min() > 0.08) == (gone == 0) and (view.max() < 0.92) == (gone == 1)


def test_the_highest_scores_come_first_and_ties_by_id():
    assert highest(np.array([1.0, 3.0, 1.0, 2.0]), ["d", "c", "b", "a"]) == [1, 3, 2, 0]


# ---- the verb ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(phantom, tmp_path_factory):
    """A label-free run, one of a classifier with a budget, and one with all labels."""
    from conftest import tiny_overrides

    place = tmp_path_factory.mktemp("runs")
    free = [*tiny_overrides(phantom, place, "free"), "dataset.label=dominant", "dataset.labels=[]"]
    assert main(["train", str(SIMCLR), *free]) == 0
    file = place / "classifier.yml"
    file.write_text(CLASSIFIER)
    keys = [f"dataset.manifest={phantom / 'manifest.csv'}", f"ckpt_dir={place}", "num_workers=0"]
    for name, more in (("some", ["budget.samples=20"]), ("all", [])):
        assert main(["train", str(file), *keys, "device=cpu", f"name={name}", *more]) == 0
    from_some = f"init_from={place / 'some'}"
    assert (
        main(
            ["train", str(file), *keys, "device=cpu", "name=later", from_some, "budget.samples=30"]
        )
        == 0
    )
    return place


def select(run, *words):
    return main(["select", str(run), *map(str, words)])


def train_of(run):
    config = plain(load_config(run, ["budget=null"]))
    return dataset_of(typed(config), config, "train")


@pytest.mark.parametrize("score", ["entropy", "disagreement"])
def test_select_grows_a_list(runs, tmp_path, capsys, score):
    whole, one, two = train_of(runs / "free"), tmp_path / "1.txt", tmp_path / "2.txt"
    assert select(runs / "free", "--score", score, "--add", 6, "--out", one) == 0
    told = capsys.readouterr()
    assert f"{one}: 0 ids, and 6 more of " in told.out and "picked by the labels" in told.out
    words = ["--score", score, "--add", 5, "--labelled", one, "--out", two]
    assert select(runs / "free", *words) == 0
    first, grown = read_ids(one), read_ids(two)
    assert grown[:6] == first and len(grown) == 11 and set(grown) <= set(whole.ids)
    with (tmp_path / "2.txt.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == set(whole.ids) - set(first)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > len(scores) // 2
    assert [row["id"] for row in rows if row["picked"] == "1"] == grown[6:]
    with (tmp_path / "1.txt.csv").open() as file:  # the first reserve comes next
        assert [row["id"] for row in csv.DictReader(file)][6:11] == grown[6:]


def test_a_classifier_goes_on_from_its_budget(runs, tmp_path, capsys):
    out, config = tmp_path / "grown.txt", plain(load_config(runs / "some"))
    old = dataset_of(typed(config), config, "train").ids
    assert select(runs / "some", "--score", "entropy", "--add", 4, "--out", out) == 0
    assert set(read_ids(out)[: len(old)]) == set(old) and len(read_ids(out)) == len(old) + 4
    content = checkpoint.read_run(runs / "some/last_0.pth")
    assert torch.equal(content["labels_of"], content["trained_on"])
    config = plain(load_config(runs / "some", ["budget=null", f"budget={{ids: {out}}}"]))
    assert set(dataset_of(typed(config), config, "train").ids) == set(read_ids(out))
    # grown in place
    words = ["--score", "disagreement", "--add", 2, "--labelled", out, "--out", out]
    assert select(runs / "some", *words) == 0 and len(read_ids(out)) == len(old) + 6


def test_a_model_that_knows_other_labels_is_refused(runs, tmp_path, capsys):
    words = ["--score", "entropy", "--add", 2, "--out", tmp_path / "x.txt"]
    assert select(runs / "all", *words) == 2
    told = capsys.readouterr().err
    assert "has learned from the labels of" in told and "Traceback" not in told
    short = tmp_path / "short.txt"
    short.write_text("\n".join(train_of(runs / "some").ids[:3]))
    assert select(runs / "some", *words, "--labelled", short) == 2
    assert "among the 3 labelled ones" in capsys.readouterr().err
    assert not (tmp_path / "x.txt").exists()
    content = checkpoint.read_run(runs / "some/last_0.pth")
    for name in ("labels_of",):  # a checkpoint from before this was written down
        content.pop(name)
    assert torch.equal(checkpoint.labels_of(content), content["trained_on"])


def test_labels_learned_before_init_from_count(runs, tmp_path):
    some, later = (checkpoint.read_run(runs / name / "last_0.pth") for name in ("some", "later"))
    assert torch.isin(some["labels_of"], later["labels_of"]).all()
    free = checkpoint.read_run(runs / "free/last_0.pth")
    assert not len(free["labels_of"]) and free["labels_of"].dtype == torch.int64


def test_a_checkpoint_chosen_by_the_probe_knows_the_labels(runs, phantom, tmp_path, capsys):
    from conftest import tiny_overrides

    words = [*tiny_overrides(phantom, tmp_path, "probed"), "dataset.label=dominant"]
    words += ["dataset.labels=[]", "validator.metrics=[probe, knn]"]
    assert main(["train", str(SIMCLR), *words, "trainor.early_stop_metric=probe"]) == 0
    more = ["--score", "disagreement", "--add", 2, "--out", tmp_path / "x.txt"]
    capsys.readouterr()
    assert select(tmp_path / "probed", *more) == 2
    assert "has learned from the labels of" in capsys.readouterr().err
    content = checkpoint.read_run(tmp_path / "probed/last_0.pth")
    assert torch.equal(content["labels_of"], content["trained_on"])
    content.pop("labels_of")  # a checkpoint from before this was written down
    assert len(checkpoint.labels_of(content))
    experiment = typed(plain(load_config(tmp_path / "probed")))
    trainor, validator = experiment.trainor, experiment.validator
    for metric, splits, told in (("knn", ["validate"], False), ("knn", ["train"], True)):
        other = replace(
            experiment,
            trainor=replace(trainor, early_stop_metric=metric),
            validator=replace(validator, splits=splits),
        )
        assert _steered_by_labels(other) == told


def test_the_config_s_seed_chooses(runs, tmp_path, capsys):
    folder = tmp_path / "free"
    shutil.copytree(runs / "free", folder)
    (best,) = checkpoint.best_files(folder)
    content = checkpoint.read_run(best)
    checkpoint.write({**content, "seed": 7}, folder / "-99.0_1_7.pth")
    file = tmp_path / "config.yml"
    file.write_text((folder / "config_0.yml").read_text().replace(str(runs), str(tmp_path)))
    words = ["--score", "entropy", "--add", "1"]
    capsys.readouterr()
    assert main(["select", str(file), *words, "--out", str(tmp_path / "o")]) == 0
    assert f"ensembling 1 checkpoint(s): {best.name}\n" in capsys.readouterr().err
    assert main(["select", str(file), *words, "--out", str(tmp_path / "p"), "seed=7"]) == 0
    assert "-99.0_1_7.pth" in capsys.readouterr().err


WRONG = {
    "--score entropy --add 0 --out {0}/o": "--add 0: write 1 or more",
    "--score entropy --add 999 --out {0}/o": "images of train are without a label",
    "--score entropy --add 1 --out {0}/there": "is there already",
    "--score entropy --add 1 --out {0}/o --labelled {0}/none": "--labelled: there is no",
    "--score entropy --add 1 --out {0}/o --labelled {0}/there": "names 'abc', which is no sample",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options_are_one_sentence(options, runs, tmp_path, capsys):
    (tmp_path / "there").write_text("abc\n")
    assert select(runs / "free", *options.format(tmp_path).split()) == 2
    told = capsys.readouterr().err
    assert WRONG[options] in told and "Traceback" not in told
    assert not (tmp_path / "o").exists()


# ---- balanced sampling, as it is switched on ----------------------------------------------------


def test_balanced_sampling_needs_one_class_per_image(phantom, runs, tmp_path, capsys):
    place = [f"dataset.manifest={phantom / 'manifest.csv'}", f"ckpt_dir={tmp_path}", "device=cpu"]
    words = [*place, "num_workers=0", "name=x", "trainor.sampling=balanced"]
    file = str(runs / "classifier.yml")
    assert main(["train", file, *words]) == 0
    labels = "dataset.labels=[Cardiomegaly, Consolidation]"
    for more, sentence in (
        (["dataset.label=null", labels], "several findings per image"),
        (["budget.samples=20", "budget.unlabelled=keep"], "some training images have no label"),
    ):
        assert main(["train", file, *words, "overwrite=true", *more]) == 2
        assert sentence in capsys.readouterr().err
