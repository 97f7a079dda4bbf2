"""Many runs in one table: what differs, scores over seeds, results with their intervals."""

import csv
import json

import pytest

from vilmedic_ssl.cli import main
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.compare import groups_of, rows_of
from vilmedic_ssl.experiment.compare_verb import compare
from vilmedic_ssl.post_processing.compare_runs import compare_runs

RESULTS = {"test/knn/accuracy": 0.5, "test/knn/accuracy/low": 0.4, "test/knn/accuracy/high": 0.6}


def run_folder(place, *, lr=0.1, seeds=(0,), tau=0.2, results=None, knn=(0.1, 0.3, 0.2)):
    place.mkdir(parents=True)
    for seed in seeds:
        (place / f"config_{seed}.yml").write_text(
            f"name: {place.name}\nseed: {seed}\nmodel: {{proto: SimCLR, loss: {{tau: {tau}}}}}\n"
            f"trainor: {{optim_params: {{lr: {lr}}}}}\n"
        )
        records = [
            {
                "kind": "eval",
                "step": e,
                "epoch": e,
                "scores": {"knn": k + seed / 10, "validation_loss": 5 - e},
            }
            for e, k in enumerate(knn, 1)
        ]
        (place / f"log_{seed}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if results is not None:
        (place / "results.json").write_text(json.dumps({"split/hash": "h", **results}))
    return place


def test_seeds_are_averaged_and_differences_named(tmp_path):
    one = run_folder(tmp_path / "one", seeds=(0, 2))
    two = run_folder(tmp_path / "two", lr=0.5, results=RESULTS)
    rows = rows_of(groups_of([one, two]))
    assert [row["seeds"] for row in rows] == [2, 1]
    assert [row["trainor.optim_params.lr"] for row in rows] == ["0.1", "0.5"]
    assert "model.loss.tau" not in rows[0] and "seed" not in rows[0] and "name" not in rows[0]
    assert rows[0]["best knn"] == pytest.approx(0.4)
    assert rows[0]["best knn/sd"] == pytest.approx(0.2 / 2**0.5)
    assert rows[1]["best validation_loss"] == 2 and rows[1]["best validation_loss/sd"] is None
    assert rows[0]["test/knn/accuracy"] is None
    assert [rows[1][f"test/knn/accuracy{end}"] for end in ("", "/low", "/high")] == [0.5, 0.4, 0.6]


def test_folders_that_differ_in_the_seed_are_one_row(tmp_path):
    folders = [
        run_folder(tmp_path / f"seed{s}", seeds=(s,), results={"test/knn/accuracy": 0.5 + s / 10})
        for s in range(3)
    ]
    (row,) = rows_of(groups_of(folders))
    assert row["seeds"] == 3 and row["test/knn/accuracy"] == pytest.approx(0.6)
    assert row["test/knn/accuracy/sd"] == pytest.approx(0.1)
    assert row["test/knn/accuracy/low"] is None  # an interval of one seed is none of their mean


def test_the_verb_writes_a_table_and_a_picture(tmp_path, capsys):
    for n, tau in enumerate((0.1, 0.2, 0.5)):
        run_folder(tmp_path / f"sweep/trial-{n}", tau=tau, results=RESULTS if n else None)
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "sweep"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "0.500 [0.400, 0.600]" in told and "trial-2" in told
    with (out / "compare.csv").open() as file:
        assert [row["model.loss.tau"] for row in csv.DictReader(file)] == ["0.1", "0.2", "0.5"]
    assert len(json.loads((out / "compare.json").read_text())["rows"]) == 3
    assert (out / "compare.png").stat().st_size > 10_000


def test_the_printed_table_holds_what_differs_and_fits(tmp_path, capsys, monkeypatch):
    one = run_folder(tmp_path / "one", lr=0.1, results=RESULTS)
    two = run_folder(tmp_path / "two", lr=0.5, results={"test/knn/accuracy": 0.7})
    for wide, header, told in (
        ("120", ["run", "lr", "test/knn/accuracy"], "best knn 0.300"),
        ("30", ["run", "lr"], "no room here: test/knn/accuracy"),
    ):
        monkeypatch.setenv("COLUMNS", wide)
        rows = compare([one, two], out=tmp_path / "both")
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == header and told in "\n".join(lines[4:])
        assert rows[0]["best knn"] == 0.3 and rows[0]["test/knn/accuracy"] == 0.5
    compare([one], out=tmp_path / "out")  # alone it is equal to nothing
    assert "best knn" in capsys.readouterr().out.splitlines()[0]


def test_results_of_other_splits_are_warned_of(tmp_path, capsys):
    one = run_folder(tmp_path / "one", results=RESULTS)
    two = run_folder(tmp_path / "two", lr=2, results={**RESULTS, "split/hash": "other"})
    groups_of([one, two])
    assert "do not compare" in capsys.readouterr().err


def test_a_run_without_evaluations_has_no_picture(tmp_path):
    compare([run_folder(tmp_path / "one", knn=())], out=tmp_path / "out")
    assert not (tmp_path / "out/compare.png").exists()


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda place: place / "nowhere", "there is no run folder"),
        (lambda place: place, "holds no run"),
    ],
)
def test_mistakes(make, told, tmp_path):
    with pytest.raises(UserError, match=told):
        compare([make(tmp_path)], out=tmp_path / "out")


def test_the_plugin_draws_the_same(tmp_path):
    class Features:
        tag = "best-1_0"

    runs = [str(run_folder(tmp_path / "one")), str(run_folder(tmp_path / "two", lr=2))]
    found = dict(compare_runs(Features(), tmp_path, runs=runs))
    assert [path.name for path in found.values()] == ["compare.png"]
    assert (tmp_path / "compare_runs_best-1_0/compare.csv").is_file()
    with pytest.raises(UserError, match="name one run folder"):
        list(compare_runs(Features(), tmp_path, runs=[]))
