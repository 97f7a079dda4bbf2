"""Intervals: which draws count, how often they hold the truth, and what is said where there is
none.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from results import number

from vilmedic_ssl import metrics
from vilmedic_ssl.executors.compare import groups_of, rows_of
from vilmedic_ssl.executors.compare_view import printed
from vilmedic_ssl.executors.ensemblor import Outcome, headline, write_results
from vilmedic_ssl.executors.flow_table import as_row, as_text, cells, in_words
from vilmedic_ssl.executors.predictions import Predictions
from vilmedic_ssl.metrics import Evidence, Support
from vilmedic_ssl.metrics.bootstrap import counts_of_draws
from vilmedic_ssl.post_processing.classification import classification
from vilmedic_ssl.post_processing.knn import knn
from vilmedic_ssl.post_processing.linear_probe import linear_probe
from vilmedic_ssl.report import write_report

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from interval_coverage import CASES, PATIENTS, Cohort, coverage  # noqa: E402

# ---------------------------------------------------------------- draws


def test_a_draw_counts_for_every_score_that_it_defines():
    """Of ten patients one has the finding: a third of the draws define no AUROC, all an accuracy,
    whose draws are those of an accuracy by itself.
    """
    y, score = np.array([1] + [0] * 9), np.arange(10.0)[::-1]

    def both(y, score):
        return np.array([metrics.accuracy(y, score > 5), metrics.auroc(y, score)])

    together = metrics.resample(both, y, score, draws=400)
    alone = metrics.resample(lambda y, s: metrics.accuracy(y, s > 5), y, score, draws=400)
    assert np.array_equal(together.draws[:, 0], alone.draws)
    assert together.lost[0] == 0 and 100 < together.lost[1] < 180  # (1 - 1 / 10)^10 = 0.35
    (low, none), (high, _) = together.interval()
    assert low < 0.7 < high and np.isnan(none)
    assert together.withheld()[1] == f"undefined in {together.lost[1]} of 400 draws"


def test_five_test_groups_are_no_interval_and_a_rare_class_does_not_narrow_six():
    """Classes that only one group has: redrawing until all are there would leave five draws of a
    kind, and an interval of nothing.
    """
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(5), 60)
    right = rng.random(300) < np.array([0.5, 0.6, 0.7, 0.8, 0.6])[group]
    five = metrics.resample(np.mean, right, groups=group, draws=300, limits=metrics.UNIT)
    assert five.withheld() == "5 patients" and np.isnan(five.interval()).all()
    assert five.draws.std() > 0.03  # every combination of groups was there
    y = np.where(group == 0, 1, 0)
    measured = []
    for labels in (np.zeros(300, int), y):  # with and without the rare class

        def accuracy(labels, right):
            return np.array([right.mean(), metrics.auroc(labels, right)])

        found = metrics.resample(accuracy, labels, right.astype(float), groups=group, draws=300)
        measured.append(found.draws[:, 0])
    assert np.array_equal(*measured)


@pytest.mark.parametrize("patients", [1, 2, 3, 4, 5])
def test_below_six_patients_there_is_no_interval(patients):
    x = np.random.default_rng(0).random(60)
    found = metrics.resample(np.mean, x, groups=np.arange(60) % patients, draws=100)
    assert np.isnan(found.interval()).all()
    assert found.withheld() == f"{patients} patient{'s' * (patients > 1)}"


def test_six_equal_patients_have_one_and_six_unequal_ones_have_none():
    x = np.random.default_rng(0).random(60)
    low, high = metrics.resample(np.mean, x, groups=np.arange(60) % 6, draws=100).interval()
    assert low < x.mean() < high
    lopsided = np.where(np.arange(60) < 55, 0, np.arange(60) - 54)
    found = metrics.resample(np.mean, x, groups=lopsided, draws=100)
    assert found.withheld() == "6 patients, some with most of the images"


def test_what_a_score_rests_on():
    """Kish's number of equal patients, and parts joined."""
    groups = [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    everyone = np.ones(10, bool)
    one = Support.of([everyone], groups)
    assert one.groups == 8 and one.equal == pytest.approx(100 / 16)
    assert one.freedom == pytest.approx(one.equal - 1)
    assert one.inflation == pytest.approx(one.equal / (one.equal - 1))
    y = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    assert Evidence(y, 2, groups).of_ranking(1).freedom == 0  # one patient has the finding
    half = Evidence(np.arange(40) % 2, 2, None)
    assert half.of_ranking(1).freedom == pytest.approx(38)  # as of a two-sample t test
    assert half.of_mean(np.array([True, True])).freedom == pytest.approx(38)


def test_an_interval_stays_within_its_limits_and_a_perfect_score_has_one():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        right = (rng.random(80) < share).astype(float)
        low, high = metrics.resample(np.mean, right, draws=200, limits=metrics.UNIT).interval()
        assert 0 < low < right.mean() < high < 1
    reach = 1 - 0.025 ** (1 / 20)
    for value, ends in ((0.0, (0, reach)), (1.0, (1 - reach, 1))):
        found = metrics.resample(np.mean, np.full(20, value), draws=50, limits=metrics.UNIT)
        assert np.ravel(found.interval()) == pytest.approx(ends)
    assert metrics.resample(np.mean, np.zeros(20), draws=50).withheld() == "the same in every draw"


# ---------------------------------------------------------------- coverage


def test_the_simulation_draws_as_the_package_does():
    cohort = Cohort.made(12, draws=50, seed=3)
    y = cohort.labels([0.5, 0.5]) == 1
    score = y + cohort.alike(0.3)
    found = metrics.resample(metrics.auroc, y, score, groups=cohort.of_N, draws=50, seed=3)
    assert cohort.auroc(y, score) == pytest.approx(np.r_[found.value, found.draws], nan_ok=True)
    assert np.array_equal(cohort.counts_RG, counts_of_draws(12, 50, 3))
    right = score > 0.5
    found = metrics.resample(np.mean, right, groups=cohort.of_N, draws=50, seed=3)
    values = cohort.shares(right, np.ones(len(right)))
    assert values == pytest.approx(np.r_[found.value, found.draws])


def check(names, patients, cohorts, draws):
    """93 to 99 %, three standard errors of the simulation aside, or hardly any is printed."""
    for name in names:
        for count in patients:
            one = coverage(CASES[name], count, cohorts=cohorts, draws=draws, seed=1)
            if count < 6:
                assert one.printed == 0, (name, count)
            if one.printed < 0.1 * cohorts:
                continue
            low, high = (3 * (p * (1 - p) / one.printed) ** 0.5 for p in (0.93, 0.99))
            assert 0.93 - low <= one.share <= 0.99 + high, (name, count, one)


def test_intervals_hold_the_truth_or_are_withheld():
    names = "accuracy 0.75", "accuracies 0.9 and 0.88", "balanced accuracy, rare class (10 %)"
    check(names, PATIENTS, cohorts=150, draws=120)
    check(["AUROC 0.8, mixed", "AUROCs 0.8 and 0.7"], (4, 10), cohorts=100, draws=120)
    check(["AUROC 0.95, rare (20 %)"], (50,), cohorts=50, draws=120)


@pytest.mark.slow
def test_all_intervals_hold_the_truth_or_are_withheld():
    check(CASES, PATIENTS, cohorts=400, draws=300)


# ---------------------------------------------------------------- what is said


def features_of(train_y, test_y, patients, findings=False, classes=4):
    """Features that tell the classes apart, half of the time."""
    rng = np.random.default_rng(0)

    def part(name, y, patients):
        if findings:
            y = np.asarray(y, np.float32)
            x = y @ axes
        else:
            x = axes[y]
        x = x + rng.normal(size=x.shape) * 2
        names = [f"class {c}" for c in range(classes)]
        scores = np.exp(x[:, :classes]) / np.exp(x[:, :classes]).sum(1, keepdims=True)
        rows = {"encoder": x.astype(np.float32), "scores": scores.astype(np.float32)}
        ids = [f"{name}/{i}" for i in range(len(y))]
        who = None if patients is None else [str(p) for p in patients]
        return SimpleNamespace(
            name=name, rows=rows, labels=np.asarray(y), label_names=names, ids=ids, patients=who
        )

    axes = np.eye(classes, 16) * 3
    parts = {"train": part("train", train_y, np.arange(len(train_y)))}
    parts["test"] = part("test", test_y, patients)
    return SimpleNamespace(
        splits=["test"],
        seed=0,
        tag="best-1_0",
        has=lambda split: split in parts,
        get=lambda split, source="model": parts[split],
        dataset=lambda split: parts[split],
    )


@pytest.mark.parametrize("plugin", [knn, linear_probe, classification])
def test_a_class_absent_from_train_is_no_part_of_the_mean(plugin, tmp_path, capfd):
    rng = np.random.default_rng(1)
    test_y = rng.integers(4, size=240)
    features = features_of(rng.integers(3, size=300), test_y, np.arange(240) // 4)
    keys = {} if plugin is classification else {"references": ()}
    found = dict(plugin(features, tmp_path, draws=30, **keys))
    stem = f"test/{plugin.__name__}"
    each = [number(found[f"{stem}/auroc/class {c}"]) for c in range(3)]
    assert number(found[f"{stem}/auroc"]) == pytest.approx(np.mean(each))
    assert f"{stem}/auroc/class 3" not in found
    assert found[f"{stem}/auroc/left_out"] == "1 of 4: class 3 (not learnt from train)"
    if plugin is not classification:  # counted as wrong, in both
        assert number(found[f"{stem}/accuracy"]) < (test_y != 3).mean()
        assert number(found[f"{stem}/balanced_accuracy"]) < 0.75
    told = capfd.readouterr().err
    assert "train has no image of class 3" in told and "count as wrong" in told
    outcome = Outcome()
    for name, value in found.items():
        outcome.add(plugin.__name__, name, value)
    assert "the mean leaves out 1 of 4: class 3" in headline(outcome.results)
    write_results(tmp_path, outcome.results)
    held = json.loads((tmp_path / "results.json").read_text())
    assert "class 3" in held[f"{stem}/auroc/left_out"]
    page = report(tmp_path, outcome.results)
    assert "mean without 1 of 4: class 3" in page
    table = json.loads((tmp_path / f"{plugin.__name__}_best-1_0.json").read_text())
    assert table[f"{stem}/auroc"]["left_out"] == held[f"{stem}/auroc/left_out"]


@pytest.mark.parametrize("kind", ["never", "always"])
@pytest.mark.parametrize("plugin", [knn, linear_probe, classification])
def test_a_finding_of_one_kind_in_train_is_no_part_of_the_means(plugin, kind, tmp_path):
    rng = np.random.default_rng(1)
    train_y = (rng.random((300, 4)) < 0.4).astype(np.float32)
    train_y[:, 2] = kind == "always"
    test_y = rng.random((240, 4)) < 0.4
    features = features_of(train_y, test_y, np.arange(240) // 4, findings=True)
    found = dict(plugin(features, tmp_path, draws=0))
    stem = f"test/{plugin.__name__}"
    each = [number(found[f"{stem}/auroc/class {c}"]) for c in (0, 1, 3)]
    assert number(found[f"{stem}/auroc"]) == pytest.approx(np.mean(each))
    for mean in ("auroc", "auprc"):
        assert found[f"{stem}/{mean}/left_out"] == "1 of 4: class 2 (not learnt from train)"


def test_one_class_in_train_ranks_nothing_and_is_always_decided_for(tmp_path):
    features = features_of(np.full(50, 2), np.arange(60) % 4, np.arange(60) // 2)
    for plugin in (knn, linear_probe):
        found = dict(plugin(features, tmp_path, draws=0, references=()))
        assert number(found[f"test/{plugin.__name__}/accuracy"]) == 0.25
        assert f"test/{plugin.__name__}/auroc" not in found


def report(folder, results):
    keys = {"title": "t", "figures": [], "config": {}, "log": [], "card": {}, "checkpoints": []}
    return write_report(folder, results=results, failures=[], **keys).read_text(encoding="utf-8")


def test_a_withheld_interval_is_said_wherever_it_is_read(tmp_path, capfd):
    rng = np.random.default_rng(1)
    y = rng.integers(2, size=40)
    features = features_of(rng.integers(2, size=100), y, np.arange(40) % 2, classes=2)
    outcome = Outcome()
    for name, value in knn(features, tmp_path, draws=50, references=("pixels",)):
        outcome.add("knn", name, value)
    results = outcome.results
    assert "test/knn/accuracy/low" not in results
    assert results["test/knn/accuracy/interval"] == "no interval: 2 patients"
    assert "(no interval: 2 patients)" in headline(results)
    told = capfd.readouterr().err
    assert told.count("have no interval, as too few patients stand behind them") == 1
    page = report(tmp_path, results)
    assert "<small>no interval: 2 patients</small>" in page and "nan" not in page
    assert "or there is none" in page  # no difference is called clear
    run = tmp_path / "run"
    run.mkdir()
    (run / "config_0.yml").write_text("name: run\nmodel: {proto: SimCLR}\n")
    write_results(run, results)
    groups = groups_of([run])
    (row,) = rows_of(groups)
    assert row["test/knn/accuracy/interval"] == "no interval: 2 patients"
    assert "(no interval: 2 patients)" in printed(groups, [row])


def test_unknown_patients_are_called_images(tmp_path, capfd):
    features = features_of(np.arange(100) % 2, np.arange(4) % 2, None, classes=2)
    found = dict(knn(features, tmp_path, draws=50, references=()))
    assert found["test/knn/accuracy/interval"] == "no interval: 4 images"
    assert "too few images" in capfd.readouterr().err


def predicted(y, patients, rng, blank=()):
    score = np.eye(3)[y] + rng.normal(size=(len(y), 3))
    score[:, list(blank)] = np.nan
    ids = [str(i) for i in range(len(y))]
    return Predictions(ids, patients, y, ["a", "b", "c"], score.astype(np.float32), 12)


@pytest.mark.parametrize("patients", [2, 40])
def test_a_flow_says_what_it_leaves_out_and_withholds(patients):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=120)
    who = [str(i % patients) for i in range(120)]
    made = {
        "1 %": {
            "base": [predicted(y, who, rng), predicted(y, who, rng, blank=[2])],
            "other": [predicted(y, who, rng), predicted(y, who, rng)],
        }
    }
    found = cells(made, baseline="base", names=["accuracy", "auroc"], draws=60)
    text, words = as_text(found, ["accuracy", "auroc"], "base"), in_words(found, "accuracy", "base")
    auroc = next(cell for cell in found if cell.metric == "auroc" and cell.stage == "other")
    hot = metrics.one_hot(y, 3)
    each = [
        metrics.auroc(hot[:, c], one.scores[:, c]) for one in made["1 %"]["other"] for c in (0, 1)
    ]
    assert auroc.standing.mean.value == pytest.approx(np.mean(each))
    assert as_row(auroc)["left_out"] == "1 of 3: c"
    assert any("at 1 % leaves out 1 of 3: c" in sentence for sentence in words)
    row = as_row(found[1])
    if patients == 2:
        assert text.count("(no interval: 2 patients)") == 5
        assert row["low"] is None and row["interval"] == "no interval: 2 patients"
        assert row["minus_interval"] == "no interval: 2 patients"
    else:
        assert "no interval" not in text and row["low"] < row["mean"] < row["high"]
        assert row["interval"] == row["minus_interval"] == ""
