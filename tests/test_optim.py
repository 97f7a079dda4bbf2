"""Optimizers, schedules and early stopping against the originals."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from vilmedic_ssl import build
from vilmedic_ssl.errors import ConfigError, Interrupted
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.lars import LARS
from vilmedic_ssl.executors.optim import Pace, build_optimizer, optimizer_of, parameter_groups
from vilmedic_ssl.executors.schedules import (
    Clock,
    best_of,
    cosine_between,
    find_schedule,
    improves,
    multiplicative,
    multistep,
    plateau,
    stale,
    step,
    warmup_cosine,
)
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.executors.trainor import Trainor
from vilmedic_ssl.experiment import load_config, train
from vilmedic_ssl.models.base import PretrainingModel
from vilmedic_ssl.nets.ema import cosine_tau

ORACLES = Path(__file__).parent / "oracles"


class Net(PretrainingModel):
    """A backbone and a predictor, whose rate may be fixed."""

    def __init__(self, fixed: bool = False):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        self.predictor = torch.nn.Linear(3, 2)
        self.token = torch.nn.Parameter(torch.ones(1, 3))
        self.fixed = fixed

    def no_decay(self):
        return {"token"}

    def fixed_rate(self):
        return {"predictor.weight", "predictor.bias"} if self.fixed else set()


def settings(**changes):
    keys = {"optim_params": {"lr": 0.2}, "batch_size": 4, "epochs": 2, "optimizer": "SGD"}
    return TrainorSettings(**{**keys, **changes})


def paced(model=None, **changes):
    """The pace of an optimizer over `model`, as the trainor makes them."""
    keys = settings(**changes)
    optimizer = optimizer_of(model or Net(), keys)
    return Pace(optimizer, keys)


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


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"warmup_epochs": -3}, "warmup_epochs: -3; write 0 or more"),
        ({"warmup_epochs": math.inf}, "warmup_epochs: inf"),
        ({"warmup_steps": -4}, "warmup_steps: -4; write 0 or more"),
        ({"floor": 5.0}, "floor: 5.0; write a share"),
        ({"floor": math.nan}, "floor: nan"),
    ],
)
def test_a_schedule_out_of_range_is_refused(keys, told):
    clock = Clock(step=0, total=9, steps_per_epoch=3, base_lr=1.0)
    with pytest.raises(ConfigError, match=rf"lr_decay_params\.{told}"):
        find_schedule("warmup_cosine")(clock, **keys)


def test_a_score_that_is_no_number_is_never_the_best():
    nan = float("nan")
    assert best_of([nan, 2.0, 1.0, nan], True) == 1.0 and best_of([nan], True) is None
    assert not improves(nan, None, True) and improves(1.0, None, True)


def test_weight_decay_defaults_to_the_optimizers_own():
    model = build({"proto": "SimCLR", "cnn": {"backbone": "test_resnet"}})
    groups = build_optimizer(model, "AdamW", {"lr": 1e-3}).param_groups
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]


def test_lars_with_the_rate_in_its_momentum_equals_the_simclr_code():
    """There the kernel alone is decayed and adapted: not biases, norms, nor the supervised head."""
    oracle = np.load(ORACLES / "seeds_lars_simclr_tf.npz")
    decay, momentum, eta = (float(x) for x in oracle["wd_momentum_eeta"])
    names = [key.removesuffix("/p0") for key in oracle.files if key.endswith("/p0")]
    values = {n: torch.nn.Parameter(torch.tensor(oracle[f"{n}/p0"])) for n in names}
    plain = [p for n, p in values.items() if n != "dense/kernel"]
    groups = [
        {"params": [values["dense/kernel"]]},
        {"params": plain, "adapt": False, "weight_decay": 0.0},
    ]
    optimizer = LARS(
        groups, lr=0.0, momentum=momentum, weight_decay=decay, eta=eta, lr_in_momentum=True
    )
    for k, lr in enumerate(oracle["lrs"]):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        for n in names:
            values[n].grad = torch.tensor(oracle[f"{n}/g{k}"])
        optimizer.step()
        for n in names:
            expected = oracle[f"{n}/p{k + 1}"]
            np.testing.assert_allclose(values[n].detach().numpy(), expected, rtol=1e-5, atol=1e-7)


def test_both_forms_of_lars_agree_at_a_constant_rate():
    start = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for inside in (False, True):
        p = torch.nn.Parameter(start.clone())
        optimizer = LARS([p], lr=0.3, weight_decay=0.1, lr_in_momentum=inside)
        for _ in range(5):
            p.grad = p.detach().sin()
            optimizer.step()
        ends.append(p.detach())
    assert torch.allclose(*ends, rtol=1e-12, atol=0) and not torch.equal(ends[0], start)


def test_rates_of_weights_and_biases_equal_the_barlow_twins_schedule():
    rows = np.load(ORACLES / "seeds_lars_barlow.npz")["barlow_schedule/epochs30_bs512_loader7"]
    pace = paced(optimizer="LARS", lr_scaling="linear", lr_biases=0.0048, batch_size=512)
    for k, weights, biases in rows:
        now = clock(step=int(k), total=210, steps_per_epoch=7, base_lr=pace.rates[0])
        pace.set(warmup_cosine(now, warmup_epochs=10, floor=0.001, from_zero=True), int(k), 210)
        rates = [group["lr"] for group in pace.optimizer.param_groups]
        assert rates == pytest.approx([weights, biases], rel=1e-9)


@pytest.mark.parametrize("case", ["stage1_lin", "stage2_sqrt", "stage3_sqrt", "small"])
def test_scaled_warmup_cosine_equals_the_simclr_code(case):
    oracle = np.load(ORACLES / "seeds_simclr_schedule.npz")
    base, n, batch, epochs, warmup = oracle[f"{case}/base_n_bs_epochs_warmup"]
    rule = "sqrt" if case.endswith("sqrt") else "linear"
    keys = settings(optim_params={"lr": base}, batch_size=int(batch), lr_scaling=rule)
    total = int(n * epochs // batch) + 1
    assert total == oracle[f"{case}/total_steps"]
    steps = {"warmup_steps": round(warmup * n // batch), "from_zero": True}
    rates = [
        base * keys.lr_scale * warmup_cosine(clock(step=int(s), total=total), **steps)
        for s in oracle[f"{case}/steps"]
    ]
    ulp = max(rates) * 2**-23  # 1 + cos near its zero, in the original's float32
    np.testing.assert_allclose(rates, oracle[f"{case}/lr"], rtol=1e-6, atol=ulp)


def test_multistep_equals_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[6, 8], gamma=0.2)
    ours = find_schedule("MultiStepLR")
    for epoch in range(10):
        factor = ours(clock(step=10 * epoch + 9), milestones=[6, 8], gamma=0.2)
        assert 0.1 * factor == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    with pytest.raises(ConfigError, match=r"milestones: \[0, 3\]; list epochs from 1"):
        multistep(clock(), milestones=[0, 3])


def test_cosine_between_is_the_decay_of_byol_and_the_weight_decay_of_dino():
    for k in (0, 1, 50, 99, 100, 130):
        assert cosine_between(0.996, 1, k, 100) == pytest.approx(cosine_tau(0.996, k, 100))
    dino = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(100) / 100))
    ours = [cosine_between(0.04, 0.4, k, 100) for k in range(100)]
    np.testing.assert_allclose(ours, dino, rtol=1e-12)


def test_one_rate_and_two_groups_unless_asked_otherwise():
    pace = paced(optim_params={"lr": 0.3, "weight_decay": 0.1}, batch_size=512, grad_accu=2)
    pace.set(0.5, 3, 8)
    groups = pace.optimizer.param_groups
    assert [g["name"] for g in groups] == ["weights", "biases and norms"]
    assert [len(g["params"]) for g in groups] == [2, 5]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [g["lr"] for g in groups] == [0.15, 0.15]
    assert pace.describe().startswith("optimizer SGD\n  weights: 2 tensors, 18 parameters, rate")


def test_scaled_rates_fixed_rates_and_a_moving_weight_decay():
    pace = paced(
        Net(fixed=True),
        optim_params={"lr": 0.2, "weight_decay": 0.04},
        batch_size=256,
        grad_accu=2,
        lr_scaling="linear",
        lr_biases=0.01,
        weight_decay_end=0.4,
    )
    assert pace.describe().splitlines() == [
        "optimizer SGD, learning rates times 2 for 512 images per step (linear)",
        "  weights: 1 tensors, 12 parameters, rate 0.4, decay 0.04 to 0.4",
        "  biases and norms: 4 tensors, 12 parameters, rate 0.02, decay 0",
        "  fixed rate weights: 1 tensors, 6 parameters, rate 0.4, decay 0.04 to 0.4",
        "  fixed rate biases and norms: 1 tensors, 2 parameters, rate 0.02, decay 0",
    ]
    pace.set(0.1, 5, 10)
    groups = pace.optimizer.param_groups
    assert [g["lr"] for g in groups] == pytest.approx([0.04, 0.002, 0.4, 0.02])
    assert [g["weight_decay"] for g in groups] == pytest.approx([0.22, 0, 0.22, 0])
    assert settings(batch_size=32, lr_scaling="sqrt").lr_scale == math.sqrt(32)


def test_lars_adapts_the_weights_alone():
    groups = paced(Net(fixed=True), optimizer="LARS").optimizer.param_groups
    assert [g["adapt"] for g in groups] == [True, False, True, False]


def test_a_model_that_lists_an_unknown_name_is_refused():
    model = Net()
    model.no_decay = lambda: {"tokens"}
    with pytest.raises(ConfigError, match=r"Net.no_decay\(\) lists 'tokens'.*mean 'token'"):
        parameter_groups(model, 0.1)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"lr_biases": 0.0}, "lr_biases: 0.0; write a number above 0"),
        ({"weight_decay_end": -1.0}, "weight_decay_end: -1.0; write 0 or more"),
        ({"optimizer": "Rprop", "weight_decay_end": 0.4}, "Rprop has no weight decay"),
        ({"ema_end": 1.0}, "ema_end: 1.0; write .* beside trainor.ema"),
        ({"ema": 0.9, "ema_end": 1.5}, "ema_end: 1.5; write a decay above 0"),
        ({"optimizer": "LARS", "optim_params": {"lr": 1.0, "eta": -1}}, "eta is -1, must be"),
        ({"optimizer": "AdamW", "optim_params": {"lr": 1.0, "betas": [0.9]}}, "AdamW refuses"),
        (
            {"optimizer": "LARS", "optim_params": {"lr": 1.0, "lr_in_momentum": 1}},
            "lr_in_momentum is 1, must be true or false",
        ),
    ],
)
def test_wrong_values_are_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        paced(**keys)


def test_a_resumed_run_keeps_rates_decays_and_average(tiny, monkeypatch):
    """Also from a checkpoint whose groups know none of today's keys."""
    keys = [
        "model.cnn.backbone=test_resnet",
        "trainor.optimizer=LARS",
        "trainor.optim_params={lr: 4.0, weight_decay: 0.01}",
        "trainor.lr_scaling=linear",
        "trainor.lr_biases=0.5",
        "trainor.weight_decay_end=0.1",
        "trainor.ema=0.5",
        "trainor.ema_end=1.0",
        "trainor.max_steps=4",
        "trainor.epochs=3",
    ]

    def run(name, *more):
        return train(load_config("config/SELFSUP/simclr-phantom.yml", [*tiny(name), *keys, *more]))

    whole = checkpoint.read(run("whole") / "last_0.pth")
    assert whole["optimizer"]["param_groups"][0]["weight_decay"] == pytest.approx(
        cosine_between(0.01, 0.1, 3, 4)
    )
    one_step = Trainor._step

    def interrupting(self, *arguments):
        one_step(self, *arguments)
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainor, "_step", interrupting)
        with pytest.raises(Interrupted):
            run("parts")
    path = Path(tiny("parts")[1].removeprefix("ckpt_dir=")) / "parts/last_0.pth"
    content = checkpoint.read(path)
    for group in content["optimizer"]["param_groups"]:
        for key in ("decays", "fixed_rate", "lr_in_momentum", "adapt"):
            del group[key]
    checkpoint.write(content, path)
    parts = checkpoint.read(run("parts", "ckpt=last") / "last_0.pth")
    for state in ("model", "ema"):
        for name, tensor in whole[state].items():
            assert torch.equal(tensor, parts[state][name]), name
    assert parts["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]


def test_the_decay_of_the_average_moves_with_the_step(tiny, monkeypatch):
    decays, one_step = [], Trainor._step

    def watched(self, *arguments):
        one_step(self, *arguments)
        decays.append(self.ema.decay)

    monkeypatch.setattr(Trainor, "_step", watched)
    keys = ["model.cnn.backbone=test_resnet", "trainor.ema=0.5", "trainor.ema_end=1.0"]
    train(load_config("config/SELFSUP/simclr-phantom.yml", [*tiny("average"), *keys]))
    assert decays == pytest.approx([cosine_tau(0.5, k, len(decays)) for k in range(len(decays))])


def test_a_wrong_schedule_is_refused_before_older_files_are_removed(tiny):
    config, keys = "config/SELFSUP/simclr-phantom.yml", ["model.cnn.backbone=test_resnet"]
    folder = train(load_config(config, [*tiny("old"), *keys]))
    before = {path.name for path in folder.glob("*.pth")}
    keys += ["overwrite=true", "trainor.lr_decay=step", "trainor.lr_decay_params=null"]
    keys += ["trainor.lr_decay_params={step_size: 0}"]
    with pytest.raises(ConfigError, match="step_size: 0"):
        train(load_config(config, [*tiny("old"), *keys]))
    assert {path.name for path in folder.glob("*.pth")} == before
