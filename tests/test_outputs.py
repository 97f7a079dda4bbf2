"""No verb replaces what it did not make from the same things: a user's file at every place where
one writes stays as it is, and the sentence that says so names what to write instead.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import CONFIG
from PIL import Image
from test_compare import RESULTS, run_folder

from vilmedic_ssl.cli import main, parser
from vilmedic_ssl.data.phantom import make_phantom
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment import flow
from vilmedic_ssl.experiment.audit import write_json
from vilmedic_ssl.experiment.outputs import output_place

MINE = b"of the user"
ELSEWHERE = {  # verbs whose places are tested in another file, and those that write nothing
    "ensemble": "test_evaluations.py",
    "train": "overwrite=true, tested with resuming",
    "describe": "writes nothing",
}


class Case:
    """A verb with two sets of inputs.

    Attributes:
        one, other: the words of each, without --out.
        default: where the first writes unasked; None = --out is required.
        files: what is written into that folder; () = it is the file.
    """

    def __init__(self, one, other, default, files=()):
        self.one, self.other, self.default, self.files = one, other, default, files

    def out(self, place: Path) -> Path:
        return place / "out" if self.files else place / f"out{Path(self.default).suffix}"

    def planted(self, path: Path) -> list[Path]:
        return [path / name for name in self.files] if self.files else [path]


@pytest.fixture
def case(request, tiny, phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return globals()[f"of_{request.param}"](tiny, phantom, tmp_path)


def of_preview(tiny, phantom, place):
    words = ["preview", str(CONFIG), *tiny(), "--images"]
    return Case([*words, "1"], [*words, "2"], "preview.png")


def of_explain(tiny, phantom, place):
    torch.save(timm.create_model("test_resnet", num_classes=3, in_chans=1).state_dict(), "w.pth")
    films = sorted(map(str, (phantom / "images").rglob("*.png")))
    rest = ["--weights", "w.pth", "--backbone", "test_resnet", "--size", "64"]
    return Case(["explain", films[0], *rest], ["explain", films[1], *rest], "explain.png")


def of_compare(tiny, phantom, place):
    one, two = (
        run_folder(place / name, lr=n, results=RESULTS) for n, name in ((1, "one"), (2, "two"))
    )
    files = ("compare.json", "compare.csv", "compare.png")
    return Case(["compare", str(one)], ["compare", str(one), str(two)], "compare", files)


def of_audit(tiny, phantom, place):
    Path("copy.csv").write_bytes((phantom / "manifest.csv").read_bytes())
    one, other = (
        ["audit", str(t), "audit.images=false"] for t in (phantom / "manifest.csv", "copy.csv")
    )
    other.append(f"dataset.root={phantom}")
    return Case(one, other, "audit", ("audit.json", "audit.html"))


def of_split(tiny, phantom, place):
    words = ["split", str(CONFIG), *tiny(), "--seed"]
    return Case([*words, "0"], [*words, "1"], None)


MARKED = ("preview", "explain", "compare", "audit")


@pytest.mark.parametrize("case", MARKED, indirect=True, ids=MARKED)
def test_a_named_place_is_replaced_only_by_the_same(case, tmp_path, capsys):
    out = case.out(tmp_path)
    for file in case.planted(out):  # each alone
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(MINE)
        assert main([*case.one, "--out", str(out)]) == 2
        assert "holds something else" in (told := capsys.readouterr().err) and "--overwrite" in told
        assert file.read_bytes() == MINE
        file.unlink()
    for _ in range(2):  # the same again
        assert main([*case.one, "--out", str(out)]) == 0
    before = [file.read_bytes() for file in case.planted(out)]
    assert main([*case.other, "--out", str(out)]) == 2
    assert [file.read_bytes() for file in case.planted(out)] == before
    assert main([*case.other, "--out", str(out), "--overwrite"]) == 0
    assert [file.read_bytes() for file in case.planted(out)] != before
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("case", MARKED, indirect=True, ids=MARKED)
def test_the_usual_place_gives_way(case, tmp_path, capsys):
    file = case.planted(Path(case.default))[0]
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(MINE)
    default = Path(case.default)
    second = Path(f"{default.stem}-2{default.suffix}")
    for _ in range(2):
        assert main(case.one) == 0
        assert str(second) in "".join(capsys.readouterr())
    assert main(case.other) == 0
    third = Path(f"{default.stem}-3{default.suffix}")
    assert file.read_bytes() == MINE and second.exists() and third.exists()


def test_a_division_is_replaced_by_the_same_only(tiny, phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = of_split(tiny, phantom, tmp_path)
    Path("s.json").write_bytes(MINE)
    assert main([*case.one, "--out", "s.json"]) == 2 and Path("s.json").read_bytes() == MINE
    for _ in range(2):
        assert main([*case.one, "--out", "t.json"]) == 0
    assert main([*case.other, "--out", "t.json"]) == 2


def test_an_audit_of_a_config_leaves_the_record_of_its_run(tiny, phantom, tmp_path):
    """Training wrote audit.json into the run folder; another look at the data goes beside it."""
    run = tmp_path / "ckpt/tiny"
    record = write_json(run, "audit.json", [])
    before = record.read_bytes()
    words = ["audit", str(CONFIG), *tiny(), "audit.images=false"]
    assert main([*words, "--against", str(phantom / "manifest.csv")]) == 4
    assert main(words) == 0
    assert record.read_bytes() == before
    assert sorted(p.name for p in run.iterdir()) == ["audit", "audit-2", "audit.json"]
    record.write_bytes(MINE)
    with pytest.raises(UserError, match="no audit of this program"):
        write_json(run, "audit.json", [])
    assert record.read_bytes() == MINE


@pytest.mark.parametrize("name", ["ids.txt", "ids.txt.csv"])
def test_a_selection_replaces_neither_list_nor_scores(name, tiny, tmp_path, capsys):
    (tmp_path / name).write_bytes(MINE)
    words = ["select", str(CONFIG), *tiny(), "--score", "entropy", "--add", "1"]
    assert main([*words, "--out", str(tmp_path / "ids.txt")]) == 2
    assert name in capsys.readouterr().err and (tmp_path / name).read_bytes() == MINE


def test_a_growing_selection_keeps_the_scores_of_its_last_round(tmp_path):
    from vilmedic_ssl.experiment.select_verb import _table_of

    file = tmp_path / "ids.txt"
    for expected in ("ids.txt.csv", "ids.txt-2.csv", "ids.txt-3.csv"):
        assert (table := _table_of(file)).name == expected
        file.write_text("a\n")
        table.write_text("id,score,picked\n")


SWEEPS = {
    "lr_range": "space={trainor.optim_params.lr: {low: 1e-6, high: 1, log: true}}",
    "resources": "space={trainor.batch_size: {choices: [4, 8]}}",
    "train": "space={trainor.batch_size: {choices: [4, 8]}}",
}


@pytest.mark.parametrize("measure", SWEEPS)
@pytest.mark.parametrize("suffix", [".csv", ".json", ".png"])
def test_a_sweep_replaces_no_table_of_another(measure, suffix, tiny, tmp_path, capsys):
    folder = tmp_path / "ckpt/tiny"
    folder.mkdir(parents=True)
    file = folder / f"{'sweep' if measure == 'train' else measure}{suffix}"
    file.write_bytes(MINE)
    words = [f"sweep.measure={measure}", SWEEPS[measure], "sweep.trials=2"]
    assert main(["sweep", str(CONFIG), *tiny(), *words]) == 2
    assert "overwrite=true" in capsys.readouterr().err and file.read_bytes() == MINE
    assert [path.name for path in folder.iterdir()] == [file.name]


def test_a_sweep_does_not_train_over_runs_that_are_called_like_its_trials(tiny, tmp_path):
    run = run_folder(tmp_path / "ckpt/tiny/trial-0")
    assert main(["sweep", str(CONFIG), *tiny(), SWEEPS["train"]]) == 2
    assert sorted(p.name for p in run.iterdir()) == ["config_0.yml", "log_0.jsonl"]


def test_a_range_test_refreshes_its_own_table_only(tiny, tmp_path, capsys):
    words = ["sweep", str(CONFIG), *tiny(), "model.cnn.backbone=test_resnet", SWEEPS["lr_range"]]
    words += ["sweep.measure=lr_range"]
    for _ in range(2):
        assert main([*words, "sweep.trials=4"]) == 0
    table = tmp_path / "ckpt/tiny/lr_range.csv"
    before = table.read_bytes()
    assert main([*words, "sweep.trials=3"]) == 2 and table.read_bytes() == before
    assert main([*words, "sweep.trials=3", "overwrite=true"]) == 0
    assert table.read_bytes() != before


def test_the_comparison_of_another_flow_is_kept(tmp_path, capsys):
    """A flow whose stages are changed runs on in its folder; the table of before is not lost."""
    one, other = (
        {"name": "f", "device": d, "flow": {"draws": n}} for d, n in (("cpu", 1), (None, 2))
    )
    (tmp_path / "flow.csv").write_bytes(MINE)  # of nobody knows what
    flow._save(one, tmp_path)
    assert (tmp_path / "comparisons/before/flow.csv").read_bytes() == MINE
    for name in flow.FILES[1:]:
        (tmp_path / name).write_text("one")
    flow._save({**one, "device": "cuda"}, tmp_path)  # the same comparison
    assert (tmp_path / "flow.csv").read_text() == "one"
    flow._save(other, tmp_path)
    assert "comparison of another flow" in capsys.readouterr().err
    (place,) = [p for p in (tmp_path / "comparisons").iterdir() if p.name != "before"]
    assert {p.name for p in place.iterdir()} == set(flow.FILES)
    assert (place / "flow.html").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["flow.yml"]
    for _ in range(2):  # to and fro: no comparison takes the place of another
        for name in flow.FILES[1:]:
            (tmp_path / name).write_text("again")
        flow._save(one, tmp_path)
        flow._save(other, tmp_path)
    assert (place / "flow.html").read_text() == "one"


def test_a_cohort_with_something_beside_it_is_not_replaced(tmp_path):
    place = make_phantom(tmp_path / "c", patients=2, size=48)
    (place / "my-labels.csv").write_bytes(MINE)
    with pytest.raises(UserError, match=r"my-labels\.csv"):
        make_phantom(place, patients=3, size=48)
    assert (place / "my-labels.csv").read_bytes() == MINE
    assert json.loads((place / "phantom.json").read_text())["patients"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_every_verb_is_looked_at():
    """A new verb gets its case here."""
    (verbs,) = (a.choices for a in parser()._actions if isinstance(a.choices, dict))
    here = {*MARKED, "split", "select", "sweep", "download"}
    assert set(verbs) == here | set(ELSEWHERE)


def test_a_picture_of_another_program_is_another(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="holds something else"):
        output_place(tmp_path / "a.png", "b.png", ["preview", 1])


def test_names_of_files_that_are_not_utf8_reach_every_file_of_a_run(tmp_path):
    """Old archives hold Latin-1 names; their bytes are escaped in JSON, and written as they are."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 9), ("validate", 4), ("test", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 255, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
            try:
                os.rename(folder / "0.png", os.fsencode(folder) + b"/\xe9.png")
            except OSError:
                pytest.skip("names on this disk are UTF-8")
    shutil.copy(
        os.fsencode(tmp_path / "data/train/a") + b"/\xe9.png", tmp_path / "data/test/a/8.png"
    )
    words = [f"dataset.root={tmp_path / 'data'}", f"ckpt_dir={tmp_path / 'ckpt'}", "name=odd"]
    words += ["num_workers=0", "device=cpu", "trainor.batch_size=8", "trainor.max_steps=2"]
    words += ["dataset.transform.resize=32", "dataset.transform.crop=32", "validator.metrics=[]"]
    words += ["model.cnn.backbone=test_resnet", "trainor.lr_decay=constant"]
    words += ["trainor.lr_decay_params=null", "audit.allow=[file, pixels, patient]"]
    words += ["ensemblor.post_processing=[classification, failure_gallery]"]
    supervised = CONFIG.with_name("supervised-folder.yml")
    assert main(["train", str(supervised), *words]) == 0
    run = tmp_path / "ckpt/odd"
    findings = json.loads((run / "audit.json").read_text())  # UTF-8, and the same name again
    assert "\udce9.png" in json.dumps(findings, ensure_ascii=False)
    assert main(["ensemble", str(run / "config_0.yml")]) == 0
    assert json.loads((run / "evaluation.json").read_text())["failed"] == []
    out = tmp_path / "splits.json"
    assert main(["split", str(supervised), *words, "--out", str(out)]) == 0
    again = [*words, f"split_file={out}", "seed=1"]
    assert main(["train", str(supervised), *again]) == 0
