"""Label budgets: nested, stratified, by patient; what is left of a split, and what refuses."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from test_configs import FILES, data

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import console
from vilmedic_ssl.cli import main
from vilmedic_ssl.data.budget import Budget
from vilmedic_ssl.data.budget_order import ordering, up_to
from vilmedic_ssl.data.budget_rows import choose, is_labelled, read_ids
from vilmedic_ssl.data.datasets import part
from vilmedic_ssl.data.datasets.base import Context, MedicalDataset
from vilmedic_ssl.data.datasets.resplit import home_splits
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.experiment.audit import experiment_parts
from vilmedic_ssl.experiment.data import dataset_of, division_of
from vilmedic_ssl.experiment.settings import load_config, typed
from vilmedic_ssl.schema import plain

few = settings(max_examples=30, deadline=None)


class Cohort(MedicalDataset):
    """Samples without pictures."""

    def __init__(self, labels, patients=None, names=None):
        self.labels = np.asarray(labels)
        self.ids = [f"i{n:04d}" for n in range(len(self.labels))]
        self.patients, self.split = patients, "train"
        count = self.labels.shape[1] if self.labels.ndim == 2 else int(self.labels.max()) + 1
        self.label_names = names or [f"c{k}" for k in range(count)]


@st.composite
def cohorts(draw, patients=True):
    """Classes or findings, some unlabelled, with patients of several images or unknown ones."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    n, classes = draw(st.integers(8, 90)), draw(st.integers(1, 5))
    if draw(st.booleans()):
        labels = random.integers(-1, classes, n)
        labels[:classes] = np.arange(classes)
    else:
        labels = random.choice([0.0, 1.0, np.nan], (n, classes), p=[0.6, 0.2, 0.2])
        labels[0] = 1.0
    known = patients and draw(st.booleans())
    return Cohort(labels, [f"p{k}" for k in random.integers(0, n // 3 + 1, n)] if known else None)


def taken(cohort, seed=0, **keys):
    """The labelled rows; none where a budget is too small for any patient."""
    try:
        return set(choose(cohort, Budget(**keys), seed=seed).labelled)
    except UserError as error:
        assert "takes no patient" in str(error)
        return set()


def whole_patients(cohort, rows):
    known = np.flatnonzero(is_labelled(cohort))
    groups = cohort.patients or cohort.ids
    inside = {groups[i] for i in rows}
    return all((i in rows) == (groups[i] in inside) for i in known)


@few
@given(cohorts(), st.integers(0, 3), st.floats(0.02, 1), st.floats(0.02, 1), st.integers(1, 99))
def test_smaller_budgets_lie_inside_larger_ones(cohort, seed, one, two, samples):
    small, large = sorted((one, two))
    sets = [taken(cohort, seed, fraction=small), taken(cohort, seed, fraction=large)]
    sets.append(taken(cohort, seed, samples=samples))
    for a in sets:
        assert whole_patients(cohort, a) and all(is_labelled(cohort)[list(a)])
        assert all(a <= b or b <= a for b in sets)
    assert sets[0] <= sets[1] and len(sets[2]) <= samples
    assert taken(cohort, seed, fraction=1.0) == set(np.flatnonzero(is_labelled(cohort)))


@few
@given(cohorts(), st.integers(1, 12), st.integers(1, 12))
def test_so_many_per_class(cohort, one, two):
    small, large = sorted((one, two))
    a, b = (taken(cohort, samples_per_class=k) for k in (small, large))
    assert a <= b and whole_patients(cohort, a)
    if cohort.labels.ndim == 2:
        assert (np.nansum(cohort.labels[sorted(b)], axis=0) <= large).all()
        return
    counts = Counter(cohort.labels[sorted(b)])
    there = Counter(cohort.labels[cohort.labels >= 0])
    assert all(count <= large for count in counts.values())
    if cohort.patients is None:
        assert counts == {k: min(large, count) for k, count in there.items()}


@few
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(10, 300), st.floats(0.01, 1))
def test_exact_counts_with_one_image_per_patient(seed, classes, n, fraction):
    random = np.random.default_rng(seed)
    labels = random.choice(classes, n, p=random.dirichlet(np.ones(classes)))
    share = np.bincount(labels, minlength=classes) / n
    wanted = round(fraction * n)
    if not wanted:
        return
    rows = sorted(choose(Cohort(labels), Budget(fraction=fraction), seed=seed).labelled)
    counts = np.bincount(labels[rows], minlength=classes)
    assert len(rows) == wanted
    if wanted >= (share > 0).sum():
        assert (counts[share > 0] >= 1).all()
    if (share[share > 0] * wanted >= 1).all():
        assert np.abs(counts - share * wanted).max() <= 1


@few
@given(cohorts(), st.floats(0.05, 1), st.floats(0.05, 1), st.integers(1, 40))
def test_a_simulated_imbalance_is_nested_too(cohort, one, two, samples):
    small, large = sorted((one, two))
    name = cohort.label_names[0]
    shows = cohort.labels[:, 0] == 1 if cohort.labels.ndim == 2 else cohort.labels == 0
    kept = []
    for share in (small, large):
        try:
            choice = choose(cohort, Budget(keep={name: share}), seed=0)
        except UserError:
            return
        assert shows[choice.labelled].sum() <= round(share * shows.sum())
        assert set(choice.labelled) <= set(choice.kept)
        assert set(np.flatnonzero(~is_labelled(cohort))) <= set(choice.kept)
        kept.append(set(choice.kept))
    assert kept[0] <= kept[1]
    assert taken(cohort, keep={name: small}, samples=samples) <= kept[0]
    if cohort.patients is None and cohort.labels.ndim == 1:
        assert shows[sorted(kept[0])].sum() == round(small * shows.sum())


def test_findings_come_in_their_shares():
    """On average within one image of a hundred, where images drawn at random are five off."""
    off, at_random = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        labels = (random.random((400, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(np.float64)
        rows = choose(Cohort(labels), Budget(fraction=0.25), seed=seed).labelled
        assert len(rows) == 100
        for found, chosen in ((off, rows), (at_random, random.permutation(400)[:100])):
            found.append(np.abs(labels[chosen].mean(0) - labels.mean(0)).max())
    assert np.mean(off) <= 0.01 and np.mean(off) < np.mean(at_random) / 4


def test_the_choice_depends_on_ids_and_seed_alone():
    labels = np.arange(60) % 3
    cohort, turned = Cohort(labels), Cohort(labels[::-1])
    turned.ids = cohort.ids[::-1]
    one = choose(cohort, Budget(samples=20), seed=4)
    assert one.labelled == sorted(
        59 - i for i in choose(turned, Budget(samples=20), seed=4).labelled
    )
    assert one.labelled != choose(cohort, Budget(samples=20), seed=5).labelled
    assert one.told == "budget: 20 of 60 training images: c0 7, c1 7, c2 6" and not one.wanting


def bare(n, patients=None):
    """Samples without labels."""
    cohort = Cohort(np.zeros(n, int), patients)
    cohort.labels, cohort.label_names = None, []
    return cohort


@few
@given(st.integers(0, 9), st.integers(2, 80), st.floats(0.02, 1), st.floats(0.02, 1), st.booleans())
def test_without_labels_images_are_counted(seed, n, one, two, known):
    """The same order whatever the size, whole patients, exact where each has one image."""
    random = np.random.default_rng(seed)
    cohort = bare(n, [f"p{k}" for k in random.integers(0, n // 3 + 1, n)] if known else None)
    a, b = (taken(cohort, seed, fraction=share) for share in sorted((one, two)))
    assert a <= b and len(b) <= round(max(one, two) * n)
    groups = cohort.patients or cohort.ids
    assert all((i in b) == (groups[i] in {groups[k] for k in b}) for i in range(n))
    assert known or len(b) == round(max(one, two) * n)
    assert taken(cohort, seed, fraction=1.0) == set(range(n))


def test_what_needs_labels_is_refused_without(tmp_path):
    cohort, file = bare(60), tmp_path / "ids.txt"
    choice = choose(cohort, Budget(samples=20), seed=4)
    assert choice.told == "budget: 20 of 60 training images, without labels"
    other = choose(cohort, Budget(samples=20), seed=5).labelled
    assert not choice.wanting and choice.labelled != other
    kept = part.budgeted(cohort, Budget(samples=20), seed=4, scored=False)
    assert kept.rows == choice.labelled and kept.labels is None and kept.labelled == 0
    file.write_text("i0007\ni0003\n")
    assert choose(cohort, Budget(ids=str(file)), seed=0).labelled == [3, 7]
    told = choose(bare(4, [*"aabb"]), Budget(samples=3), seed=0).wanting
    assert told == ["2 images instead of 3: patients stay whole"]
    for keys, where in (
        ({"samples_per_class": 2}, "samples_per_class"),
        ({"keep": {"c0": 0.5}, "samples": 3}, "keep"),
        ({"samples": 3, "unlabelled": "keep"}, "unlabelled"),
    ):
        with pytest.raises(UserError, match=rf"budget\.{where}: .*has no labels to choose from"):
            choose(cohort, Budget(**keys), seed=0)
    with pytest.raises(UserError, match="has no labels to choose from; leave the section out"):
        choose(cohort, Budget(seed=1), seed=0)


def test_orders_hold_everyone_once():
    counts = np.array([[2, 0], [1, 1], [0, 3], [1, 0]])
    assert sorted(ordering(counts, counts.sum(1))) == [0, 1, 2, 3]
    assert up_to(counts, 9).all() and not up_to(counts[:0], 3).any()
    assert up_to(counts, 1).sum() == 1  # the patient with both, or the one with one image


def test_what_a_budget_could_not_do_is_said():
    cohort = Cohort([0] * 9 + [1], [*"aaabbbccc", "d"], ["sick", "well"])
    choice = choose(cohort, Budget(samples=5), seed=0)
    assert "4 labelled images instead of 5: patients stay whole" in choice.wanting
    assert choice.told == "budget: 4 of 10 training images (2 patients): sick 3, well 1"
    choice = choose(cohort, Budget(samples=3), seed=0)
    assert choice.wanting[-1].startswith("no labelled image of well")
    choice = choose(cohort, Budget(samples_per_class=2), seed=0)
    assert choice.wanting[0] == "fewer than 2 images of a class: well 1"
    choice = choose(cohort, Budget(samples=11), seed=0)
    assert choice.wanting == ["10 labelled images instead of 11: there are no more"]


WRONG_KEYS = {
    "fraction and samples exclude each other": {"fraction": 0.1, "samples": 3},
    "budget.fraction: 1.5": {"fraction": 1.5},
    "budget.samples: 0": {"samples": 0},
    "budget.samples_per_class: -1": {"samples_per_class": -1},
    "budget.keep.sick: 0": {"keep": {"sick": 0.0}},
    "budget.seed: -1": {"seed": -1},
}


@pytest.mark.parametrize("sentence", WRONG_KEYS)
def test_wrong_keys(sentence):
    with pytest.raises(ConfigError, match=sentence):
        Budget(**WRONG_KEYS[sentence])


def test_wrong_for_this_data(tmp_path):
    cohort = Cohort([0, 0, 1, -1], names=["sick", "well"])
    wrong = {
        "no class 'sik'; did you mean 'sick'": Budget(keep={"sik": 0.5}),
        "takes no patient: the first to be drawn has": Budget(fraction=0.01),
        "there is no": Budget(ids=str(tmp_path / "none.txt")),
    }
    for number, (lines, sentence) in enumerate(
        {
            "i0000\ni9999": "names 'i9999', which is no sample",
            "i0000\n\ni0000": "names 'i0000' twice",
            "i0003": "names 'i0003', but it has no label in the data",
            "# nothing\n": "names no sample",
        }.items()
    ):
        file = tmp_path / f"{number}.txt"
        file.write_text(lines)
        wrong[sentence] = Budget(ids=str(file))
    for sentence, budget in wrong.items():
        with pytest.raises(UserError, match=sentence):
            choose(cohort, budget, seed=0)
    with pytest.raises(UserError, match="has no labels to choose from"):
        choose(Cohort([-1, -1], names=["sick"]), Budget(samples=1), seed=0)


def test_ids_from_a_file(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text("\ufeff# round 1\ni0002\n\n i0000 \n", encoding="utf-8")
    assert read_ids(file) == ["i0002", "i0000"]
    assert choose(Cohort([0, 1, 1]), Budget(ids=str(file)), seed=0).labelled == [0, 2]
    with pytest.raises(UserError, match=r"'i0002', but budget\.keep leaves it out"):
        several = Budget(ids=str(file), keep={"c1": 0.01})
        choose(Cohort([0, 1, 1]), several, seed=0)


def test_a_part_of_a_split():
    cohort = Cohort([0, 1, 0, 1], [*"abcd"])
    whole = part.Part(cohort, range(4), hidden={1})
    assert whole.labels.tolist() == [0, -1, 0, 1] and whole.labelled == 3
    assert cohort.labels.tolist() == [0, 1, 0, 1]
    less = part.Part(cohort, [3, 0], note="2 of 4")
    assert less.ids == ["i0003", "i0000"] and less.patients == ["d", "a"] and less.paths is None
    assert torch.isin(less.members(), cohort.members()).all() and len(less.members()) == 2
    assert len({d.fingerprint() for d in (cohort, whole, less)}) == 3
    assert less.card()["budget"] == "2 of 4" and less.card()["images"] == 2
    findings = part.Part(Cohort([[0.0, 1.0], [1.0, 1.0]]), [0, 1], hidden={0})
    assert np.isnan(findings.labels[0]).all() and findings.labels[1].tolist() == [1, 1]


def test_the_division_is_the_same_for_all_budgets():
    cohort = Cohort([0, 1, 0, 1], [*"abcd"])
    experiment = SimpleNamespace(split_file=None, train_fraction=None)
    told = [
        division_of(experiment, {"train": data, "test": cohort})["split/hash"]
        for data in (cohort, part.Part(cohort, [0, 1]), part.Part(cohort, [3]))
    ]
    assert len(set(told)) == 1
    less = part.Part(cohort, [3])  # of a split that is another one
    assert division_of(experiment, {"train": less, "test": Cohort([0])})["split/hash"] != told[0]


LABELLED = {
    node["proto"]: path
    for path in FILES
    for node in [yaml_config.load(path).get("dataset", {})]
    if node.get("proto") and (node["proto"] != "Manifest" or node.get("label"))
}


@pytest.mark.parametrize("proto", LABELLED)
def test_every_labelled_proto_takes_a_budget(proto, phantom, tmp_path):
    node = yaml_config.load(LABELLED[proto])
    words = [f"ckpt_dir={tmp_path}", "name=run", *data(node, phantom), "budget.samples=12"]
    config = plain(load_config(LABELLED[proto], words))
    whole = home_splits(config["dataset"], Context("train"))["train"]
    if whole.labels is None:
        assert 1 <= len(dataset_of(typed(config), config, "train")) <= 12
        return
    for keys in ({}, {"unlabelled": "keep"}):
        config["budget"] |= keys
        some = dataset_of(typed(config), config, "train", augment=True)
        assert 1 <= some.labelled <= 12
        assert len(some) == (len(whole) if keys else some.labelled)
        assert len(dataset_of(typed(config), config, "train")) == some.labelled
        for index in (0, len(some) - 1):
            there = whole.ids.index(some.ids[index])
            assert torch.equal(some.picture(index), whole.picture(there))
            assert some[index]["id"] == some.ids[index]
        batch = some.collate([some[0], some[len(some) - 1]])
        assert len(batch["labels"]) == 2 and batch["images"].dim() == 5
    assert len(dataset_of(typed(config), config, "test")) == len(
        home_splits(config["dataset"], Context("test"))["test"]
    )


def test_a_run_with_a_budget(tiny, tmp_path, capsys):
    console._told.clear()
    splits = tmp_path / "s.json"
    assert main(["split", str(CONFIG), *tiny(), "--nested", "0.7", "--out", str(splits)]) == 0
    words = [*tiny(), f"split_file={splits}", "train_fraction=0.7"]
    words += ["dataset.label=dominant", "dataset.labels=[]", "model.cnn.backbone=test_resnet"]
    budget = ["budget.samples=24", "budget.seed=3"]
    assert main(["train", str(CONFIG), *words, *budget]) == 0
    told = capsys.readouterr().err
    assert told.count("budget: ") >= 1 and told.count(" training images (") == 1
    folder = tmp_path / "ckpt/tiny"
    content = checkpoint.read_run(folder / "last_0.pth")
    config = plain(load_config(folder))
    train = dataset_of(typed(config), config, "train")
    assert torch.equal(content["trained_on"], train.members()) and len(train) <= 24
    assert not len(content["labels_of"])  # SimCLR takes no labels
    audited = {p.name: len(p) for p in experiment_parts(typed(config), config)}
    assert audited["train"] > len(train)
    quick = ["ensemblor.splits=[test]", "ensemblor.post_processing=[{knn: {k: 3, draws: 20}}]"]
    quick += ["ensemblor.name=quick", "overwrite=true"]
    assert main(["ensemble", str(folder), *quick]) == 0
    place = folder / "evaluations/quick"
    results = json.loads((place / "results.json").read_text())
    assert results["split/budget"] == "samples 24, seed 3"
    assert results["split/budget_images"] == len(train)
    assert f"{len(train)} of {audited['train']} training images" in (
        place / "report.html"
    ).read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["train", str(folder), "ckpt=last", "budget.samples=12"]) == 2
    assert "the train split was another one then" in capsys.readouterr().err
    assert main(["ensemble", str(folder), "budget=null", *quick]) == 0
    assert "was trained with the budget samples 24, seed 3" in capsys.readouterr().err
    assert "split/budget" not in json.loads((place / "results.json").read_text())


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.sampled_from(["fraction", "samples", "samples_per_class"]), st.integers(0, 9))
def test_what_a_refusal_offers_is_enough(cohort, key, seed):
    """And not more than needed: one image less is refused."""
    least = {"fraction": 1e-4, "samples": 1, "samples_per_class": 1}
    try:
        choose(cohort, Budget(**{key: least[key]}), seed=seed)
        return
    except UserError as error:
        name, value = str(error).split("write ")[1].removesuffix(" or more").split(": ")
    assert name == key
    choose(cohort, Budget(**{key: type(least[key])(value)}), seed=seed)
    if key != "fraction" and int(value) > 1:
        with pytest.raises(UserError, match="takes no patient"):
            choose(cohort, Budget(**{key: int(value) - 1}), seed=seed)


def test_nothing_kept():
    with pytest.raises(UserError, match=r"budget.keep: no labelled image is left"):
        choose(Cohort([0, 0], ["a", "a"]), Budget(keep={"c0": 0.1}), seed=0)
