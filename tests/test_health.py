"""Is training alive: spread, rank, speed and the collapse warning."""

import math

import pytest
import torch

from vilmedic_ssl.errors import Diverged
from vilmedic_ssl.executors import health


def test_spread_and_rank_tell_healthy_from_collapsed():
    generator = torch.Generator().manual_seed(0)
    healthy = health.embedding_health(torch.randn(512, 16, generator=generator))
    assert healthy["std"] == pytest.approx(1, abs=0.05) and healthy["rank"] > 14
    point = health.embedding_health(torch.ones(64, 16))
    assert point == pytest.approx({"std": 0.0, "rank": 1.0})
    line = torch.randn(512, 1, generator=generator) * torch.ones(1, 16)
    assert health.embedding_health(line)["rank"] == pytest.approx(1, abs=0.05)


def test_collapse_is_told_once_and_again_after_recovery(capsys):
    monitor = health.CollapseMonitor()
    for std in (1.0, 0.05, 0.04, 0.9, 0.05):
        monitor.look({"std": std, "rank": 2.0})
    assert capsys.readouterr().err.count("collapsing") == 2


def test_the_meter_divides_by_its_clock():
    now = [0.0]
    meter = health.Meter(clock=lambda: now[0])
    meter.add(images=30, waited=0.5, loss=2.0)
    now[0] = 2.0
    meter.add(images=10, waited=0.5, loss=4.0)
    assert meter.read() == {"loss": 3.0, "images_per_s": 20.0, "data_wait": 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_images(value):
    with pytest.raises(Diverged, match=r"epoch 2, step 7, on the batch with a, b, c, d and 2 more"):
        health.check_finite(torch.tensor(value), list("abcdef"), epoch=2, step=7)
