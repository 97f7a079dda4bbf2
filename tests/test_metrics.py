"""Metrics against scikit-learn, the oracles, and what must hold for any input."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics import probe as probe_module

ORACLES = Path(__file__).parent / "oracles"
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def blobs(rows=200, classes=3, dim=8, noise=1.0, seed=0):
    """Rows around one random centre per class."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(classes, dim)) * 2
    y = rng.integers(classes, size=rows)
    return (centre[y] + noise * rng.normal(size=(rows, dim))).astype(np.float32), y


# ---------------------------------------------------------------- ranking


@few
@given(seeds, st.integers(2, 80), st.sampled_from([0, 1, 6]))
def test_ranking_equals_sklearn_with_ties(seed, rows, decimals):
    rng = np.random.default_rng(seed)
    y, score = rng.integers(2, size=rows), np.round(rng.normal(size=rows), decimals)
    if len(set(y)) == 2:
        assert metrics.auroc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
        assert metrics.auroc(y, -score) == pytest.approx(1 - metrics.auroc(y, score), abs=1e-12)
        expected = average_precision_score(y, score)
        assert metrics.auprc(y, score) == pytest.approx(expected, abs=1e-12)
    else:
        assert np.isnan(metrics.auroc(y, score))


def test_auroc_equals_the_medmnist_evaluator():
    seen = np.load(ORACLES / "seeds_medmnist_metrics.npz")
    binary = metrics.auroc(seen["binary/y"], seen["binary/score"][:, 1])
    assert binary == pytest.approx(float(seen["binary/auc"]), abs=1e-12)
    many = metrics.columns(metrics.auroc, seen["multilabel/y"], seen["multilabel/score"])
    assert metrics.macro(many) == pytest.approx(float(seen["multilabel/auc"]), abs=1e-12)
    y, score = seen["multi/y"][:, 0], seen["multi/score"]
    rest = metrics.columns(metrics.auroc, metrics.one_hot(y, score.shape[1]), score)
    assert metrics.macro(rest) == pytest.approx(float(seen["multi/auc"]), abs=1e-12)
    assert metrics.accuracy(y, score.argmax(1)) == pytest.approx(float(seen["multi/acc"]))


def test_unknown_rows_are_left_out_and_undefined_findings_are_not_zero():
    y = np.array([[0, 1], [1, 1], [np.nan, 1], [1, 1]])
    score = np.array([[0.1, 0], [0.9, 0], [9.0, 0], [0.8, 0]])
    found = metrics.columns(metrics.auroc, y, score)
    assert found[0] == 1 and np.isnan(found[1]) and metrics.macro(found) == 1
    assert np.isnan(metrics.macro(np.array([np.nan])))


@pytest.mark.parametrize(
    "y, score", [([0, 1, 2], [1, 2, 3]), ([0, 1], [1]), ([0, 1], [np.nan, 1.0])]
)
def test_ranking_refuses(y, score):
    with pytest.raises(UserError):
        metrics.auroc(y, score)


@few
@given(seeds)
def test_balanced_accuracy_equals_sklearn(seed):
    rng = np.random.default_rng(seed)
    y, guess = rng.integers(4, size=30), rng.integers(4, size=30)
    if set(guess) <= set(y):
        expected = balanced_accuracy_score(y, guess)
        assert metrics.balanced_accuracy(y, guess) == pytest.approx(expected)


# ---------------------------------------------------------------- knn and probe


@few
@given(seeds, st.integers(1, 12))
def test_knn_equals_the_definition(seed, k):
    rng = np.random.default_rng(seed)
    train, test, y = rng.normal(size=(9, 4)), rng.normal(size=(5, 4)), rng.integers(3, size=9)
    cos = (test / np.linalg.norm(test, axis=1)[:, None]) @ (
        train / np.linalg.norm(train, axis=1)[:, None]
    ).T
    for row, chosen in zip(cos, metrics.knn(train, y, test, k=k, tau=0.07), strict=True):
        near = np.argsort(-row)[:k]
        votes = [np.exp(row[near] / 0.07) @ (y[near] == c) for c in range(3)]
        assert chosen == np.argmax(votes)


def test_knn_ties_go_to_the_earlier_row_and_any_labels_work():
    same = np.ones((6, 2))
    assert metrics.knn(same, ["b", "b", "a", "a", "a", "a"], same[:1], k=3, tau=0.1) == ["b"]
    assert metrics.knn(same[:4], [7, 7, 3, 3], same[:1], k=4, tau=1e-4) == [3]


def test_knn_findings_vote_on_known_rows_only():
    x = np.array([[1.0, 0], [0.9, 0.1], [0, 1.0]])
    y = np.array([[np.nan, np.nan], [1, np.nan], [0, np.nan]])
    score = metrics.knn_scores(x, y, x[:1], k=1)
    assert score[0, 0] == 1 and np.isnan(score[0, 1])


def test_knn_of_other_groups_equals_the_vote_of_a_bank_without_the_own():
    rng = np.random.default_rng(3)
    train, test, y = rng.normal(size=(30, 4)), rng.normal(size=(9, 4)), rng.integers(3, size=30)
    many = rng.choice([0.0, 1.0, np.nan], size=(30, 2))
    bank, asked = rng.integers(5, size=30).astype(str), rng.integers(6, size=9).astype(str)
    for labels in (np.r_[y[:-1], 2], many):  # the largest class stays in sight
        found = metrics.knn_scores(train, labels, test, train_groups=bank, test_groups=asked)
        for i, name in enumerate(asked):
            keep = bank != name
            hot = np.eye(3)[labels] if labels.ndim == 1 else labels
            alone = metrics.knn_scores(train[keep], hot[keep], test[i : i + 1])
            np.testing.assert_allclose(found[i], alone[0], rtol=1e-9)
    nobody = metrics.knn_scores(train, y, test, train_groups=["q"] * 30, test_groups=["q"] * 9)
    assert (nobody == 0).all()


@pytest.mark.parametrize("k, tau", [(0, 0.1), (3, 0.0)])
def test_knn_refuses(k, tau):
    with pytest.raises(UserError, match="k must be at least 1"):
        metrics.knn(np.ones((3, 2)), [0, 1, 0], np.ones((1, 2)), k=k, tau=tau)


def test_probe_learns_classes_and_is_indifferent_to_scale():
    (x, y), (v, yv), (t, yt) = (blobs(seed=s) for s in (1, 2, 3))
    p = metrics.linear_probe(x, y, v, yv, t)
    assert p.shape == (200, 3) and np.allclose(p.sum(axis=1), 1)
    assert metrics.accuracy(yt, p.argmax(1)) > 0.9
    stretch = np.geomspace(1e-3, 1e3, x.shape[1])
    again = metrics.linear_probe(x * stretch + 5, y, v * stretch + 5, yv, t * stretch + 5)
    assert np.abs(p - again).max() < 1e-2


def test_probe_chooses_strong_regularisation_on_noise():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 100)), np.arange(60) % 2
    v, t = rng.normal(size=(40, 100)), rng.normal(size=(40, 100))
    p = metrics.linear_probe(x, y, v, np.arange(40) % 2, t)
    assert np.abs(p - 0.5).max() < 0.25


def three_classes(rng, n):
    """Three classes that planes part."""
    y = np.arange(n) % 3
    x = 2 * np.eye(3)[y] + rng.normal(size=(n, 3))
    return x, y


@pytest.mark.parametrize("held", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_validation_that_lacks_a_class_does_not_choose(held):
    rng = np.random.default_rng(5)
    (x, y), (t, yt) = three_classes(rng, 120), three_classes(rng, 300)
    v, yv = three_classes(rng, 90)
    keep = np.isin(yv, held)
    v, yv = -v[keep], yv[keep]  # it says that a model which knows nothing is best
    probe = metrics.fit_probe(x, y, v, yv)
    assert [choice.by for choice in probe.choices] == ["cross-validation"]
    assert (probe(t) == metrics.linear_probe(x, y, x[:0], y[:0], t)).all()
    assert metrics.accuracy(yt, probe(t).argmax(1)) > 0.75
    findings, of_v = np.eye(3)[y], np.eye(3)[yv]
    probe = metrics.fit_probe(x, findings, v, of_v)
    both = [len(set(column)) == 2 for column in of_v.T]
    expected = ["validation" if b else "cross-validation" for b in both]
    assert [choice.by for choice in probe.choices] == expected


def test_a_few_rows_of_validation_do_not_choose():
    x, y = three_classes(np.random.default_rng(6), 90)
    for n in (0, 1, 9, 10, 14):
        (choice,) = metrics.fit_probe(x, y, x[:n], y[:n]).choices
        assert choice.by == ("validation" if n >= 10 else "cross-validation")
        assert bool(choice.because) == (n < 10)


def test_classes_that_training_lacks_do_not_choose():
    x, y = three_classes(np.random.default_rng(7), 120)
    few = y < 2  # a label budget that lost a class
    both = metrics.fit_probe(x[few], y[few], x, y)
    assert [choice.by for choice in both.choices] == ["validation"]
    assert (both(x)[:, :2] == metrics.linear_probe(x[few], y[few], x[few], y[few], x)).all()


def test_cross_validation_parts_no_patient_and_scores_classes_it_has_fitted():
    rng = np.random.default_rng(8)
    for patients, images in ((6, 5), (9, 2), (30, 1), (4, 3)):
        group = np.repeat(np.arange(patients), images)
        y = (group + (rng.random(len(group)) < 0.2)) % 3
        folds = probe_module._folds(np.c_[group, y].astype(float), y, group, 3)
        assert folds or patients == 4
        for fold in folds:
            assert not set(fold.x_ND[:, 0]) & set(fold.held_VD[:, 0])
            assert set(fold.y_V) <= set(fold.y_N)


def test_training_that_cannot_choose_either_takes_the_usual_strength():
    x, y = three_classes(np.random.default_rng(9), 60)
    of_class = [f"p{c}" for c in y]
    several = [f"p{i}" if c == 0 else f"p{c}" for i, c in enumerate(y)]  # of one class alone
    for groups in (["one"] * 60, of_class, several):
        probe = metrics.fit_probe(x, y, x[:0], y[:0], groups=groups)
        assert probe.choices[0].by == "default" and np.isfinite(probe(x)).all()
    several = [f"p{i}" if c < 2 else f"p{c}" for i, c in enumerate(y)]
    (choice,) = metrics.fit_probe(x, y, x[:0], y[:0], groups=several).choices
    assert choice.by == "cross-validation"


def test_probe_findings_use_known_rows_and_single_classes_score_constant():
    x, y = blobs(classes=2)
    findings = np.stack([y, np.ones_like(y), np.full(len(y), np.nan)], axis=1).astype(float)
    findings[:50, 0] = np.nan
    p = metrics.linear_probe(x, findings, x, findings, x[:50])
    alone = metrics.linear_probe(x[50:], findings[50:, :1], x[50:], findings[50:, :1], x[:50])
    assert np.isnan(p[:, 2]).all() and (p[:, 1] == 1).all()
    assert metrics.auroc(y[:50], p[:, 0]) > 0.9 and p.shape == (50, 3)
    assert np.abs(p[:, 0] - alone[:, 0]).max() < 0.1  # only the standardisation saw other rows


def test_probe_survives_classes_missing_on_one_side():
    x, y = blobs(classes=2)
    assert metrics.linear_probe(x, y, x, np.full(len(y), 2), x).shape == (200, 3)
    unknown = np.full((len(y), 1), np.nan)
    p = metrics.linear_probe(x, y[:, None].astype(float), x, unknown, x)
    assert metrics.auroc(y, p[:, 0]) > 0.9


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(wrong):
    x, y = blobs(rows=10)
    x[4, 0] = wrong
    with pytest.raises(UserError, match="row 4"):
        metrics.linear_probe(x, y, x, y, x)


# ---------------------------------------------------------------- bootstrap


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(100):
        _, low, high = metrics.bootstrap(np.mean, rng.normal(size=60), draws=200, seed=trial)
        covered += low <= 0 <= high
    assert 87 <= covered <= 99


def test_bootstrap_keeps_groups_whole_and_is_wider_for_it():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=40), 10)
    groups = [f"p{i}" for i in np.repeat(np.arange(40), 10)]
    sizes = set()
    value, low, high = metrics.bootstrap(
        lambda a: sizes.add(len(a)) or a.mean(), x, groups=groups, draws=300
    )
    _, low_1, high_1 = metrics.bootstrap(np.mean, x, draws=300)
    assert sizes == {400} and value == pytest.approx(x.mean())
    assert high - low > 2 * (high_1 - low_1)


def test_bootstrap_of_ragged_groups_draws_whole_groups():
    groups, x = np.array([0, 1, 1, 2, 2, 2]), np.arange(6)

    def whole(rows):
        count = np.bincount(rows, minlength=6)
        assert count[1] == count[2] and count[3] == count[4] == count[5]
        return 0.0

    metrics.bootstrap(whole, x, groups=groups, draws=50)


def test_paired_difference_is_narrower_than_either_score():
    rng = np.random.default_rng(1)
    y = rng.integers(2, size=200)
    a = y + rng.normal(size=200)
    b = a + 0.05 * rng.normal(size=200)
    low, high = metrics.bootstrap(
        lambda y, a, b: metrics.auroc(y, a) - metrics.auroc(y, b), y, a, b
    )[1:]
    low_a, high_a = metrics.bootstrap(metrics.auroc, y, a)[1:]
    assert high - low < (high_a - low_a) / 3


def test_bootstrap_redraws_what_is_undefined_and_counts_it():
    y, score = np.array([1] + [0] * 9), np.arange(10.0)[::-1]
    found = metrics.resample(metrics.auroc, y, score, draws=100)
    assert len(found.draws) == 100 and not np.isnan(found.draws).any() and found.redrawn > 20
    assert np.isnan(metrics.bootstrap(metrics.auroc, np.zeros(10), score)).all()
    value, low, high = metrics.bootstrap(np.mean, score, groups=["one"] * 10)
    assert value == 4.5 and np.isnan(low) and np.isnan(high)


def test_bootstrap_is_reproducible_and_refuses_ragged_arrays():
    x = np.random.default_rng(0).normal(size=30)
    assert metrics.bootstrap(np.median, x, seed=3) == metrics.bootstrap(np.median, x, seed=3)
    assert metrics.bootstrap(np.median, x, seed=3) != metrics.bootstrap(np.median, x, seed=4)
    with pytest.raises(UserError):
        metrics.bootstrap(np.mean, x, groups=["a"])


# ---------------------------------------------------------------- retrieval, calibration, grounding


def test_retrieval_perfect_duplicate_and_collapsed():
    x = np.eye(20)
    perfect = metrics.retrieval(x, x)
    assert perfect["image_to_text/R@1"] == perfect["text_to_image/R@1"] == 1
    assert perfect["image_to_text/median_rank"] == 1 and perfect["duplicate_ceiling"] == 1
    twice = np.repeat(x, 2, axis=0)
    merged = metrics.retrieval(twice, twice, text_ids=np.repeat(np.arange(20), 2))
    assert merged["image_to_text/R@1"] == 1 and merged["texts"] == 20
    assert merged["duplicate_ceiling"] == 0.5
    assert metrics.retrieval(twice, twice)["image_to_text/mean_rank"] == 1.5
    flat = metrics.retrieval(np.ones((21, 4)), np.ones((21, 4)), ks=(1, 10))
    assert flat["text_to_image/R@10"] == 0 and flat["text_to_image/mean_rank"] == 11
    with pytest.raises(UserError):
        metrics.retrieval(x, x[:3])


@few
@given(seeds, st.integers(1, 20))
def test_ece_is_the_equal_mass_definition_and_ignores_row_order(seed, bins):
    rng = np.random.default_rng(seed)
    p, y = rng.random(60), rng.integers(2, size=60)
    order = np.argsort(p)
    parts = zip(np.array_split(p[order], bins), np.array_split(y[order], bins), strict=True)
    expected = sum(abs(a.mean() - b.mean()) * len(a) for a, b in parts) / 60
    assert metrics.ece(y, p, bins=bins) == pytest.approx(expected)
    mixed, coarse = rng.permutation(60), np.round(p, 1)
    again = metrics.ece(y[mixed], coarse[mixed], bins=bins)
    assert metrics.ece(y, coarse, bins=bins) == pytest.approx(again)


def test_calibration_of_classes_constants_and_nonsense():
    p = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    assert metrics.ece([0, 1, 0], p, bins=1) == pytest.approx(0.3)
    assert metrics.ece([0, 1, 0, 1], np.full(4, 0.5)) == 0
    assert metrics.brier([1, 0, np.nan], [0.8, 0.4, 0.0]) == pytest.approx(0.1)
    with pytest.raises(UserError, match="sigmoid"):
        metrics.ece([0, 1], [-3.0, 2.0])


def test_cnr_by_hand_nan_excluded_and_edge_cases():
    heat = np.array([[4.0, 6.0], [1.0, 3.0]])
    mask = np.array([[1, 1], [0, 0]])
    assert metrics.grounding_cnr(heat, mask) == pytest.approx(3 / np.sqrt(2))
    assert metrics.grounding_cnr(10 * heat + 7, mask) == pytest.approx(3 / np.sqrt(2))
    framed = np.pad(heat, 1, constant_values=np.nan)
    assert metrics.grounding_cnr(framed, np.pad(mask, 1)) == pytest.approx(3 / np.sqrt(2))
    assert metrics.grounding_cnr(np.ones((2, 2)), mask) == 0
    assert metrics.grounding_cnr(mask, mask) == np.inf
    assert np.isnan(metrics.grounding_cnr(heat, np.zeros((2, 2))))
    with pytest.raises(UserError):
        metrics.grounding_cnr(heat, mask[:1])


# ---------------------------------------------------------------- contrastive accuracy


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_contrastive_accuracy_equals_both_published_definitions(case):
    """The thesis's mean rank starts at 1; the TensorFlow code looks among the other views only."""
    torch_, tf = (np.load(ORACLES / f"seeds_ntxent_{name}.npz") for name in ("torch", "simclr_tf"))
    v1, v2 = torch_[f"{case}/v1"], torch_[f"{case}/v2"]
    for tau in (0.07, 0.1, 0.5):
        found = metrics.contrastive_accuracy(v1, v2, tau=tau)
        for ours, theirs in (("top1", "top1"), ("top5", "top5"), ("mean_rank", "mean_pos")):
            expected = float(torch_[f"{case}/tau{tau}/acc_{theirs}"])
            assert found[f"all/{ours}"] == pytest.approx(expected, rel=1e-6)
        key = f"{case}/tau{tau}/norm1/contrast"
        assert found["between/top1"] == pytest.approx(float(tf[f"{key}_acc"]), rel=1e-6)
        assert found["between/entropy"] == pytest.approx(float(tf[f"{key}_entropy"]), rel=1e-5)


@few
@given(seeds, st.integers(1, 12), st.integers(1, 60))
def test_contrastive_accuracy_equals_the_definition_in_any_blocks(seed, n, most):
    z1, z2 = np.random.default_rng(seed).normal(size=(2, n, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vilmedic_ssl.metrics.contrast.MOST", most)
        found = metrics.contrastive_accuracy(z1, z2)
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2)]
    between = [1 + sum(a @ b > a @ unit[1][i] for b in unit[1]) for i, a in enumerate(unit[0])]
    both = np.concatenate(unit)
    cos = both @ both.T - 9 * np.eye(2 * n)
    ranks = [1 + (cos[i] > cos[i, (i + n) % (2 * n)]).sum() for i in range(2 * n)]
    for name, expected in (("between", np.array(between)), ("all", np.array(ranks))):
        assert found[f"{name}/top1"] == pytest.approx((expected == 1).mean())
        assert found[f"{name}/top5"] == pytest.approx((expected <= 5).mean())
        assert found[f"{name}/mean_rank"] == pytest.approx(expected.mean())
    assert (found["between/candidates"], found["all/candidates"]) == (n, 2 * n - 1)


def test_contrastive_accuracy_of_a_collapsed_model_is_in_the_middle():
    flat = np.tile([1.0, 0.0, 0.0, 0.0], (21, 1))
    found = metrics.contrastive_accuracy(flat, flat, tau=0.1)
    assert found["between/mean_rank"] == 11 and found["all/mean_rank"] == 21
    assert found["all/top5"] == 0 and found["between/entropy"] == pytest.approx(np.log(21))
    perfect = metrics.contrastive_accuracy(np.eye(8), 3 * np.eye(8))
    assert perfect["all/top1"] == perfect["between/top1"] == 1 and "between/entropy" not in perfect


def test_contrastive_accuracy_refuses():
    with pytest.raises(UserError, match="pair up"):
        metrics.contrastive_accuracy(np.eye(3), np.eye(3)[:2])
    with pytest.raises(UserError, match="tau"):
        metrics.contrastive_accuracy(np.eye(3), np.eye(3), tau=0.0)


# ---------------------------------------------------------------- health


def test_health_at_both_ends():
    even, dead = np.eye(16), np.ones((16, 16))
    assert metrics.effective_rank(even) == pytest.approx(16)
    assert metrics.effective_rank(dead) == pytest.approx(1)
    assert metrics.effective_rank(0 * dead) == 0
    wide = np.random.default_rng(0).normal(size=(4000, 16))
    assert metrics.feature_std(wide) == pytest.approx(0.25, rel=0.02)
    assert metrics.feature_std(dead) == pytest.approx(0) == metrics.uniformity(dead)
    assert metrics.uniformity(wide) < -2 and metrics.alignment(wide, 3 * wide) == pytest.approx(0)
    assert metrics.alignment(even, -even) == pytest.approx(4)


def test_purity_and_silhouette_follow_the_classes():
    x, y = blobs(noise=0.3)
    assert metrics.knn_purity(x, y) > 0.95 and metrics.silhouette(x, y) > 0.5
    shuffled = np.random.default_rng(0).permutation(y)
    assert metrics.knn_purity(x, shuffled) < 0.45 and metrics.silhouette(x, shuffled) < 0.05
    assert np.isnan(metrics.silhouette(x, np.zeros(len(x))))
    assert np.isnan(metrics.knn_purity(x, y, groups=["one"] * len(x)))


def test_purity_does_not_count_the_same_patient():
    x = np.repeat(np.random.default_rng(0).normal(size=(50, 8)), 4, axis=0)
    y, patient = np.repeat(np.arange(50) % 2, 4), np.repeat(np.arange(50), 4)
    assert metrics.knn_purity(x, y, k=3) == 1
    assert metrics.knn_purity(x, y, k=3, groups=patient) < 0.75


# ---------------------------------------------------------------- kNN within one set


def sets_without_information(rng):
    """name -> (features, classes, patients): what tells nothing of the class."""
    sets = {}
    for name, patients, classes, images, width in (
        ("18 images, 4 classes", 18, 4, 1, 64),
        ("10 images, 2 classes", 10, 2, 1, 64),
        ("18 images, wide", 18, 4, 1, 512),
        ("60 images, 3 classes", 60, 3, 1, 8),
        ("12 patients", 12, 3, 4, 64),
    ):
        group = np.repeat(np.arange(patients), images)
        y = group % classes
        sets[name] = (rng.normal(size=(len(group), width)), y, group)
        alike = rng.normal(size=(patients, width))[group] + rng.normal(size=(len(group), width)) / 9
        sets[f"{name}, features of patients"] = (alike, y, group)
    return sets


def test_knn_within_a_set_is_at_chance_without_information():
    rng, draws, found = np.random.default_rng(0), 120, {}
    for _ in range(draws):
        for name, (x, y, group) in sets_without_information(rng).items():
            found.setdefault(name, []).append(metrics.knn_accuracy(x, y, groups=group))
    for name, values in found.items():
        y = sets_without_information(rng)[name][1]
        noise = np.std(values) / np.sqrt(draws)
        assert np.mean(values) == pytest.approx(1 / (y.max() + 1), abs=0.01 + 3 * noise), name


def test_knn_within_a_set_reads_what_other_patients_share():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(30), 3)
    y = group % 3
    x = np.eye(3)[y] + rng.normal(size=(90, 3)) / 4
    assert metrics.knn_accuracy(x, y, groups=group) > 0.9
    assert metrics.knn_accuracy(x, y) > 0.9
    unlabelled = np.where(np.arange(90) < 30, -1, y)
    kept = metrics.knn_accuracy(x, unlabelled, groups=group)
    assert kept == metrics.knn_accuracy(x[30:], y[30:], groups=group[30:])


def test_knn_within_a_set_knows_that_blank_names_nobody():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 8)), np.arange(40) % 2
    alone = metrics.knn_accuracy(x, y)
    for blank in ("", " ", "nan", None):
        assert metrics.knn_accuracy(x, y, groups=[blank] * 40) == alone
    assert metrics.knn_accuracy(x, y, groups=list(map(str, range(40)))) == alone


def test_knn_within_a_set_is_undefined_where_no_other_patient_has_the_class():
    x, y = np.random.default_rng(3).normal(size=(12, 4)), np.arange(12) % 2
    assert np.isnan(metrics.knn_accuracy(x, np.zeros(12, dtype=int)))  # one class
    assert np.isnan(metrics.knn_accuracy(x, y, groups=["one"] * 12))  # one patient
    assert np.isnan(metrics.knn_accuracy(x, y, groups=[f"p{c}" for c in y]))  # one per class
    assert np.isnan(metrics.knn_accuracy(x, np.full(12, -1)))
    single = np.where(np.arange(12) == 0, 2, y)  # a class of one image is not counted
    assert np.isfinite(metrics.knn_accuracy(x, single))


def test_purity_without_information_is_at_its_chance():
    rng, draws, found = np.random.default_rng(4), 100, {}
    for _ in range(draws):
        for name, (x, y, group) in sets_without_information(rng).items():
            gain = metrics.knn_purity(x, y, groups=group)
            gain -= metrics.knn_purity_chance(y, groups=group)
            found.setdefault(name, []).append(gain)
    for name, values in found.items():
        noise = np.std(values) / np.sqrt(draws)
        assert np.mean(values) == pytest.approx(0, abs=0.01 + 3 * noise), name
    y = np.array([0, 0, 0, 1])
    assert metrics.knn_purity_chance(y) == pytest.approx((2 / 3 * 3 + 0) / 4)
    assert np.isnan(metrics.knn_purity_chance(y, groups=["one"] * 4))
