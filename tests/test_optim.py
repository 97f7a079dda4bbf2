"""Optimizers, schedules and early stopping against the originals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vilmedic_ssl import build
from vilmedic_ssl.executors.optim import LARS, build_optimizer
from vilmedic_ssl.executors.schedules import (
    Clock,
    best_of,
    improves,
    multiplicative,
    plateau,
    stale,
    step,
    warmup_cosine,
)

ORACLES = Path(__file__).parent / "oracles"


def clock(**changes):
    base = {"step": 0, "total": 100, "steps_per_epoch": 10, "base_lr": 0.1}
    return Clock(**{**base, **changes})


def test_lars_equals_the_barlow_twins_code():
    oracle = np.load(ORACLES / "seeds_lars_barlow.npz")
    decay, momentum, eta = (float(x) for x in oracle["lars/hyper_wd_momentum_eta"])
    names = ("W", "b", "Z")
    values = {n: torch.nn.Parameter(torch.tensor(oracle[f"lars/{n}0"])) for n in names}
    groups = [
        {"params": [values["W"], values["Z"]]},
        {"params": [values["b"]], "adapt": False, "weight_decay": 0.0},
    ]
    optimizer = LARS(groups, lr=0.0, momentum=momentum, weight_decay=decay, eta=eta)
    for k in range(5):
        optimizer.param_groups[0]["lr"] = 0.2 * (k + 1)
        optimizer.param_groups[1]["lr"] = 0.0048 * (k + 1)
        for n in names:
            values[n].grad = torch.tensor(oracle[f"lars/g{n}{k}"])
        optimizer.step()
        for n in names:
            expected = oracle[f"lars/{n}{k + 1}"]
            np.testing.assert_allclose(values[n].detach().numpy(), expected, rtol=1e-6, atol=1e-9)


def test_plateau_and_early_stop_follow_the_trace_of_the_original():
    rows = np.load(ORACLES / "scheduler_trace_loss.npz")["rows"]
    scores: list[float] = []
    keys = {"factor": 0.5, "patience": 1, "min_lr": 0.02, "threshold": 0.01}
    for metric, lr, counter, best, saved, done in rows:
        if np.isnan(metric):  # an epoch without evaluation
            continue
        assert improves(metric, best_of(scores, True), True) == bool(saved)
        scores.append(float(metric))
        factor = plateau(clock(scores=scores), threshold_mode="abs", **keys)
        assert 0.1 * factor == pytest.approx(lr)
        assert stale(scores, True) == counter
        assert best_of(scores, True) == best
        assert (stale(scores, True) >= 4) == bool(done)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_plateau_equals_torch(mode, threshold_mode):
    scores = torch.rand(60, generator=torch.Generator().manual_seed(3)).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    keys = {"factor": 0.7, "patience": 2, "cooldown": 1, "min_lr": 1e-3, "threshold": 0.01}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=mode, threshold_mode=threshold_mode, **keys
    )
    for i, score in enumerate(scores):
        theirs.step(score)
        now = clock(scores=scores[: i + 1], lower=mode == "min")
        factor = plateau(now, threshold_mode=threshold_mode, **keys)
        assert 0.1 * factor == pytest.approx(optimizer.param_groups[0]["lr"])


def test_other_schedules_are_functions_of_the_step():
    rates = [warmup_cosine(clock(step=s), warmup_steps=10, floor=0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1) and rates[10:] == sorted(rates[10:], reverse=True)
    assert warmup_cosine(clock(step=4), warmup_epochs=0.5) == 1.0
    assert multiplicative(clock(step=29), gamma=0.5) == 0.25
    assert step(clock(step=65), step_size=3, gamma=0.1) == pytest.approx(0.01)


def test_a_score_that_is_no_number_is_never_the_best():
    nan = float("nan")
    assert best_of([nan, 2.0, 1.0, nan], True) == 1.0 and best_of([nan], True) is None
    assert not improves(nan, None, True) and improves(1.0, None, True)


def test_weight_decay_defaults_to_the_optimizers_own():
    model = build({"proto": "SimCLR", "cnn": {"backbone": "test_resnet"}})
    groups = build_optimizer(model, "AdamW", {"lr": 1e-3}).param_groups
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]
