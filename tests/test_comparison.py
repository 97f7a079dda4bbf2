"""Means over seeds, their intervals and paired differences."""

import numpy as np
import pytest

from vilmedic_ssl import metrics
from vilmedic_ssl.metrics.comparison import MEASURES, standings


def scores_of(y, right, rng, classes=3):
    """Scores whose argmax is true for a share of the rows."""
    chosen = np.where(rng.random(len(y)) < right, y, (y + 1) % classes)
    return np.eye(classes)[chosen] + 0.1 * rng.random((len(y), classes))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_mean_is_that_of_the_seeds_and_differences_are_theirs(rng):
    y = rng.integers(3, size=300)
    ways = [[scores_of(y, right, rng) for _ in range(3)] for right in (0.9, 0.6)]
    better, base = standings(y, ways, MEASURES["accuracy"], baseline=1, draws=200)
    each = [metrics.accuracy(y, s.argmax(1)) for s in ways[0]]
    assert better.mean.value == pytest.approx(np.mean(each))
    assert better.sd == pytest.approx(np.std(each, ddof=1))
    assert better.mean.low < better.mean.value < better.mean.high
    assert base.minus is None and better.minus.side == 1
    assert better.minus.value == pytest.approx(better.mean.value - base.mean.value)


def test_a_pair_cancels_what_both_share(rng):
    """Equal scores differ by exactly nothing in every draw."""
    y = rng.integers(3, size=60)
    way = [scores_of(y, 0.7, rng) for _ in range(2)]
    same, _ = standings(y, [way, way], MEASURES["auroc"], baseline=1, draws=100)
    assert same.minus.value == 0 and np.isnan(same.minus.low)
    assert same.minus.withheld == "the same in every draw"
    assert same.minus.side == 0


def test_seeds_that_disagree_widen_the_interval(rng):
    y = rng.integers(3, size=400)
    alike = [scores_of(y, 0.7, np.random.default_rng(s)) for s in range(3)]
    apart = [scores_of(y, right, np.random.default_rng(9)) for right in (0.5, 0.7, 0.9)]
    narrow, wide = standings(y, [alike, apart], MEASURES["accuracy"], draws=400)
    assert wide.mean.high - wide.mean.low > 2 * (narrow.mean.high - narrow.mean.low)


def test_patients_stay_whole(rng):
    """Ten copies of each row are not ten times as much evidence."""
    y = rng.integers(3, size=40)
    score = scores_of(y, 0.7, rng)
    (once,) = standings(y, [[score]], MEASURES["accuracy"], draws=300)
    many, of = np.repeat(y, 10), np.repeat(np.arange(40), 10)
    (copied,) = standings(
        many, [[np.repeat(score, 10, axis=0)]], MEASURES["accuracy"], groups=of, draws=300
    )
    assert copied.mean.value == pytest.approx(once.mean.value)
    assert copied.mean.low == pytest.approx(once.mean.low) and np.isnan(copied.sd)


def test_findings_and_too_few_draws(rng):
    y = (rng.random((50, 2)) < 0.5).astype(float)
    y[::7, 0] = np.nan
    score = np.nan_to_num(y) + rng.normal(size=y.shape)
    (one,) = standings(y, [[score]], MEASURES["auprc"], draws=10)
    assert 0.5 < one.mean.value <= 1 and np.isnan(one.mean.low)
