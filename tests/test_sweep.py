"""Sweeps: every trial once however many processes work, die and start again; refusals; what a
range test and a resource check say.
"""

import csv
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilmedic_ssl.cli import main
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.run import read_log
from vilmedic_ssl.executors.sweep import Result, Sweep
from vilmedic_ssl.executors.sweep_rates import read_curve
from vilmedic_ssl.executors.sweep_settings import Axis, SweepSettings
from vilmedic_ssl.executors.sweep_space import evenly, grid, listed, values_of, words_of
from vilmedic_ssl.executors.sweep_table import best_few, ranked, short_names
from vilmedic_ssl.executors.trainor import Trainor
from vilmedic_ssl.experiment import load_config
from vilmedic_ssl.experiment.sweep_verb import plan_of, with_space

CONFIG = "config/SELFSUP/simclr-phantom.yml"
FORK = multiprocessing.get_context("fork")
RATE = "trainor.optim_params.lr"
SPACE = {
    RATE: Axis(low=1e-5, high=1e-1, log=True),
    "model.projector.widths": Axis(choices=[[512], [512, 512]]),
    "trainor.epochs": Axis(low=1, high=9),
}
GRID = {"a": Axis(low=1, high=4, points=4), "b": Axis(choices={"x": None, "y": [1], "z": {"k": 1}})}


def sweep_of(folder, *, space=SPACE, seed=0, key="k", **keys):
    settings = SweepSettings(space=space, **{"trials": 8, **keys})
    return Sweep(folder, settings, lower=True, seed=seed, key=key)


def work(folder, *, until=None, **keys):
    """Work on a sweep whose trials are a line in a file; die in trial `until`."""

    def objective(trial):
        with (folder / "done.txt").open("a") as file:
            file.write(f"{trial.number} {int(trial.begun)} {json.dumps(trial.names)}\n")
        time.sleep(0.02)
        if trial.number == until:
            os.kill(os.getpid(), signal.SIGKILL)
        return Result({0: float(trial.number), 1: trial.number + 2.0})

    return sweep_of(folder, **keys).run(objective, after=lambda rows: None)


def begun(folder):
    """(number, begun before, names) of every trial that was worked on."""
    lines = (folder / "done.txt").read_text().splitlines()
    return sorted((int(n), int(b), names) for n, b, names in (line.split(" ", 2) for line in lines))


def together(folder, count=2, **keys):
    processes = [FORK.Process(target=work, args=(folder,), kwargs=keys) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


# ---------------------------------------------------------------- trials and processes


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_two_processes_share_the_trials(tmp_path, sampler):
    together(tmp_path, sampler=sampler)
    assert [row[:2] for row in begun(tmp_path)] == [(n, 0) for n in range(8)]
    rows = sweep_of(tmp_path, sampler=sampler).rows()
    assert [(row.trial, row.state, row.value) for row in rows] == [
        (n, "finished", n + 1.0) for n in range(8)
    ]
    assert rows[0].sd == pytest.approx(2**0.5) and rows[0].values == {"0": 0.0, "1": 2.0}


def test_what_a_random_trial_draws_depends_on_its_number_alone(tmp_path):
    together(tmp_path / "two")
    work(tmp_path / "one")
    two, one = (sweep_of(tmp_path / name).rows() for name in ("two", "one"))
    assert [row.names for row in two] == [row.names for row in one]
    assert len({row.names[RATE] for row in one}) == 8
    work(tmp_path / "other", seed=1)
    assert sweep_of(tmp_path / "other", seed=1).rows()[0].names != one[0].names


def test_a_grid_takes_every_combination_once(tmp_path):
    together(tmp_path, space=GRID, sampler="grid", trials=None)
    rows = sweep_of(tmp_path, space=GRID, sampler="grid", trials=None).rows()
    assert [(r.parameters["a"], r.names["b"]) for r in rows] == [
        (a, b) for a in (1, 2, 3, 4) for b in "xyz"
    ]
    assert rows[2].parameters["b"] == {"k": 1} and len(begun(tmp_path)) == 12


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_a_killed_sweep_goes_on(tmp_path, sampler):
    keys = {"sampler": sampler, "space": GRID if sampler == "grid" else SPACE}
    process = FORK.Process(target=work, args=(tmp_path,), kwargs={"until": 2, **keys})
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [row.state for row in sweep_of(tmp_path, **keys).rows()] == ["finished"] * 2 + [
        "running"
    ]
    work(tmp_path, **keys)
    done = begun(tmp_path)
    assert [row[:2] for row in done] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (2, 1),
        *((n, 0) for n in range(3, 8)),
    ]
    assert done[2][2] == done[3][2]  # the same parameters
    work(tmp_path, **keys)  # nothing is left
    assert begun(tmp_path) == done


def test_the_other_process_takes_over_from_a_dead_one(tmp_path):
    doomed = FORK.Process(target=work, args=(tmp_path,), kwargs={"until": 3})
    doomed.start()
    together(tmp_path, 1)
    doomed.join(60)
    assert [row.state for row in sweep_of(tmp_path).rows()] == ["finished"] * 8


def test_half_a_line_in_the_journal_is_no_harm(tmp_path):
    work(tmp_path, trials=3)
    with (tmp_path / "sweep.journal").open("a") as file:
        file.write('{"op_code":4,"worker')
    work(tmp_path, trials=5)  # more trials are the same sweep
    assert [row[0] for row in begun(tmp_path)] == [0, 1, 2, 3, 4]


def test_another_sweep_in_the_folder_is_refused(tmp_path):
    work(tmp_path, trials=1)
    with pytest.raises(UserError, match="holds a sweep of another config"):
        sweep_of(tmp_path, key="other")


def test_sqlite_keeps_trials_as_well(tmp_path):
    keys = {"storage": f"sqlite:///{tmp_path}/sweep.db", "trials": 3}
    together(tmp_path, **keys)
    assert [row.value for row in sweep_of(tmp_path, **keys).rows()] == [1.0, 2.0, 3.0]
    with pytest.raises(UserError, match="sweep.storage: 'nosql://x' cannot be opened"):
        sweep_of(tmp_path / "x", storage="nosql://x")


def test_a_user_error_ends_the_first_trial_and_is_a_reason_later(tmp_path):
    def fails(number, reason="a is wrong; write b"):
        def objective(trial):
            if trial.number == number:
                raise UserError(reason)
            return Result({0: 1.0})

        return objective

    with pytest.raises(UserError, match="a is wrong"):
        sweep_of(tmp_path).run(fails(0), after=lambda rows: None)
    assert sweep_of(tmp_path, key="corrected").rows() == []
    rows = sweep_of(tmp_path, key="corrected").run(fails(1), after=lambda rows: None)
    assert [row.state for row in rows] == ["finished", "failed", *["finished"] * 6]
    assert rows[1].reason == "a is wrong; write b" and rows[1].value is None
    assert len(ranked(rows, lower=True)) == 7
    assert "1 of 8 trials have no value, for example trial 1: a is" in best_few(
        rows, list(SPACE), "loss", lower=True
    )


def test_optuna_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'vilmedic_ssl\[sweep\]'"):
        sweep_of(tmp_path)


# ---------------------------------------------------------------- space and settings


def test_values_of_axes():
    assert evenly(Axis(low=1e-4, high=1e-1, log=True), 4) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1])
    assert evenly(Axis(low=1, high=3), 5) == [1, 2, 3]
    assert list(listed(Axis(low=0.0, high=1.0, points=3))) == ["0", "0.5", "1"]
    assert values_of(GRID, {"a": "2", "b": "y"}) == {"a": 2, "b": [1]}
    assert len(grid(GRID)) == 12
    assert short_names(["a.b.c", "a.d.c", "e"]) == ["b.c", "d.c", "e"]
    with pytest.raises(ConfigError, match="is there twice"):
        listed(Axis(choices=[1, 1]))


def test_words_set_what_they_say(tmp_path):
    values = {"a": 1e-5, "b": [[512], "x"], "c": "null", "d": None, "e": "a b: c", "f": {"k": True}}
    file = tmp_path / "c.yml"
    file.write_text("f: {other: 1}\n")
    from vilmedic_ssl import config

    found = config.load(file, words_of(values))
    assert found == {**values, "f": {"other": 1, "k": True}}
    assert with_space(["x=1", "space={a: b}"]) == ["x=1", "sweep.space=null", "sweep.space={a: b}"]


REFUSED = {
    "no space": ({"space": {}}, "name one key"),
    "no range": ({"space": {"a": {"low": 1}}}, "write {low"),
    "empty range": ({"space": {"a": {"low": 2, "high": 1}}}, "not below"),
    "log of zero": ({"space": {"a": {"low": 0.0, "high": 1.0, "log": True}}}, "above 0"),
    "both": ({"space": {"a": {"low": 0, "choices": [1]}}}, "choices stand alone"),
    "no choice": ({"space": {"a": {"choices": []}}}, "name one at least"),
    "seed": ({"space": {"seed": {"choices": [1, 2]}}}, "sweep.seeds"),
    "validator": ({"space": {"validator.splits": {"choices": [["a"]]}}}, "do not compare"),
    "test metric": ({"metric": "test/linear_probe/accuracy"}, "test split"),
    "trials": ({"trials": 0}, "above 0"),
    "seeds": ({"seeds": [1, 1]}, "each once"),
    "grid of a range": ({"sampler": "grid"}, "points"),
    "memory": ({"memory_gb": 4.0}, "only measure: resources"),
    "rates": ({"measure": "lr_range"}, "takes one range"),
    "rates, seeds": ({"measure": "lr_range", "seeds": [0, 1]}, "runs with one"),
    "resources": ({"measure": "resources"}, "also needs points"),
}


@pytest.mark.parametrize("keys, told", REFUSED.values(), ids=REFUSED)
def test_settings_are_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        SweepSettings(**{"space": {"a": {"low": 1, "high": 2}}, **keys})


MISTAKES = {
    "typo in the section": (["sweep.trails=3"], "sweep.trails: there is no such key; did you mean"),
    "typo in the space": (["space={trainor.optim.lr: {choices: [1]}}"], "trainor.optim: there is"),
    "typo in an axis": (["space={seed_: {chioces: [1]}}"], "sweep.space.seed_.chioces: there is"),
    "a wrong value": (["space={trainor.epochs: {choices: [1, many]}}"], "'many'"),
    "not computed": (["sweep.metric=probe"], "add it to validator.metrics"),
    "no metric": (["sweep.metric=knm"], "did you mean 'knn'"),
    "test split": (["validator.splits=[test]"], "must not choose by"),
}


@pytest.mark.parametrize("words, told", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_sentence(words, told, tiny, capsys):
    space = ["space={trainor.epochs: {choices: [1, 2]}}"]
    assert main(["sweep", CONFIG, *tiny("wrong"), *space, *words]) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err and "trial 0" not in err


def test_a_config_without_or_with_a_sweep(tiny, capsys):
    assert main(["sweep", CONFIG, *tiny()]) == 2
    assert "has no such section" in capsys.readouterr().err
    for verb in ("train", "ensemble"):
        words = ["sweep.space={trainor.epochs: {choices: [1]}}"]
        assert main([verb, CONFIG, *tiny(), *words]) == 2
        assert "run them with `vilmedic-ssl sweep`" in capsys.readouterr().err


# ---------------------------------------------------------------- real ones

REAL = [
    "space={trainor.optim_params.lr: {low: 1e-4, high: 1e-2, log: true}, trainor: {choices: "
    "{a: {lr_decay: constant}, b: {lr_decay: multiplicative, lr_decay_params: {gamma: 0.5}}}}}",
    *("sweep.trials=2", "sweep.metric=top1", "trainor.max_steps=4", "trainor.epochs=4"),
    *("trainor.lr_decay_params=null", "trainor.save_every=1", "model.cnn.backbone=test_resnet"),
]


def test_a_sweep_is_trained_and_told(tiny, tmp_path, capsys):
    words = [*tiny("whole"), *REAL, "sweep.seeds=[0,1]"]
    assert main(["sweep", CONFIG, *words]) == 0
    out = capsys.readouterr().out.splitlines()
    folder = tmp_path / "ckpt/whole"
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["state"]) for row in rows] == [("0", "finished"), ("1", "finished")]
    assert (folder / "sweep.png").stat().st_size > 10_000
    told = json.loads((folder / "sweep.json").read_text())
    assert told["metric"] == "top1" and told["lower_is_better"] is False
    for trial in told["trials"]:
        for seed, value in trial["values"].items():
            log = read_log(folder / f"trial-{trial['trial']}/log_{seed}.jsonl")
            assert value == max(r["scores"]["top1"] for r in log if r["kind"] == "eval")
        assert trial["value"] == pytest.approx(np.mean(list(trial["values"].values())))
        assert trial["sd"] == pytest.approx(np.std(list(trial["values"].values()), ddof=1))
    best = max(told["trials"], key=lambda trial: trial["value"])
    command = shlex.split(out[-1])
    assert command[:3] == ["vilmedic-ssl", "train", CONFIG] and "sweep=null" in command
    config = load_config(CONFIG, command[3:])
    assert config.trainor.optim_params.lr == best["parameters"][RATE]
    assert config.name == "whole-best" and config.sweep is None


def test_a_killed_trial_ends_with_the_weights_of_one_that_was_not(tiny, tmp_path):
    def dying(name):
        step = Trainor._step

        def until(self, *arguments):
            step(self, *arguments)
            if self.run.folder.name == "trial-1" and self.progress.step == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        Trainor._step = until
        main(["sweep", CONFIG, *tiny(name), *REAL])

    process = FORK.Process(target=dying, args=("killed",))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    for name in ("killed", "never"):
        assert main(["sweep", CONFIG, *tiny(name), *REAL]) == 0
    ends = [checkpoint.read(tmp_path / f"ckpt/{n}/trial-1/last_0.pth") for n in ("killed", "never")]
    assert ends[0]["progress"]["step"] == 4
    for name, tensor in ends[1]["model"].items():
        assert (ends[0]["model"][name] == tensor).all()
    tables = [
        json.loads((tmp_path / f"ckpt/{n}/sweep.json").read_text()) for n in ("killed", "never")
    ]
    values = [[trial["value"] for trial in table["trials"]] for table in tables]
    assert values[0] == values[1]


def test_a_trial_that_diverges_is_a_reason_and_not_the_end(tiny, tmp_path, capsys):
    space = "space={trainor.optim_params.lr: {choices: [1.0e+30, 1.0e-3]}}"
    words = [space, "sweep.sampler=grid", "trainor.optimizer=SGD", "trainor.optim_params=null"]
    words += ["trainor.max_steps=4", "trainor.log_every=1"]
    assert main(["sweep", CONFIG, *tiny("div"), *words, "trainor.optim_params={lr: 1e-3}"]) == 0
    trials = json.loads((tmp_path / "ckpt/div/sweep.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["failed", "finished"]
    assert "the loss became" in trials[0]["reason"]


def test_a_sweep_of_several_processes_is_refused(tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", CONFIG, *tiny(), *REAL]) == 2


def test_a_plan_notices_that_its_file_changed(tmp_path, tiny):
    file = tmp_path / "c.yml"
    file.write_text(Path(CONFIG).read_text())
    plan = plan_of(str(file), [*tiny(), *REAL])
    file.write_text(file.read_text().replace("tau: 0.2", "tau: 0.3"))
    with pytest.raises(ConfigError, match="was changed while the sweep ran"):
        plan.config({})


# ---------------------------------------------------------------- what is measured beforehand


def curve(noise, *, steps=200, level=5.0):
    """Falls fastest at 1e-3, is lowest near 1e-1, blows up beyond 1."""
    rates = np.geomspace(1e-7, 10, steps)
    x = np.log10(rates)
    loss = level - 1.0 / (1 + np.exp(-3 * (x + 3))) + np.exp(6 * (x - 0.3))
    return rates.tolist(), (loss + noise * np.random.default_rng(0).normal(size=steps)).tolist()


@pytest.mark.parametrize("level", [5.0, 0.0, -1.0])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_steepest_rate_is_found(noise, level):
    rates, losses = curve(noise, level=level)
    found = read_curve(rates, losses)
    assert 3e-4 < found.suggestion < 3e-3
    assert 5e-3 < found.lowest < 0.5
    assert len(found.smoothed) < len(losses)  # what blew up is left out


def test_no_rate_is_suggested_where_the_loss_never_falls():
    rates = np.geomspace(1e-7, 10, 100).tolist()
    assert read_curve(rates, np.linspace(1, 1.5, 100).tolist()).suggestion is None
    assert read_curve(rates[:5], [5, 4, 3, 2, 1]).suggestion is None


def test_a_range_test_takes_one_step_per_rate(tiny, tmp_path, capsys):
    space = "space={trainor.optim_params.lr: {low: 1e-6, high: 1e+2, log: true}}"
    words = [space, "sweep.measure=lr_range", "sweep.trials=12", "model.cnn.backbone=test_resnet"]
    assert main(["sweep", CONFIG, *tiny("range"), *words, "trainor.lr_scaling=linear"]) == 0
    folder = tmp_path / "ckpt/range"
    told = json.loads((folder / "lr_range.json").read_text())
    assert told["lr"] == pytest.approx(np.geomspace(1e-6, 1e2, 12).tolist()[: len(told["lr"])])
    assert {path.name for path in folder.iterdir()} == {
        *("lr_range.json", "lr_range.csv", "lr_range.png", "audit.json")
    }
    assert 3 < told["loss"][0] < 5  # ln(2 * 16 - 1) = 3.43 is guessing: not divided by the batch
    printed = capsys.readouterr()
    assert (told["suggestion"] is None) == ("trainor.optim_params.lr=" not in printed.out)
    assert "ensemble" not in printed.err  # there is nothing left to score
    assert "eval_start" not in printed.err
    assert f"({folder / 'audit.json'})" in printed.err


def test_the_remedy_of_a_range_test_that_leaks_can_be_followed(tmp_path, capsys):
    """The list of copies that it names is still there when the sweep has ended."""
    for split in ("train", "validate"):
        for i in range(12):
            path = tmp_path / "images" / split / f"it's {i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng(i).integers(0, 255, (64, 64), dtype=np.uint8)
            Image.fromarray(values).save(path)
    words = [
        "config/SELFSUP/simclr-folder.yml",
        f"dataset.root={tmp_path / 'images'}",
        f"ckpt_dir={tmp_path / 'ckpt'}",
        *("name=range", "num_workers=0", "device=cpu", "sweep.measure=lr_range"),
        "space={trainor.optim_params.lr: {low: 1e-6, high: 1e+2, log: true}}",
    ]
    assert main(["sweep", *words]) == 4
    (list_of_copies,) = re.findall(r'"file:([^"]+)"', capsys.readouterr().err)
    assert len(Path(list_of_copies).read_text().splitlines()) == 12


def test_what_does_not_fit_is_told_apart_from_what_fails(tiny, tmp_path, capsys, monkeypatch):
    from vilmedic_ssl.executors.sweep_resources import is_out_of_memory
    from vilmedic_ssl.experiment.sweep_child import measure
    from vilmedic_ssl.schema import plain

    process = subprocess.run

    def small_ones_here(command, **keys):
        task, answer = map(Path, command[-2:])
        config = json.loads(task.read_text())[0]
        if config["trainor"]["batch_size"] == 3000:
            return process(command, **keys)
        return answer.write_text(json.dumps(measure(config, None)))

    monkeypatch.setattr(subprocess, "run", small_ones_here)
    words = [*tiny("res"), "model.cnn.backbone=test_resnet", "model.forward_batch_size=9999"]
    space = "space={trainor.batch_size: {choices: [4, 3000]}}"
    more = ["sweep.measure=resources", "sweep.memory_gb=0.9", "sweep.images=8"]
    assert main(["sweep", CONFIG, *words, space, *more]) == 0
    rows = json.loads((tmp_path / "ckpt/res/resources.json").read_text())["settings"]
    assert [row["state"] for row in rows] == ["measured", "does not fit"]
    small = rows[0]
    assert small["memory_gib"] > 0 and small["images_per_s"] == 4 / small["seconds"]
    assert small["hours_per_100_epochs"] == pytest.approx(100 * 2 * small["seconds"] / 3600)
    assert (tmp_path / "ckpt/res/resources.png").is_file()
    assert "does not fit" in capsys.readouterr().out
    config = plain(load_config(CONFIG, [*words, "model.cnn.backbone=nothing"]))
    found = measure(config, None)
    assert found["state"] == "error" and "'nothing'" in found["reason"]
    assert not is_out_of_memory(RuntimeError("shapes differ")) and is_out_of_memory(MemoryError())
