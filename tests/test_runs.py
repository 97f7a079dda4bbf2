"""A run folder: one owner, whole files, and the same end whenever a training is killed."""

import dataclasses
import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import CONFIG, REPOSITORY, tiny_overrides

from vilmedic_ssl import config, files
from vilmedic_ssl.cli import main
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.init_weights_read import read_weights
from vilmedic_ssl.executors.resume import refuse_changes
from vilmedic_ssl.executors.run import Run, read_log
from vilmedic_ssl.executors.settings import TrainorSettings, ValidatorSettings
from vilmedic_ssl.executors.sweep_space import words_of
from vilmedic_ssl.experiment import load_config, train
from vilmedic_ssl.experiment.settings import check
from vilmedic_ssl.schema import plain

FORK = multiprocessing.get_context("fork")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Epochs of two steps with all that keeps a count, evaluated after each step; the score rises from
# the fifth on, so that plateau acts and early stopping ends it inside an epoch.
KEPT = [
    "audit=null",
    "dataset.filter={view: [PA]}",
    "model.cnn.backbone=test_resnet",
    "model.cnn.dropout_out=0.1",
    "trainor.max_steps=8",
    "trainor.epochs=9",
    "trainor.eval_every_steps=1",
    "trainor.save_every=3",
    "trainor.ema=0.5",
    "trainor.early_stop=3",
    "trainor.lr_decay=plateau",
    "trainor.lr_decay_params=null",
    "trainor.lr_decay_params={patience: 0, factor: 0.7}",
    "trainor.log_every=1",
    "validator.metrics=[]",
]


# ---------------------------------------------------------------- killed


def writes_in(folder, act):
    """Call `act(number, event, *paths)` before each change of a file below `folder`."""
    count = 0

    def look(event, arguments):
        nonlocal count
        if event == "open":
            changes = bool((arguments[2] or 0) & WRITES)
        else:
            changes = event in ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")
        if changes and str(arguments[0]).startswith(str(folder)):
            count += 1
            act(count, event, *map(str, arguments[:2]))

    sys.addaudithook(look)


def killed(overrides, folder, when):
    """Train in a child that is killed before a write that `when` is true of; False when it ended
    before.
    """

    def die(*write):
        if when(*write):
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        writes_in(folder, die)
        train(load_config(CONFIG, overrides))

    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def before(number):
    return lambda count, *_: count == number


def renames_last(count, event, *paths):
    return event == "os.rename" and paths[1].endswith("last_0.pth")


def end_of(folder, seed=0):
    """All that a finished run is: tensors, counters, names of checkpoints, records but for time."""
    content = checkpoint.read(folder / f"last_{seed}.pth")
    tensors = {f"{g} {n}": t for g in ("model", "ema") for n, t in content[g].items()}
    for i, state in content["optimizer"]["state"].items():
        tensors |= {f"{i} {name}": t for name, t in state.items()}
    kept = ("kind", "step", "epoch", "lr", "loss", "scores")
    log = [{k: r.get(k) for k in kept} for r in read_log(folder / f"log_{seed}.jsonl")]
    names = sorted(path.name for path in folder.rglob("*") if path.is_file())
    return tensors, content["progress"], names, log


def assert_same(found, expected):
    assert found[1:] == expected[1:]
    assert set(found[0]) == set(expected[0])
    for name, tensor in expected[0].items():
        assert torch.equal(found[0][name], tensor), name


@pytest.fixture(scope="module")
def undisturbed(phantom, tmp_path_factory):
    """How the run ends that nothing disturbs, and the number of its writes."""
    place = tmp_path_factory.mktemp("undisturbed")
    words, counts = [*tiny_overrides(phantom, place, "run"), *KEPT], FORK.Value("i", 0)

    def work():
        writes_in(place / "run", lambda number, *_: setattr(counts, "value", number))
        train(load_config(CONFIG, words))

    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
    return end_of(place / "run"), counts.value


def resumed(folder):
    """What is added to the words of a killed run, as a scheduler does."""
    return [] if checkpoint.newest(folder, 0) is None else ["ckpt=last"]


def test_the_run_that_is_killed_has_what_it_should(undisturbed):
    (_, progress, names, log), writes = undisturbed
    assert writes > 30
    assert len(progress["scores"]) == len([r for r in log if r["kind"] == "eval"])
    assert progress["step"] < 8, "it is to stop early"
    assert len({r["lr"] for r in log if r["kind"] == "step"}) > 1, "plateau is to act"
    assert [name for name in names if "partial" in name or "lock" in name] == []


def test_killed_again_and_again_it_ends_alike(undisturbed, tiny, tmp_path):
    expected, _ = undisturbed
    words, folder, number = [*tiny("run"), *KEPT], tmp_path / "ckpt/run", 6
    while killed([*words, *resumed(folder)], folder, before(number)):
        number += 7
    assert number > 19
    assert_same(end_of(folder), expected)


def test_killed_between_the_first_best_and_the_first_last_it_goes_on(
    undisturbed, tiny, tmp_path, capfd
):
    words, folder = [*tiny("run"), *KEPT], tmp_path / "ckpt/run"
    assert killed(words, folder, renames_last)
    (best,) = folder.glob("*.pth")
    assert checkpoint.find(folder, "last", 0) == checkpoint.find(folder, "last") == best
    assert list(folder.glob(".*.partial")) and (folder / "lock_0.json").is_file()
    (folder / "last_0.partial").touch()  # of earlier versions
    (folder / "evaluations").mkdir()
    (folder / "evaluations/.results.json.01234567.partial").touch()
    assert main(["train", str(CONFIG), *words]) == 2
    assert "ckpt=last" in capfd.readouterr().err
    assert main(["train", str(CONFIG), *words, "ckpt=last"]) == 0
    assert f"resumed from {best}" in capfd.readouterr().err
    (folder / "evaluations").rmdir()
    assert_same(end_of(folder), undisturbed[0])


@pytest.mark.slow
def test_killed_before_any_write_it_ends_alike(undisturbed, phantom, tmp_path):
    expected, writes = undisturbed
    for number in range(1, writes + 1):
        words = [*tiny_overrides(phantom, tmp_path / str(number), "run"), *KEPT]
        folder = tmp_path / str(number) / "run"
        assert killed(words, folder, before(number))
        train(load_config(CONFIG, [*words, *resumed(folder)]))
        assert_same(end_of(folder), expected)


# ---------------------------------------------------------------- whole files


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old\n")
    with pytest.raises(ZeroDivisionError), files.atomic(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    assert path.read_bytes() == b"old\n" and os.listdir(tmp_path) == ["a.txt"]
    files.write_text(tmp_path / ("n" * 250 + ".txt"), "names as long as the disk takes")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_only_what_nobody_writes_is_removed(tmp_path):
    with files.atomic(tmp_path / "a.txt") as file:
        file.write(b"a")
        (tmp_path / ".b.txt.0123abcd.partial").touch()
        (tmp_path / "my.partial").touch()
        files.remove_partials(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "my.partial"]


def test_every_moment_of_a_write_leaves_a_whole_file(tmp_path):
    """Killed before each step of it; what is left of it goes with the next owner."""
    path, number = tmp_path / "f", 1
    while True:

        def work(number=number):
            writes_in(tmp_path, lambda n, *_: n == number and os.kill(os.getpid(), signal.SIGKILL))
            files.write_text(path, "new")

        files.write_text(path, "old")
        child = FORK.Process(target=work)
        child.start()
        child.join()
        assert path.read_text() == ("old" if child.exitcode else "new")
        files.remove_partials(tmp_path)
        assert os.listdir(tmp_path) == ["f"]
        if not child.exitcode:
            break
        number += 1
    assert number > 2


def test_a_torn_line_of_a_log_is_dropped_and_not_joined(tiny):
    words = [*tiny("torn"), "trainor.log_every=1", "audit=null"]
    folder = train(load_config(CONFIG, words))
    log = folder / "log_0.jsonl"
    whole = read_log(log)
    for torn in (b'{"kind": "st', b"\x00\xff\xff", b"17"):
        log.write_bytes(log.read_bytes() + torn)
        assert read_log(log) == whole
    train(load_config(CONFIG, [*words, "ckpt=last", "trainor.max_steps=4"]))
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert records[: len(whole)] == whole and records[-1]["step"] == 4


def test_a_finished_run_is_left_as_it_is(tiny, capfd):
    """Also one that stopped early; only one that goes on gets new settings."""
    still = ["trainor.optimizer=SGD", "trainor.optim_params={lr: 1.0e-12}", "audit=null"]
    early = ["trainor.early_stop=1", "trainor.eval_every_steps=1", "dataset.filter={view: [PA]}"]
    for name, words in {"whole": [], "early": early}.items():
        words = [*tiny(name), *still, *words, "validator.metrics=[]", "trainor.epochs=2"]
        folder = train(load_config(CONFIG, words))
        before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
        changed = ["ckpt=last", "trainor.optim_params={lr: 1.0}", "trainor.log_every=3"]
        capfd.readouterr()
        assert main(["train", str(CONFIG), *words, *changed]) == 0
        assert "already finished" in capfd.readouterr().err
        assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before
    assert main(["train", str(CONFIG), *words, *changed, "trainor.early_stop=2"]) == 0
    assert "lr: 1.0" in (folder / "config_0.yml").read_text()


def test_names_of_checkpoints_that_there_are_stand_in_the_sentence(tiny, tmp_path, capfd):
    words = [*tiny("named"), "seed=3", "audit=null"]
    folder = train(load_config(CONFIG, words))
    (folder / "last_3 copy.pth").write_bytes(b"of a user")
    for name in ("last", "best"):
        capfd.readouterr()
        assert main(["train", str(CONFIG), *tiny("named"), f"ckpt={name}"]) == 2
        told = capfd.readouterr().err
        assert f"ckpt={name}" in told and "ckpt=last seed=3 or ckpt=best seed=3" in told
    assert checkpoint.find(folder, "last") == folder / "last_3.pth"


# ---------------------------------------------------------------- one owner

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom vilmedic_ssl.executors.run import Run\n"
    "with Run(Path(sys.argv[1]), 0).owned('trained'):\n    print('in', flush=True)\n"
    "    time.sleep(600)\n"
)


def holder(folder):
    """A process that has a run folder."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "in\n"
    return process


def test_a_run_has_one_owner_and_the_lock_ends_with_it(tiny, tmp_path, capfd):
    words = [*tiny("twin"), "audit=null", "validator.metrics=[]"]
    folder = train(load_config(CONFIG, words))
    process = holder(folder)
    try:
        before = {p: p.read_bytes() for p in folder.iterdir()}
        for more in ([], ["overwrite=true"], ["ckpt=last", "trainor.max_steps=4"], ["ckpt=best"]):
            capfd.readouterr()
            assert main(["train", str(CONFIG), *words, *more]) == 2
            told = capfd.readouterr().err
            for word in ("seed 0, is being trained by process", str(process.pid), "name="):
                assert word in told
            assert "Traceback" not in told
        assert main(["ensemble", str(CONFIG), *words]) == 2
        assert f"seed 0, is being trained by process {process.pid}" in capfd.readouterr().err
        assert {p: p.read_bytes() for p in folder.iterdir()} == before
        assert main(["train", str(CONFIG), *words, "seed=1"]) == 0  # another owner
    finally:
        process.kill()
        process.wait()
    assert (folder / "lock_0.json").is_file()  # it says who died
    assert main(["train", str(CONFIG), *words, "ckpt=last", "trainor.max_steps=4"]) == 0
    assert not list(folder.glob("lock_*"))


def test_a_killed_owner_with_living_children_owns_nothing(tmp_path):
    """As readers of images outlive a killed training for seconds."""
    ready = tmp_path / "ready"

    def work():
        with Run(tmp_path / "run", 0).owned("trained"):
            reader = FORK.Process(target=time.sleep, args=(600,))
            reader.start()
            ready.write_text(str(reader.pid))
            time.sleep(600)

    child = FORK.Process(target=work)
    child.start()
    while not (ready.is_file() and ready.read_text()):
        time.sleep(0.01)
    child.kill()
    child.join()
    try:
        with Run(tmp_path / "run", 0).owned("trained"):
            pass
    finally:
        os.kill(int(ready.read_text()), signal.SIGKILL)


def test_threads_are_owners_too_and_an_empty_folder_goes(tmp_path):
    run, told = Run(tmp_path / "run", 0), []

    def second():
        try:
            with run.owned("trained"):
                told.append("in")
        except UserError as error:
            told.append(str(error))

    with run.owned("trained"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
    assert f"process {os.getpid()}" in told[0]
    assert not run.folder.exists()


def test_a_disk_without_locks_warns_and_goes_on(tmp_path, monkeypatch, capfd):
    import fcntl

    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with Run(tmp_path / "run", 0).owned("trained"):
        files.write_text(tmp_path / "run/a.txt", "a")
    assert "cannot be locked" in capfd.readouterr().err
    assert os.listdir(tmp_path / "run") == ["a.txt"]


# ---------------------------------------------------------------- damaged


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    """One bit of every byte of a checkpoint, of every kind of entry it has."""
    path = tmp_path / "last_0.pth"
    content = {"model": {"w": torch.arange(6.0)}, "random": {"torch": torch.arange(9)}, "seed": 0}
    checkpoint.write(content, path)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            found = checkpoint.read(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
            continue
        assert str(found) == str({"format": 1, **content}), place
    assert refused > 300
    path.write_bytes(whole)
    assert checkpoint.read(path)["seed"] == 0


def test_a_flipped_bit_in_weights_of_other_programs_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"cnn.weight": torch.full((1000,), 3.0)}}, path)
    assert len(read_weights(path).tensors) == 1
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((8,), 3.0).numpy().tobytes()) + 100] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="init_from: .*weights.pth .*damaged"):
        read_weights(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(2)}, tmp_path / "none.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(read_weights(tmp_path / "none.pth").tensors) == 1
    old = tmp_path / "old.pth"  # no archive, no checksum
    torch.save({"w": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    assert len(read_weights(old).tensors) == 1


# ---------------------------------------------------------------- what a resume may change

FREE = {  # key -> another value
    "trainor.optim_params": {"lr": 1e-4, "weight_decay": 0.3},
    "trainor.lr_scaling": "sqrt",
    "trainor.lr_biases": 0.01,
    "trainor.weight_decay_end": 0.4,
    "trainor.lr_decay": "plateau",
    "trainor.lr_decay_params": {"patience": 3},
    "trainor.epochs": 7,
    "trainor.max_steps": 9,
    "trainor.eval_start": 1,
    "trainor.eval_every": 2,
    "trainor.eval_every_steps": 4,
    "trainor.early_stop": 8,
    "trainor.early_stop_start": 1,
    "trainor.decay_metric_start": 1,
    "trainor.decay_on_training_loss": True,
    "trainor.clip_grad_norm": 1.0,
    "trainor.use_amp": True,
    "trainor.amp_dtype": "bf16",
    "trainor.channels_last": False,
    "trainor.ema": 0.5,
    "trainor.ema_end": 1.0,
    "trainor.save_every": 1,
    "trainor.log_every": 1,
    "validator.metrics": ["feature_std"],
    "model.forward_batch_size": 8,
    "dataset.transform.load_memory": False,
    "dataset.transform.cache": True,
    "dataset.transform.cache_gb": 1.0,
}
REFUSED = {
    "trainor.optimizer": "SGD",
    "trainor.batch_size": 8,
    "trainor.layer_decay": 0.5,
    "trainor.lr_scales": {"head.*": 2.0},
    "trainor.grad_accu": 2,
    "trainor.drop_last": False,
    "trainor.sampling": "balanced",
    "trainor.early_stop_metric": "effective_rank",
    "trainor.ema": None,
    "validator.splits": ["train"],
    "validator.batch_size": 7,
    "model.loss.tau": 0.7,
    "dataset.transform.train": "imagenet",
    "dataset.transform.mean": [0.1],
}
ELSEWHERE = {"validator.reconstructions"}  # free, of methods that draw


def changed(node, key, value):
    """A copy of a config with one dotted key set."""
    first, _, rest = key.partition(".")
    inner = changed(node[first], rest, value) if rest else value
    return {**node, first: inner}


def value_of(node, key):
    for part in key.split("."):
        node = node[part]
    return node


@pytest.fixture(scope="module")
def resolved(phantom):
    words = tiny_overrides(phantom, phantom, "a")
    return check(plain(load_config(CONFIG, [*words, "trainor.ema=0.9"])))


def test_of_every_key_it_is_decided_whether_a_resume_may_change_it(resolved, tmp_path):
    keys = {f"trainor.{f.name}" for f in dataclasses.fields(TrainorSettings)}
    keys |= {f"validator.{f.name}" for f in dataclasses.fields(ValidatorSettings)}
    assert keys <= set(FREE) | set(REFUSED) | ELSEWHERE
    for key, value in FREE.items():
        assert value != value_of(resolved, key)
        refuse_changes(resolved, changed(resolved, key, value), "last_0.pth")
    for key, value in REFUSED.items():
        other = changed(resolved, key, value)
        with pytest.raises(UserError, match=f"as {key}, which its state"):
            refuse_changes(other, resolved, "last_0.pth")
        with pytest.raises(UserError, match=f"as {key}, which its state") as caught:
            refuse_changes(resolved, other, "last_0.pth")
        word = shlex.split(str(caught.value).partition("; write ")[2].partition(", or")[0])
        (tmp_path / "c.yml").write_text(config.dump(other))
        refuse_changes(resolved, plain(config.load(tmp_path / "c.yml", word)), "last_0.pth")


def test_the_order_of_splits_and_a_batch_size_by_default_are_no_change(resolved):
    two = changed(resolved, "validator.splits", ["validate", "train"])
    refuse_changes(two, changed(two, "validator.splits", ["train", "validate"]), "last_0.pth")
    size = resolved["trainor"]["batch_size"]
    refuse_changes(resolved, changed(resolved, "validator.batch_size", size), "last_0.pth")
    old = {key: value for key, value in resolved["trainor"].items() if key != "sampling"}
    refuse_changes({**resolved, "trainor": old}, resolved, "last_0.pth")


def test_a_run_goes_on_with_every_free_key_changed(tiny, capfd):
    words = [*tiny("free"), "audit=null", "trainor.ema=0.9", "model.cnn.backbone=test_resnet"]
    folder = train(load_config(CONFIG, words))
    before = checkpoint.read(folder / "last_0.pth")["progress"]["scores"]
    free = {k: v for k, v in FREE.items() if not k.startswith("dataset.transform.cache")}
    more = ["trainor.lr_decay_params=null", *words_of(free), "ckpt=last"]
    capfd.readouterr()
    assert main(["train", str(CONFIG), *words, "trainor.ema=null", "ckpt=last"]) == 2
    assert "write trainor.ema=0.9" in capfd.readouterr().err
    assert main(["train", str(CONFIG), *words, *more]) == 0
    progress = checkpoint.read(folder / "last_0.pth")["progress"]
    assert progress["step"] == 9 and progress["scores"][: len(before)] == before


def test_a_file_of_another_run_replaces_no_run_unasked(tiny, tmp_path, capfd):
    words = ["audit=null", "validator.metrics=[]"]
    one, two = (train(load_config(CONFIG, [*tiny(name), *words])) for name in ("one", "two"))
    before = {p: p.read_bytes() for p in two.iterdir()}
    onto = [*tiny("two"), *words, f"ckpt={one}/last_0.pth", "trainor.max_steps=4"]
    assert main(["train", str(CONFIG), *onto]) == 2
    assert "already holds last_0.pth" in capfd.readouterr().err
    assert {p: p.read_bytes() for p in two.iterdir()} == before
    assert main(["train", str(CONFIG), *onto, "overwrite=true"]) == 0
    assert checkpoint.read(two / "last_0.pth")["progress"]["step"] == 4
    assert {r["step"] for r in read_log(two / "log_0.jsonl")} == {4}


def test_findings_of_a_run_are_replaced_when_a_training_begins(tiny, phantom, tmp_path, capfd):
    """Not by a resume or a replacement that is refused, not by a finished run, not by a seed."""
    rows = (phantom / "manifest.csv").read_text().splitlines(keepends=True)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(row for i, row in enumerate(rows) if i == 0 or i % 5))
    other = [f"dataset.manifest={fewer}", f"dataset.root={phantom}"]
    words = [*tiny(), "validator.metrics=[]"]
    folder = train(load_config(CONFIG, words))
    audit = folder / "audit.json"
    before = audit.read_bytes()

    assert main(["train", str(CONFIG), *words, *other, "ckpt=last"]) == 2
    assert (
        main(["train", str(CONFIG), *words, *other, "overwrite=true", "model.cnn.backbone=x"]) == 2
    )
    assert main(["train", str(CONFIG), *words, "ckpt=last", "audit.images=false"]) == 0
    assert "already finished" in capfd.readouterr().err
    assert audit.read_bytes() == before and not list(folder.glob("audit_*"))

    assert main(["train", str(CONFIG), *words, *other, "seed=1"]) == 0
    assert f"audit: findings in {folder / 'audit_1.json'}" in capfd.readouterr().err
    assert audit.read_bytes() == before and (folder / "audit_1.json").read_bytes() != before
    (folder / "config_1.yml").unlink()
    assert main(["train", str(CONFIG), *words, *other, "overwrite=true"]) == 0
    assert audit.read_bytes() == (folder / "audit_1.json").read_bytes()
