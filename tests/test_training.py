"""Training is a value of config, data and seed: kill it, resume, and the weights are bit-equal."""

import json
import multiprocessing
import os
import signal

import pytest
import torch

from vilmedic_ssl.errors import Diverged, Interrupted, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.run import read_log
from vilmedic_ssl.executors.trainor import Trainor
from vilmedic_ssl.experiment import load_config, train

CONFIG = "config/SELFSUP/simclr-phantom.yml"
LONG = [  # three epochs; dropout draws from the global generator, so its state matters too
    "trainor.max_steps=null",
    "trainor.epochs=3",
    "trainor.save_every=2",
    "trainor.ema=0.9",
    "trainor.clip_grad_norm=1.0",
    "trainor.lr_decay=warmup_cosine",
    "model.cnn.dropout_out=0.1",
    "model.cnn.backbone=test_resnet",
    "trainor.drop_last=false",
]


def run(tiny, name, *more):
    return train(load_config(CONFIG, [*tiny(name), *more]))


def weights(folder, seed=0):
    content = checkpoint.read(folder / f"last_{seed}.pth")
    return {**content["model"], **{f"ema {n}": t for n, t in (content["ema"] or {}).items()}}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def whole(phantom, tmp_path_factory):
    """An uninterrupted run."""
    from conftest import tiny_overrides

    place = tmp_path_factory.mktemp("whole")
    return train(load_config(CONFIG, [*tiny_overrides(phantom, place, "whole"), *LONG]))


def killed_in_step(overrides, number):
    """Train in this process and SIGKILL it after the optimizer moved in step `number`."""
    step = Trainor._step

    def dying(self, *arguments):
        step(self, *arguments)
        if self.progress.step == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainor._step = dying
    train(load_config(CONFIG, overrides))


@pytest.mark.parametrize("number", [3, 4, 5, 7, 9])
def test_kill_and_resume_is_bit_equal(tiny, whole, number):
    overrides = [*tiny("killed"), *LONG]
    child = multiprocessing.get_context("fork").Process(
        target=killed_in_step, args=(overrides, number)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    folder = train(load_config(CONFIG, [*overrides, "ckpt=last"]))
    assert_same(weights(folder), weights(whole))
    told = [(r["kind"], r["step"]) for r in read_log(folder / "log_0.jsonl")]
    assert told == [(r["kind"], r["step"]) for r in read_log(whole / "log_0.jsonl")]
    names = {p.name for p in folder.glob("*.pth")}
    assert names == {p.name for p in whole.glob("*.pth")}


def test_the_first_step_and_the_last_of_each_epoch_are_logged(whole):
    steps = [r for r in read_log(whole / "log_0.jsonl") if r["kind"] == "step"]
    last = {r["epoch"]: r["step"] for r in steps}
    assert [r["step"] for r in steps] == sorted({1, *last.values(), *range(10, last[3], 10)})
    assert last[2] == 2 * last[1] and last[3] == 3 * last[1]


def test_workers_do_not_change_the_weights(tiny, whole):
    assert_same(weights(run(tiny, "workers", *LONG, "num_workers=2")), weights(whole))


def test_another_seed_gives_other_weights(tiny, whole):
    other = weights(run(tiny, "other", *LONG, "seed=1"), seed=1)
    assert any(not torch.equal(t, other[n]) for n, t in weights(whole).items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_continues(tiny, whole, monkeypatch, number):
    step = Trainor._step

    def interrupting(self, *arguments):
        step(self, *arguments)
        if self.progress.step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainor, "_step", interrupting)
    with pytest.raises(Interrupted, match="ckpt=last"):
        run(tiny, "signal", *LONG, "trainor.save_every=null")
    monkeypatch.undo()
    resumed = run(tiny, "signal", *LONG, "trainor.save_every=null", "ckpt=last")
    assert_same(weights(resumed), weights(whole))


def test_a_loss_that_is_not_finite_names_the_batch(tiny):
    huge = ["trainor.optimizer=SGD", "trainor.optim_params={lr: 1.0e+30}"]
    with pytest.raises(Diverged, match=r"epoch 1, step \d, on the batch with images/"):
        run(tiny, "diverged", *huge, "trainor.max_steps=20", "trainor.epochs=9")


def test_epochs_mean_epochs_and_files_are_named(tiny):
    folder = run(tiny, "epochs", "trainor.max_steps=null", "trainor.epochs=2")
    evals = [r for r in read_log(folder / "log_0.jsonl") if r["kind"] == "eval"]
    assert [r["epoch"] for r in evals] == [1, 2]
    best = min(evals, key=lambda r: r["scores"]["validation_loss"])
    score = round(best["scores"]["validation_loss"], 6)
    assert {p.name for p in folder.glob("*.pth")} == {
        "last_0.pth",
        f"{score}_{best['epoch']}_0.pth",
    }
    assert (folder / "config_0.yml").is_file()
    assert json.loads((folder / "log_0.jsonl").read_text().splitlines()[0])["step"] > 0


def test_early_stop_counts_evaluations_without_improvement(tiny):
    still = ["trainor.optimizer=SGD", "trainor.optim_params={lr: 1.0e-12}"]
    metric = ["validator.metrics=[knn]", "trainor.early_stop_metric=knn", "trainor.early_stop=2"]
    folder = run(
        tiny,
        "early",
        *still,
        *metric,
        "trainor.max_steps=null",
        "trainor.epochs=9",
        "dataset.filter={view: [PA]}",
    )
    evals = [r for r in read_log(folder / "log_0.jsonl") if r["kind"] == "eval"]
    assert len(evals) < 9
    content = checkpoint.read(folder / "last_0.pth")
    assert content["progress"]["lower_is_better"] is False


def test_accumulation_is_one_larger_batch(tiny):
    """Steps of grad_accu x batch_size images; without batch norm chunks change nothing."""
    vit = ["model.cnn.backbone=test_vit", "model.cnn.options={img_size: 32}"]
    plain = ["trainor.optimizer=SGD", "trainor.optim_params={lr: 0.1}"]
    large = run(tiny, "large", *vit, *plain, "trainor.batch_size=32")
    parts = run(tiny, "parts", *vit, *plain, "trainor.batch_size=8", "trainor.grad_accu=4")
    chunk = run(tiny, "chunk", *vit, *plain, "trainor.batch_size=32", "model.forward_batch_size=5")
    for other in (parts, chunk):
        for name, tensor in weights(large).items():
            torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-4, atol=1e-6)


def test_resuming_with_other_data_is_refused(tiny):
    run(tiny, "data")
    with pytest.raises(UserError, match="the train split was another one then"):
        run(tiny, "data", "ckpt=last", "dataset.filter={view: [PA]}")


def test_checkpoints_hold_plain_containers_only(tiny):
    folder = run(tiny, "plain")
    for path in folder.glob("*.pth"):
        content = torch.load(path, weights_only=True)
        assert {"model", "optimizer", "scaler", "random", "progress", "config", "data"} <= set(
            content
        )
        assert isinstance(content["config"], dict) and content["data"]["train"]


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "last_0.pth"
    checkpoint.write({"model": {"w": torch.ones(2)}}, path)
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        checkpoint.write({"model": {"w": open}}, tmp_path / "missing" / "last_0.pth")
    assert torch.equal(checkpoint.read(path)["model"]["w"], torch.ones(2))


@pytest.mark.parametrize("keys", [["trainor.amp_dtype=bf16"], ["trainor.use_amp=true"]])
def test_mixed_precision_trains_where_it_is_asked_for(tiny, keys, capsys):
    folder = run(tiny, "amp", *keys)
    steps = [r for r in read_log(folder / "log_0.jsonl") if r["kind"] == "eval"]
    assert all(0 < r["scores"]["validation_loss"] < 10 for r in steps)
    told = "full precision on cpu" in capsys.readouterr().err
    assert told == (keys == ["trainor.use_amp=true"])


def test_plateau_can_watch_the_training_loss(tiny):
    plateau = ["trainor.lr_decay=plateau", "trainor.decay_on_training_loss=true"]
    never = [
        "trainor.lr_decay_params=null",
        "trainor.lr_decay_params={patience: 0, factor: 0.5, threshold: 100.0}",
    ]
    folder = run(
        tiny, "plateau", *plateau, *never, "trainor.epochs=3", "trainor.max_steps=null",
        "trainor.log_every=1",
    )  # fmt: skip
    rates = {r["epoch"]: r["lr"] for r in read_log(folder / "log_0.jsonl") if r["kind"] == "step"}
    assert rates[3] == pytest.approx(rates[1] * 0.5)  # the first evaluation sets the mark


def test_resuming_takes_the_arguments_of_the_config_and_refuses_another_optimizer(tiny):
    run(tiny, "arguments", "trainor.optim_params={lr: 1.0e-3, weight_decay: 0.5}")
    with pytest.raises(UserError, match="was trained with AdamW"):
        run(tiny, "arguments", "ckpt=last", "trainor.optimizer=SGD")
    less = ["trainor.optim_params={lr: 1.0e-3, weight_decay: 0.1}", "trainor.max_steps=4"]
    folder = run(tiny, "arguments", "ckpt=last", *less)
    groups = checkpoint.read(folder / "last_0.pth")["optimizer"]["param_groups"]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]


@pytest.mark.parametrize(
    "change", ["trainor.batch_size=8", "trainor.grad_accu=2", "trainor.early_stop_metric=knn"]
)
def test_resuming_refuses_what_its_state_depends_on(tiny, change):
    run(tiny, "settings")
    with pytest.raises(UserError, match=f"as {change.split('=')[0]}, which its state"):
        run(tiny, "settings", "ckpt=last", change)


def test_overwrite_keeps_the_old_files_until_the_new_training_can_start(tiny):
    folder = run(tiny, "overwrite")
    before = {path.name for path in folder.glob("*.pth")}
    with pytest.raises(UserError, match="trainor.optim_params.lrr"):
        run(tiny, "overwrite", "overwrite=true", "trainor.optim_params.lrr=1")
    assert {path.name for path in folder.glob("*.pth")} == before
    run(tiny, "overwrite", "overwrite=true", "trainor.max_steps=2")
    assert len(list(folder.glob("*.pth"))) == 2


def test_the_training_split_can_be_scored_too(tiny):
    splits = ["validator.splits=[train, validate]", "trainor.eval_every_steps=2", "num_workers=1"]
    folder = run(tiny, "both", *splits, "trainor.max_steps=6", "trainor.epochs=3")
    evals = [r["step"] for r in read_log(folder / "log_0.jsonl") if r["kind"] == "eval"]
    assert evals == [2, 4, 6]


def test_grey_or_colour_is_decided_once_and_kept(tiny, phantom):
    config = load_config(CONFIG, [*tiny("mode"), "dataset.transform.channels=auto"])
    content = checkpoint.read(train(config) / "last_0.pth")
    assert content["config"]["dataset"]["transform"]["channels"] == "gray"
