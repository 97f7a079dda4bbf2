"""What cannot come out well is said before the first step, and only that."""

import contextlib
import csv
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import resume
import torch
from methods import node_of

from vilmedic_ssl import build
from vilmedic_ssl.data.loader import EpochBatches
from vilmedic_ssl.data.texts import Texts, TextSettings
from vilmedic_ssl.data.tokenizers import train_tokenizer
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import preflight
from vilmedic_ssl.executors.monitors import METRICS, Seen
from vilmedic_ssl.executors.schedules import SCHEDULES, Clock
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.executors.trainor import Trainor
from vilmedic_ssl.experiment import ensemble, load_config, train
from vilmedic_ssl.experiment.texts import refuse_unread
from vilmedic_ssl.schema import complete

CONFIG = "config/SELFSUP/simclr-phantom.yml"


@pytest.fixture
def no_step(monkeypatch):
    monkeypatch.setattr(Trainor, "fit", lambda self: pytest.fail("training began"))


# ---------------------------------------------------------------- a single image


@pytest.mark.parametrize("name", ["SimCLR", "BYOL"])
def test_a_validation_loss_of_single_images_chooses_nothing(name, capsys):
    """SimCLR's is 0 for every model; BYOL's compares views, not images."""
    model = build(node_of(name, "no norm"))

    def look(images, size, metric):
        sampler = EpochBatches(images, batch_size=size, seed=0, shuffle=False)
        loaders = {"validate": SimpleNamespace(sampler=sampler, dataset=[0] * images)}
        preflight.refuse_single_scores(model, loaders, {"trainor.early_stop_metric": metric})

    refused = contextlib.nullcontext()
    for images, size, remedy in ((3, 1, "validator.batch_size=2"), (1, 4, "more images")):
        if name == "SimCLR":
            refused = pytest.raises(UserError, match=f"early_stop_metric: .*compares.*{remedy}")
        with refused:
            look(images, size, "validation_loss")
        look(images, size, "top1")
        assert (remedy in capsys.readouterr().err) == (name == "SimCLR")
    look(5, 2, "validation_loss")


class Images(list):
    collate = staticmethod(lambda items: {"images": torch.stack(items)})


def single(name, encoder, *, images=1, size=4):
    model = build(node_of(name, encoder)).train()
    sampler = EpochBatches(images, batch_size=size, seed=0, shuffle=True)
    dataset = Images(torch.rand(model.views, 1, 32, 32) for _ in range(images))
    settings = TrainorSettings(optim_params={"lr": 1}, batch_size=size, epochs=1)
    loader = SimpleNamespace(sampler=sampler, dataset=dataset)
    preflight.refuse_single_images(model, loader, settings, None, contextlib.nullcontext)


@pytest.mark.parametrize("name", ["SimCLR", "BarlowTwins", "VICReg"])
def test_a_loss_that_compares_images_needs_two(name):
    with pytest.raises(UserError, match="training split holds a single image.*compares"):
        single(name, "no norm")
    with pytest.raises(UserError, match="batch_size: 1 makes batches of a single image.*compares"):
        single(name, "no norm", images=3, size=1)
    single(name, "no norm", images=5, size=2)


def test_one_image_does_where_nothing_is_compared_or_normalised():
    single("BYOL", "no norm")
    with pytest.raises(UserError, match="holds a single image.*batch norm needs .*more images"):
        single("BYOL", "batch norm")


# ---------------------------------------------------------------- what comes after the end


def said_of(schedule, given, *, epoch_steps, total, **more):
    keys = complete(given, SCHEDULES[schedule], "keys")
    settings = TrainorSettings(
        optim_params={"lr": 1}, batch_size=4, epochs=9, lr_decay=schedule, **more
    )
    told = " ".join(preflight.never(settings, keys, epoch_steps=epoch_steps, total=total))
    return told, keys


def factors(schedule, keys, *, epoch_steps, total, scores=lambda step: ()):
    rule = SCHEDULES[schedule]
    return [rule(Clock(s, total, epoch_steps, 1.0, scores(s)), **keys) for s in range(total)]


@pytest.mark.parametrize(("epoch_steps", "total"), [(1, 1), (1, 7), (3, 7), (4, 12), (10, 6)])
def test_a_warmup_that_never_ends_is_told(epoch_steps, total):
    plan = {"epoch_steps": epoch_steps, "total": total}
    for warmup in range(2 * total):
        cases = {
            "warmup_cosine": {"warmup_steps": warmup},
            "LinearWarmupCosineAnnealingLR": {"warmup_epochs": warmup, "max_epochs": 99},
        }
        for schedule, given in cases.items():
            told, keys = said_of(schedule, given, **plan)
            reached = max(factors(schedule, keys, **plan)) > 1 - 1e-9 or warmup == 1
            assert ("is longer than the training" in told) == (not reached), (schedule, warmup)
    told, _ = said_of("warmup_cosine", {"warmup_epochs": 3}, epoch_steps=10, total=20)
    assert "30 steps is longer than the training of 20" in told
    assert "trainor.lr_decay_params.warmup_steps=2" in told


def test_a_decay_counted_in_steps_that_ends_early_is_told():
    given = {"warmup_epochs": 5, "max_epochs": 100}
    told, _ = said_of("LinearWarmupCosineAnnealingLR", given, epoch_steps=50, total=5000)
    assert "trainor.lr_decay_params.max_epochs=5000" in told
    given["max_epochs"] = 5000
    assert not said_of("LinearWarmupCosineAnnealingLR", given, epoch_steps=50, total=5000)[0]


@pytest.mark.parametrize(("epoch_steps", "total"), [(1, 7), (3, 7), (4, 12), (10, 6)])
def test_a_drop_after_the_end_is_told(epoch_steps, total):
    plan = {"epoch_steps": epoch_steps, "total": total}
    for epoch in range(1, 9):
        cases = {"multistep": {"milestones": [epoch]}, "StepLR": {"step_size": epoch}}
        for schedule, given in cases.items():
            told, keys = said_of(schedule, given, **plan)
            assert ("does not drop" in told) == (min(factors(schedule, keys, **plan)) == 1), epoch
    told, _ = said_of("multistep", {"milestones": [1, 60, 80]}, epoch_steps=2, total=20)
    assert "ends in epoch 10" in told and "after epoch 60, 80" in told


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("more", [{}, {"eval_every": 2}, {"eval_every_steps": 2}])
@pytest.mark.parametrize("start", [0, 3])
def test_a_plateau_that_cannot_come_is_told(patience, more, start):
    for epoch_steps, epochs in itertools.product((1, 3), range(1, 12)):
        plan = {"epoch_steps": epoch_steps, "total": epoch_steps * epochs}
        often = more.get("eval_every_steps") or more.get("eval_every", 1) * epoch_steps

        def scores(step, often=often, epoch_steps=epoch_steps):
            ends = (s for s in range(often, step + 1, often))
            return [1.0 for s in ends if -(-s // epoch_steps) >= start]

        settings = {"eval_start": start, **more}
        told, keys = said_of("plateau", {"patience": patience}, **plan, **settings)
        drops = min(factors("plateau", keys, **plan, scores=scores)) < 1
        if drops:
            assert "never drops" not in told
        elif more == {}:
            assert "never drops" in told


def test_an_evaluation_after_the_end_is_told():
    told, _ = said_of("constant", {}, epoch_steps=5, total=20, eval_start=5)
    assert "write trainor.eval_start=4" in told and "ckpt=last" in told
    assert not said_of("constant", {}, epoch_steps=5, total=20, eval_start=4)[0]


# ---------------------------------------------------------------- metrics that say nothing

ROWS = np.random.default_rng(0)


class Split:
    split, label_names = "validate", list("abcde")

    def __init__(self, labels, patients=None):
        self.labels, self.patients = np.array(labels), patients

    def __len__(self):
        return len(self.labels)


def value_of(name, split):
    rows, scores = ROWS.normal(size=(len(split), 4)), ROWS.random((len(split), 3))
    patients = None if split.patients is None else np.array(split.patients)
    seen = Seen(rows, rows, rows, split.labels, patients, probe=scores, scores=scores)
    return METRICS[name].score(seen)


def test_a_metric_that_is_undefined_is_known_before():
    steered = [name for name, metric in METRICS.items() if metric.labels]
    assert set(steered) == {"knn", "probe", "accuracy", "balanced_accuracy", "auroc"}
    for _ in range(300):
        n = int(ROWS.integers(2, 9))
        patients = [None, [str(p) for p in ROWS.integers(0, 4, n)]][ROWS.integers(2)]
        split = Split(ROWS.integers(-1, 3, n), patients)
        many = ROWS.choice([0.0, 1.0, np.nan], size=(n, 3))
        for name in steered:
            if not preflight._undefined(name, split):
                assert np.isfinite(value_of(name, split)), (name, split.labels)
            if name != "knn" and not preflight._undefined(name, Split(many)):
                assert np.isfinite(value_of(name, Split(many))), (name, many)
        if (split.labels >= 0).any() and np.isnan(value_of("knn", split)):
            assert preflight._undefined("knn", split)


@pytest.mark.parametrize(
    ("name", "labels", "patients", "told"),
    [
        ("auroc", [1, 1, 1, -1], None, r"shows one class only \(b\)"),
        ("accuracy", [1, 1, 1, 1], None, r"shows one class only \(b\)"),
        ("knn", [0, 0, 1, 1], list("pppp"), "no two classes with images of two patients"),
        ("knn", [0, 0, 1, 1], list("ppqq"), "no two classes with images of two patients"),
        ("knn", [0, 0, 1, 1], list("pqpq"), ""),
        ("knn", [0, 0, 1, 1], ["", "", " ", "nan"], ""),
        ("probe", [[0.0, 1.0], [0.0, np.nan]], None, "no finding that is present in some"),
        ("auroc", [[0.0, 1.0], [1.0, np.nan]], None, ""),
        ("auroc", [-1, -1], None, "no labelled image"),
        ("auroc", [3, 4, 4], None, "no class that train shows"),
        ("accuracy", [3, 4, 4], None, ""),
        ("effective_rank", [0], None, "a single image"),
    ],
)
def test_what_a_metric_lacks(name, labels, patients, told, capsys):
    validate, train_set = Split(labels, patients), Split([0, 1, 2])
    if np.ndim(labels) == 2:
        train_set = Split([[0.0, 1.0], [1.0, 0.0]])
    validator = SimpleNamespace(
        names=[name], loaders={"validate": SimpleNamespace(dataset=validate)}
    )
    preflight.refuse_undefined(validator, {"trainor.early_stop_metric": "loss"}, train_set)
    warned = capsys.readouterr().err
    assert told.replace("\\", "") in warned if told else not warned
    for key in ("trainor.early_stop_metric", "sweep.metric"):
        if not told:
            preflight.refuse_undefined(validator, {key: name}, train_set)
            continue
        with pytest.raises(
            UserError, match=rf"{key}: .*'validate' .*{told}.*{key}=validation_loss"
        ):
            preflight.refuse_undefined(validator, {key: name}, train_set)


def test_what_learns_labels_needs_two_classes_in_train():
    validator = SimpleNamespace(
        names=["probe"], loaders={"validate": SimpleNamespace(dataset=Split([0, 1, 1]))}
    )
    with pytest.raises(UserError, match="split 'train' shows one class only"):
        preflight.refuse_undefined(validator, {"sweep.metric": "probe"}, Split([2, 2, 2]))


def one_class(phantom, folder):
    """The cohort's table with one class left in validate."""
    rows = list(csv.DictReader((phantom / "manifest.csv").open(encoding="utf-8")))
    label = next(r["dominant"] for r in rows if r["split"] == "validate")
    rows = [r for r in rows if r["split"] != "validate" or r["dominant"] == label]
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return [f"dataset.manifest={folder / 'table.csv'}", f"dataset.root={phantom}"]


def test_one_class_in_validate_ends_before_the_first_step(tiny, phantom, tmp_path, no_step):
    more = ["validator.metrics=[knn]", "trainor.early_stop_metric=knn"]
    overrides = [*tiny("single"), *one_class(phantom, tmp_path), *more]
    with pytest.raises(UserError, match="knn says nothing, since split 'validate' shows one class"):
        train(load_config(CONFIG, overrides))


def test_a_metric_that_turns_out_undefined_leaves_a_way_to_score(tiny, monkeypatch, capsys):
    nothing = replace(METRICS["effective_rank"], score=lambda seen: float("nan"))
    monkeypatch.setitem(METRICS, "effective_rank", nothing)
    overrides = [*tiny("nan"), "validator.metrics=[effective_rank]"]
    overrides += ["trainor.early_stop_metric=effective_rank", "ensemblor.post_processing=[]"]
    folder = train(load_config(CONFIG, overrides))
    told = capsys.readouterr().err
    assert "effective_rank is undefined at step 3: nothing is saved as best" in told
    assert "without a best checkpoint" in told
    command = told.split("vilmedic-ssl ensemble ")[1].split()
    assert command[1] == "ckpt=last"
    with pytest.raises(UserError, match="score the last checkpoint with ckpt=last"):
        ensemble(load_config(folder / "config_0.yml"))
    ensemble(load_config(command[0], [command[1]]))


# ---------------------------------------------------------------- reports that nothing reads


def test_reports_that_the_tokenizer_does_not_know_are_told(capsys):
    tokenizer = train_tokenizer(["the heart is normal", "the lungs are clear"] * 9, 100)
    texts = Texts(TextSettings(), tokenizer)
    assert texts.known_tokens(["the heart", "αβγ δ", "the αβγ"]) == [(2, 2), (0, 2), (1, 2)]

    def split(*said):
        return SimpleNamespace(split="train", said=list(said), texts=texts)

    refuse_unread(split(*["the heart is normal"] * 60, "αβγ"))
    refuse_unread(split("", ""))
    assert not capsys.readouterr().err
    refuse_unread(split("the heart is normal", "αβγ"))
    told = capsys.readouterr().err
    assert "1 of 2 reports" in told and "does not know 20% of all tokens" in told
    for said in (["αβγ"], ["αβγ δε", "", "ζ"], ["αβγ"] * 5000):
        with pytest.raises(UserError, match="split 'train': the tokenizer knows no token of any"):
            refuse_unread(split(*said))


def test_a_tokenizer_of_another_alphabet_ends_before_the_first_step(tiny, tmp_path, no_step):
    train_tokenizer(["αβγ δεζ", "ηθι κλμ"] * 9, 100).save_pretrained(tmp_path / "greek")
    node = resume.config_of("ConVIRT", tiny("greek"))
    node["dataset"]["text"] = {"tokenizer": str(tmp_path / "greek")}
    with pytest.raises(UserError, match="knows no token of any report"):
        train(node)
