"""Scores of decisions and probabilities against scikit-learn, and the labels that are left out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from vilmedic_ssl import metrics

ORACLES = Path(__file__).parent / "oracles"
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
decimals = st.sampled_from([0, 1, 6])  # few of them make ties


def drawn(seed, decimals, classes, rows=30):
    """Labels, and probabilities with ties."""
    rng = np.random.default_rng(seed)
    p = np.round(rng.dirichlet(np.ones(classes), size=rows), decimals)
    return rng.integers(classes, size=rows), p


@few
@given(seeds, decimals, st.integers(3, 8), st.integers(1, 6))
def test_top_k_equals_sklearn_with_ties(seed, decimals, classes, k):
    y, p = drawn(seed, decimals, classes)
    # scikit-learn gives equal scores to the higher class, argmax to the lower one
    mirrored = classes - 1 - y, p[:, ::-1]
    expected = 1.0
    if k < classes:
        expected = theirs.top_k_accuracy_score(*mirrored, k=k, labels=np.arange(classes))
    assert metrics.top_k(y, p, k=k) == pytest.approx(expected)
    assert metrics.top_k(y, p, k=1) == metrics.accuracy(y, p.argmax(1))


@few
@given(seeds, st.integers(2, 6), st.integers(1, 25))
def test_per_class_scores_equal_sklearn(seed, classes, rows):
    rng = np.random.default_rng(seed)
    y, said = rng.integers(classes, size=rows), rng.integers(classes, size=rows)
    count = metrics.confusion(y, said, classes=classes)
    labels = np.arange(classes)
    assert (count == theirs.confusion_matrix(y, said, labels=labels)).all()
    each = metrics.per_class(count)
    expected = theirs.precision_recall_fscore_support(y, said, labels=labels, zero_division=0)
    for mine, other in zip(each, expected, strict=True):
        np.testing.assert_allclose(np.nan_to_num(mine), other, atol=1e-12)
    assert (np.isnan(each.f1) == ~np.isin(labels, [*y, *said])).all()
    for mine, name in zip(each[:3], ("precision", "recall", "f1"), strict=True):
        score = getattr(theirs, f"{name}_score")
        assert metrics.macro(mine) == pytest.approx(
            score(y, said, average="macro", zero_division=0)
        )


@few
@given(seeds, decimals)
def test_per_finding_scores_equal_sklearn_where_known(seed, decimals):
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=(25, 3)).astype(float)
    y[rng.random(y.shape) < 0.2] = np.nan
    p = np.round(rng.random(y.shape), decimals)
    each = metrics.per_finding(y, p)
    for c in range(3):
        known = ~np.isnan(y[:, c])
        expected = theirs.precision_recall_fscore_support(
            y[known, c], p[known, c] > 0.5, average="binary", zero_division=0
        )
        mine = np.nan_to_num([each.precision[c], each.recall[c], each.f1[c]])
        np.testing.assert_allclose(mine, expected[:3], atol=1e-12)
        assert each.support[c] == (y[:, c] == 1).sum()
        assert metrics.prevalence(y[:, c]) == pytest.approx(y[known, c].mean())


@few
@given(seeds, decimals, st.integers(2, 6))
def test_brier_equals_sklearn(seed, decimals, classes):
    y, p = drawn(seed, 6, classes)
    p /= p.sum(axis=1, keepdims=True)
    labels = list(range(classes))
    whole = theirs.brier_score_loss(y, p, labels=labels, scale_by_half=False)
    assert metrics.brier(y, p) == pytest.approx(whole, abs=1e-12)
    binary, said = y % 2, np.round(p[:, 0], decimals)
    expected = theirs.brier_score_loss(binary, said, labels=[0, 1], pos_label=1)
    assert metrics.brier(binary, said) == pytest.approx(expected, abs=1e-12)
    both = np.stack([1 - said, said], axis=1)
    assert metrics.brier(binary, both) == pytest.approx(2 * expected, abs=1e-12)


def test_medmnist_equals_its_evaluator():
    seen = np.load(ORACLES / "seeds_medmnist_metrics.npz")
    for case, task in (
        ("multi", "multi-class"),
        ("multi", "ordinal-regression"),
        ("binary", "binary-class"),
        ("multilabel", "multi-label, binary-class"),
    ):
        auc, acc = metrics.medmnist(seen[f"{case}/y"], seen[f"{case}/score"], task)
        assert auc == pytest.approx(float(seen[f"{case}/auc"]), abs=1e-12)
        assert acc == pytest.approx(float(seen[f"{case}/acc"]), abs=1e-12)
    y, score = seen["binary/y"], seen["binary/score"]
    assert metrics.medmnist(y, score[:, 1], "binary-class") == metrics.medmnist(
        y, score, "binary-class"
    )


@few
@given(seeds, decimals)
def test_unlabelled_images_change_no_score(seed, decimals):
    y, p = drawn(seed, decimals, 4)
    rng = np.random.default_rng(seed)
    more_y = np.concatenate([y, np.full(7, -1)])
    more_p = np.concatenate([p, rng.dirichlet(np.ones(4), size=7)])
    for fn in (metrics.brier, metrics.top_k, metrics.ece):
        assert fn(more_y, more_p) == pytest.approx(fn(y, p), abs=1e-12)
    said, more_said = p.argmax(1), more_p.argmax(1)
    for fn in (metrics.accuracy, metrics.balanced_accuracy):
        assert fn(more_y, more_said) == pytest.approx(fn(y, said), abs=1e-12)
    counts = metrics.confusion(more_y, more_said, classes=4)
    assert (counts == metrics.confusion(y, said, classes=4)).all()
    for fn in (metrics.auroc, metrics.auprc):
        more = metrics.columns(fn, metrics.one_hot(more_y, 4), more_p)
        np.testing.assert_array_equal(more, metrics.columns(fn, metrics.one_hot(y, 4), p))
    assert metrics.medmnist(more_y, more_p, "multi-class") == pytest.approx(
        metrics.medmnist(y, p, "multi-class"), abs=1e-12, nan_ok=True
    )


def test_nothing_labelled_is_nan_and_names_are_labels():
    none, p = np.full(3, -1), np.full((3, 2), 0.5)
    for fn in (metrics.brier, metrics.top_k):
        assert np.isnan(fn(none, p))
    assert np.isnan(metrics.accuracy(none, none)) and np.isnan(
        metrics.balanced_accuracy(none, none)
    )
    assert np.isnan(metrics.prevalence([np.nan]))
    assert metrics.labelled(np.array([[np.nan, np.nan], [0, np.nan]])).tolist() == [False, True]
    assert metrics.labelled([0, -1, 2]).tolist() == [True, False, True]
    assert metrics.labelled(["a", "b"]).all()


def test_a_probe_asked_twice_answers_as_the_function():
    rng = np.random.default_rng(0)
    x, v, t = (rng.normal(size=(n, 5)) for n in (60, 20, 10))
    y, yv = rng.integers(3, size=60), rng.integers(3, size=20)
    ask = metrics.fit_probe(x, y, v, yv)
    assert (ask(t) == metrics.linear_probe(x, y, v, yv, t)).all()
    np.testing.assert_allclose(ask(t[3:]), ask(t)[3:], rtol=1e-12)
    alone = metrics.fit_probe(x, y, x[:0], y[:0], groups=["one"] * 60)  # the usual strength
    assert [choice.by for choice in alone.choices] == ["default"]
    assert (alone(t) == metrics.linear_probe(x, y, v, yv, t, grid=(1e-2,))).all()
