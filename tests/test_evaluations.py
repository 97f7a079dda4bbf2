"""Where evaluations are written: the main report is what the config of the run gives, and nothing
that was there before is replaced unasked.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import pytest
from conftest import CONFIG, tiny_overrides

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import ensemble, load_config, report, train
from vilmedic_ssl.cli import main
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import checkpoint, ensemblor
from vilmedic_ssl.executors.compare import groups_of
from vilmedic_ssl.executors.evaluations import read_record, reports_of
from vilmedic_ssl.experiment import evaluation

KNN = "ensemblor.post_processing=[{knn: {k: 3, draws: 20, references: []}}]"
FEWER = "ensemblor.post_processing=[{knn: {k: 2, draws: 20, references: []}}]"
WORDS = ["ensemblor.splits=[test]", "audit.images=false", KNN]
MAIN = ("results.json", "report.html", "evaluation.json")


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Reports without the curves of the training, which take most of the time and are not ours."""
    monkeypatch.setattr(report, "curves", lambda log: [])


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """A run folder with its main report, and one that was not scored yet."""
    place = tmp_path_factory.mktemp("trained")
    train(load_config(CONFIG, [*tiny_overrides(phantom, place, "plain"), *WORDS]))
    shutil.copytree(place / "plain", place / "scored")
    ensemble(load_config(CONFIG, [*tiny_overrides(phantom, place, "scored"), *WORDS]))
    return place


@pytest.fixture
def copy(trained, phantom, tmp_path):
    """`copy("scored")`: that run folder, and the words that trained it."""

    def made(name):
        folder = tmp_path / "ckpt" / name
        shutil.copytree(trained / name, folder)
        saved = folder / "config_0.yml"
        words = saved.read_text().replace(str(trained), str(tmp_path / "ckpt"))
        saved.write_text(words.replace("name: plain", f"name: {name}"))
        return folder, [*tiny_overrides(phantom, tmp_path / "ckpt", name), *WORDS]

    return made


def content(folder: Path) -> dict[str, bytes]:
    """All files of a run folder outside `evaluations`."""
    files = (p for p in folder.rglob("*") if p.is_file())
    names = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
    return {n: b for n, b in names.items() if not n.startswith("evaluations/")}


def only(folder: Path) -> Path:
    (place,) = (folder / "evaluations").iterdir()
    return place


def test_the_config_of_the_run_gives_its_main_report_however_it_is_named(
    copy, phantom, monkeypatch, capsys
):
    folder, words = copy("plain")
    monkeypatch.chdir(phantom)
    nearer = f"dataset.manifest={phantom / 'manifest.csv'}", "dataset.manifest=manifest.csv"
    ways = {
        "the words": [CONFIG, *words],
        "its folder": [folder],
        "another way to the data": [CONFIG, *(nearer[1] if w == nearer[0] else w for w in words)],
        "the same checkpoint by name": [folder, f"ckpt={checkpoint.ranked(folder)[0].name}"],
        "keys that decide nothing": [folder, "num_workers=1", "ensemblor.batch_size=7"],
        "views that scoring does not draw": [folder, "dataset.transform.train=null"],
    }
    for way, line in ways.items():
        for name in MAIN:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "post_processing", ignore_errors=True)
        assert main(["ensemble", *map(str, line)]) == 0
        assert f"report {folder / 'report.html'}" in capsys.readouterr().out, way
        assert all((folder / name).is_file() for name in MAIN), way
        assert not (folder / "evaluations").exists(), way


def other_manifest(phantom, place):
    lines = (phantom / "manifest.csv").read_text().splitlines()
    place.joinpath("other.csv").write_text("\n".join(lines[:-1]) + "\n")
    return [f"dataset.manifest={place / 'other.csv'}", f"dataset.root={phantom}"]


OTHERS = {
    "ensemblor.post_processing": [FEWER],
    "ensemblor.splits": ["ensemblor.splits=[test,validate]"],
    "dataset.transform.crop": ["dataset.transform.crop=24"],
    "budget": ["budget.samples=9"],
    "audit": ["audit=null"],
    "config_0.yml chooses": ["ckpt=last"],
    "dataset.manifest": other_manifest,
}


@pytest.mark.parametrize("told", OTHERS)
def test_any_other_evaluation_has_its_own_folder(told, copy, phantom, tmp_path, capsys):
    folder, words = copy("scored")
    before, more = content(folder), OTHERS[told]
    more = more(phantom, tmp_path) if callable(more) else more
    assert main(["ensemble", str(CONFIG), *words, *more]) == 0
    said = capsys.readouterr()
    assert content(folder) == before
    place = only(folder)
    assert f"report {place / 'report.html'}" in said.out
    assert f"not in {folder} itself: " in said.err and told in said.err
    assert json.loads((place / "results.json").read_text())
    if told not in ("ensemblor.post_processing", "dataset.manifest"):
        return
    # the identical one again, by the config that lies beside it: the same folder, the same numbers
    numbers = (place / "results.json").read_bytes()
    assert main(["ensemble", str(place / "config.yml")]) == 0
    assert only(folder) == place and (place / "results.json").read_bytes() == numbers
    assert content(folder) == before


def test_other_plugins_leave_no_file_among_those_of_the_run(copy, capsys):
    folder, words = copy("scored")
    save = "ensemblor.post_processing=[{save_representation: {keys: [encoder]}}]"
    ensemble(load_config(CONFIG, [*words, save]))
    assert list((only(folder) / "post_processing").rglob("*.npy"))
    assert not list((folder / "post_processing").rglob("*.npy"))


def test_more_training_brings_the_main_report_up_to_date(copy, capsys):
    folder, words = copy("scored")
    train(load_config(CONFIG, [*words, "ckpt=last", "trainor.max_steps=6", "trainor.epochs=2"]))
    groups_of([folder])
    assert "which is not there any more; score the run again" in capsys.readouterr().err
    assert main(["ensemble", str(folder / "config_0.yml")]) == 0
    assert "of earlier checkpoints and is brought up to date" in capsys.readouterr().err
    assert set(read_record(folder)["checkpoints"]) == {checkpoint.ranked(folder)[0].name}
    assert not (folder / "evaluations").exists()


def test_other_data_behind_the_same_path_is_another_evaluation(copy, phantom, tmp_path, capsys):
    folder, words = copy("plain")
    root = tmp_path / "data"
    shutil.copytree(phantom, root)
    words = [w.replace(str(phantom), str(root)) for w in words]
    train(load_config(CONFIG, [*words, "overwrite=true"]))
    ensemble(load_config(CONFIG, words))
    before = content(folder)
    table = root / "manifest.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-2]) + "\n")
    capsys.readouterr()
    ensemble(load_config(CONFIG, words))
    assert content(folder) == before and only(folder)
    assert "the data of" in (told := capsys.readouterr().err) and "overwrite=true" in told
    ensemble(load_config(CONFIG, [*words, "overwrite=true"]))
    assert content(folder)["results.json"] != before["results.json"]


def test_two_seeds_have_a_report_each(copy, capsys):
    """Neither replaces the other's, whichever is better, and a comparison knows both."""
    folder, words = copy("scored")
    train(load_config(CONFIG, [*words, "seed=1"]))
    before = content(folder)
    assert main(["ensemble", str(CONFIG), *words, "seed=1"]) == 0
    assert content(folder) == before and only(folder).name == "seed-1"
    assert "the main report is of seed 0" in capsys.readouterr().err
    assert read_record(folder)["seed"] == 0 and read_record(only(folder))["seed"] == 1
    assert main(["ensemble", str(folder / "config_1.yml"), "overwrite=true"]) == 0
    assert read_record(folder)["seed"] == 0
    assert reports_of(folder, [0, 1]) == [folder, only(folder)] and reports_of(folder, [0]) == [
        folder
    ]
    (group,) = groups_of([folder])
    assert len(group.results["test/knn/accuracy"]) == 2
    # both together are another evaluation than either
    assert main(["ensemble", str(folder / "config_0.yml"), "ensemblor.mode=all"]) == 0
    assert len(list((folder / "evaluations").iterdir())) == 2
    assert read_record(folder)["seed"] == 0


def test_two_seeds_scored_at_one_moment_have_a_report_each(copy, monkeypatch):
    folder, words = copy("plain")
    train(load_config(CONFIG, [*words, "seed=1"]))
    choose = evaluation.place_of

    def slow(*arguments):
        place = choose(*arguments)
        time.sleep(0.5)  # long enough for the other one to choose, too
        return place

    monkeypatch.setattr(evaluation, "place_of", slow)
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(target=ensemble, args=(load_config(CONFIG, [*words, f"seed={seed}"]),))
        for seed in (0, 1)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]
    first = read_record(folder)["seed"]
    assert read_record(only(folder))["seed"] == 1 - first
    assert len(reports_of(folder, [0, 1])) == 2


@pytest.mark.parametrize("name", [[], ["ensemblor.name=mine"]])
def test_an_evaluation_that_ended_early_holds_no_place(name, copy, phantom, tmp_path, monkeypatch):
    """Killed before it had results; then the data is corrected."""
    folder, words = copy("plain")
    place = folder / "evaluations/mine" if name else folder
    moved = tmp_path / "phantom"
    shutil.copytree(phantom, moved)
    table = moved / "manifest.csv"
    words = [*words, *name, f"dataset.manifest={table}"]
    (saved := folder / "config_0.yml").write_text(
        saved.read_text().replace(str(phantom), str(moved))
    )

    def killed(*arguments, **keys):
        (place / "post_processing").mkdir()
        (place / "post_processing/half.png").write_bytes(b"x")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ensemblor, "run_plugins", killed)
        with pytest.raises(KeyboardInterrupt):
            ensemble(load_config(CONFIG, words))
    assert read_record(place) and not (place / "results.json").exists()
    lines = table.read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if ",test," in line)
    table.write_text("".join(line for i, line in enumerate(lines) if i != last))
    ensemble(load_config(CONFIG, words))
    assert (place / "results.json").is_file()
    assert (place / "post_processing_before_1/half.png").is_file()
    with pytest.raises(UserError, match="overwrite") if name else contextlib.nullcontext():
        ensemble(load_config(CONFIG, [*words, "ensemblor.post_processing=[class_counts]"]))


def test_a_name_holds_one_evaluation(copy, capsys):
    folder, words = copy("scored")
    named = [*words, "ensemblor.name=my-hospital"]
    place = folder / "evaluations/my-hospital"
    for _ in range(2):
        assert main(["ensemble", str(CONFIG), *named]) == 0
    before = content(place)
    assert main(["ensemble", str(CONFIG), *named, FEWER]) == 2
    told = capsys.readouterr().err
    assert "holds another evaluation (ensemblor.post_processing)" in told
    assert "overwrite=true" in told and content(place) == before
    (place / "post_processing").mkdir(exist_ok=True)
    (place / "post_processing/mine.txt").write_text("mine")
    assert main(["ensemble", str(CONFIG), *named, FEWER, "overwrite=true"]) == 0
    assert content(place)["results.json"] != before["results.json"]
    assert (place / "post_processing_before_1/mine.txt").read_text() == "mine"
    (folder / "evaluations/notes").mkdir()
    (folder / "evaluations/notes/a.txt").write_text("mine")
    assert main(["ensemble", str(CONFIG), *words, "ensemblor.name=notes"]) == 2
    assert "is there already and no evaluation" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../up", "a/b", ".", "..", "", ".hidden", "seed-1", "a b", "x\n"])
def test_unsafe_names_are_refused(name, copy):
    with pytest.raises(UserError, match=r"ensemblor\.name"):
        load_config(CONFIG, [*copy("plain")[1], f"ensemblor.name={json.dumps(name)}"])


@pytest.mark.parametrize("name", ["results.json", "report.html", "post_processing/mine.npy"])
def test_what_another_program_left_stays(name, copy, capsys):
    """A report of an earlier version, or a file of the user's: nobody knows what it is of."""
    folder, words = copy("plain")
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"mine": 1}')
    before = content(folder)
    assert main(["ensemble", str(CONFIG), *words]) == 0
    assert content(folder) == before and (only(folder) / "results.json").is_file()
    assert "overwrite=true replaces them" in capsys.readouterr().err
    assert main(["ensemble", str(CONFIG), *words, "overwrite=true"]) == 0
    assert read_record(folder) is not None and (folder / "report.html").stat().st_size > 1000


PLUGIN = """
import os
from vilmedic_ssl.registry import proto

@proto
def moody(features, out):
    if os.environ.get("MOODY"):
        raise RuntimeError("not today")
    yield "test/moody/n", 1.0
"""


def test_a_plugin_that_fails_now_costs_no_earlier_report(trained, phantom, tmp_path, monkeypatch):
    (tmp_path / "moody_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    words = [*tiny_overrides(phantom, tmp_path / "ckpt", "plain"), *WORDS[:2]]
    words += ["plugins=[moody_plugin]", "ensemblor.post_processing=[moody]"]
    folder = train(load_config(CONFIG, words))
    monkeypatch.setenv("MOODY", "1")
    ensemble(load_config(CONFIG, words))  # nothing is there that could be lost
    assert read_record(folder)["failed"] == ["moody"]
    monkeypatch.delenv("MOODY")
    assert ensemble(load_config(CONFIG, words))["test/moody/n"] == 1
    before = {name: (folder / name).read_bytes() for name in MAIN}
    monkeypatch.setenv("MOODY", "1")
    with pytest.raises(UserError, match="moody failed and finished in the earlier evaluation"):
        ensemble(load_config(CONFIG, words))
    assert {name: (folder / name).read_bytes() for name in MAIN} == before
    ensemble(load_config(CONFIG, [*words, "overwrite=true"]))
    assert "test/moody/n" not in json.loads((folder / "results.json").read_text())
    sys.modules.pop("moody_plugin")


def test_an_edited_config_of_the_run_does_not_replace_its_report(copy, capsys):
    folder, words = copy("scored")
    node = yaml_config.read_yaml(folder / "config_0.yml")
    node["ensemblor"]["post_processing"] = [{"knn": {"k": 2, "draws": 20, "references": []}}]
    (folder / "config_0.yml").write_text(yaml_config.dump(node))
    before = content(folder)
    assert main(["ensemble", str(folder)]) == 0
    assert content(folder) == before and only(folder)
    assert "ensemblor.post_processing changed since the report in" in capsys.readouterr().err
    node["future_key"] = 1  # of a version to come
    (folder / "config_0.yml").write_text(yaml_config.dump(node))
    assert main(["ensemble", str(CONFIG), *words]) == 0
    assert "is not of this version" in capsys.readouterr().err


def test_comparisons_read_runs_of_before(copy):
    folder, _ = copy("plain")
    (folder / "results.json").write_text(json.dumps({"split/hash": "h", "test/knn/accuracy": 0.5}))
    (group,) = groups_of([folder])
    assert [triple[0] for triple in group.results["test/knn/accuracy"]] == [0.5]
