"""`vilmedic-ssl split` and what uses its files: training, scoring, every dataset."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from conftest import CONFIG
from test_configs import FILES, data

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.cli import main
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.resplit import home_splits, resplit
from vilmedic_ssl.data.divide import divide, pool, rows_of
from vilmedic_ssl.data.split_file import SplitFile, read_splits, write_splits
from vilmedic_ssl.errors import MissingSplit, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.experiment.data import dataset_of, warn_if_few
from vilmedic_ssl.experiment.settings import load_config, typed
from vilmedic_ssl.schema import plain

SHARES = {"train": 0.7, "validate": 0.1, "test": 0.2}


def split(*arguments: object) -> int:
    return main(["split", str(CONFIG), *map(str, arguments)])


def ensemble(config: object, *arguments: object) -> int:
    quick = ["ensemblor.post_processing=[{knn: {k: 5}}]", "ensemblor.name=quick", "overwrite=true"]
    return main(["ensemble", str(config), *map(str, arguments), *quick])


def test_split_train_and_ensemble(tiny, tmp_path, capsys):
    out = tmp_path / "splits.json"
    options = ["--nested", "0.1,0.3", "--method", "balanced", "--out", out]
    assert split(*tiny(), *options) == 0
    told = capsys.readouterr().out
    file = read_splits(out)
    assert file.hash in told and "largest" in told and "0.1 of train" in told
    use = [*tiny(), f"split_file={out}", "train_fraction=0.3"]
    assert main(["train", str(CONFIG), *use]) == 0
    folder = tmp_path / "ckpt/tiny"
    content = checkpoint.read_run(folder / "last_0.pth")
    assert content["data"]["split_file"] == file.hash
    assert len(content["trained_on"]) == len(file.of_split("train", 0.3))
    assert ensemble(folder, "ensemblor.splits=[train,test]") == 0  # config_0.yml in it
    results = json.loads((folder / "evaluations/quick/results.json").read_text())
    assert results["split/hash"] == file.hash and results["split/train_fraction"] == 0.3
    page = (folder / "evaluations/quick/report.html").read_text(encoding="utf-8")
    assert file.hash in page
    # another division of the same data, then none at all, then a resume by another one
    other = tmp_path / "other.json"
    assert split(*tiny(), "--seed", 1, "--out", other) == 0
    capsys.readouterr()
    assert ensemble(CONFIG, *tiny(), f"split_file={other}") == 2
    assert f"of hash {file.hash}, this config names" in capsys.readouterr().err
    assert ensemble(CONFIG, *tiny()) == 4  # images that the file calls train
    assert "was trained with the split file of hash" in capsys.readouterr().err
    resume = [*tiny(), "ckpt=last", "trainor.max_steps=4"]
    assert main(["train", str(CONFIG), *resume, f"split_file={other}"]) == 2
    assert "the split file was another one then" in capsys.readouterr().err
    assert main(["train", str(CONFIG), *resume, *use[-2:]]) == 0


def test_results_name_the_division_without_a_file_too(tiny, tmp_path, capsys):
    overrides = [*tiny(), "audit=null"]
    assert main(["train", str(CONFIG), *overrides]) == 0
    assert ensemble(CONFIG, *overrides, "ensemblor.splits=[test]") == 0
    results = json.loads((tmp_path / "ckpt/tiny/evaluations/quick/results.json").read_text())
    assert len(results["split/hash"]) == 16 and "split/train_fraction" not in results
    # a file whose training split holds all that was trained on is no other division
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    assert split(*tiny(), "--method", "own", "--nested", "0.2", "--out", own) == 0
    fraction = [f"split_file={own}", "train_fraction=0.2"]
    assert ensemble(CONFIG, *overrides, *fraction) == 0
    assert split(*tiny(), "--out", other) == 0
    assert ensemble(CONFIG, *overrides, f"split_file={other}") == 2
    assert "with no split file, this config names" in capsys.readouterr().err


def test_overwrite_rules(tiny, tmp_path, capsys):
    out = tmp_path / "s.json"
    assert split(*tiny(), "--out", out) == 0
    before = out.read_bytes()
    assert split(*tiny(), "--out", out) == 0 and out.read_bytes() == before
    assert split(*tiny(), "--out", out, "--seed", 1) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_bytes() == before
    assert split(*tiny(), "--out", out, "--seed", 1, "--overwrite") == 0
    assert out.read_bytes() != before


def test_keep_test_and_folds(tiny, tmp_path):
    out, many = tmp_path / "s.json", tmp_path / "folds"
    assert split(*tiny(), "--keep-test", "--out", out) == 0
    rows = read_splits(out).rows
    assert all((home == "test") == (now == "test") for home, _, now, _ in rows)
    assert split(*tiny(), "--folds", 4, "--out", many) == 0
    tested = [
        r[:2] for i in range(4) for r in read_splits(many / f"fold_{i}.json").of_split("test")
    ]
    assert sorted(tested) == sorted(row[:2] for row in rows)
    assert split(*tiny(), "--folds", 2, "--keep-test", "--out", tmp_path / "kept") == 0
    both = [read_splits(tmp_path / f"kept/fold_{i}.json") for i in range(2)]
    validated = [row[:2] for file in both for row in file.of_split("validate")]
    assert sorted(validated) == sorted(row[:2] for row in rows if row[2] != "test")


WRONG = {
    "--fractions train=0.5,test=0.6 --out {}/x.json": "sum to 1",
    "--fractions train --out {}/x.json": "sum to 1",
    "--fractions train=0.5,test=0.5 --folds 3 --out {}/x": "exclude each other",
    "--folds 2 --out {}/x": "write 3 or more",
    "--folds 3 --out {}/x.json": "name a folder",
    "--out {}/x.txt": "ends in .json",
    "--nested 0.1,2 --out {}/x.json": "between 0 and 1",
    "--method own --keep-test --out {}/x.json": "keeps the data's splits",
    "--seed -1 --out {}/x.json": "write 0 or more",
    "--out /proc/x.json": "cannot write",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options_are_one_sentence(options, tiny, tmp_path, capsys):
    assert split(*tiny(), *options.format(tmp_path).split()) == 2
    assert WRONG[options] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


PROTOS = {yaml_config.load(path)["dataset"]["proto"]: path for path in FILES}


@pytest.mark.parametrize("proto", PROTOS)
def test_every_proto_can_be_split(proto, phantom, tmp_path):
    node = yaml_config.load(PROTOS[proto])
    place = [f"ckpt_dir={tmp_path}", "name=run", *data(node, phantom)]
    out = tmp_path / "s.json"
    assert main(["split", str(PROTOS[proto]), *place, "--nested", "0.2", "--out", str(out)]) == 0
    config = plain(load_config(PROTOS[proto], [*place, f"split_file={out}"]))
    same_samples(config["dataset"], read_splits(out))


@pytest.mark.parametrize("proto", ["ImSeq", "ImSeqLabel"])
def test_pairs_can_be_split(proto, phantom):
    image = {"root": str(phantom), "file": "image.tok", "image_path": str(phantom), "crop": 32}
    node = {
        "proto": proto,
        "image": {**image, "resize": 32, "patient_pattern": r"(p\d+)_s"},
        "seq": {"root": str(phantom), "file": "report.tok"},
        "label": {"root": str(phantom), "file": "label.tok"},
    }
    node = node if proto == "ImSeqLabel" else {k: v for k, v in node.items() if k != "label"}
    cohort = pool(home_splits(node, Context("train")))
    splits_N = divide(cohort, SHARES, method="random", seed=0)
    assert cohort.known
    for patient in set(cohort.groups):
        assert len(set(splits_N[[g == patient for g in cohort.groups]])) == 1
    same_samples(node, SplitFile(rows_of(cohort, splits_N, [None] * len(cohort))))


def same_samples(node, file):
    """Every sample of a division is what it was in the data's own splits."""
    homes = home_splits(node, Context("train"))
    members = []
    for split in file.splits:
        now = resplit(node, Context(split), file)
        assert len(set(now.ids)) == len(now.ids) == len(file.of_split(split))
        for index in (0, len(now) - 1):
            home, number = now.chosen[index]
            was = homes[home]
            item, before = now[index], was[number]
            assert (item["images"] == before["images"]).all() and item["id"] == now.ids[index]
            assert (now.picture(index) == was.picture(number)).all()
            assert (now.decoded(index) == was.decoded(number)).all()
            assert was.paths is None or now.paths[index] == was.paths[number]
            for name in ("patients", "studies", "reports"):
                own = getattr(was, name)
                assert own is None or getattr(now, name)[index] == own[number]
            if was.labels is not None:
                assert (now.labels[index] == was.labels[number]).all()
        batch = now.collate([now[0], now[len(now) - 1]])
        assert len(batch["images"]) == 2 and now.label_names == was.label_names
        assert ("input_ids" in batch) == (getattr(was, "tokenizer", None) is not None)
        members += now.members().tolist()
    assert sorted(members) == sorted(m for home in homes.values() for m in home.members().tolist())
    views = resplit(node, Context("train", augment=True), file)
    seeds = [views.item(i, 7)["images"] for i in (0, len(views) - 1)]
    assert all((views.item(0, 7)["images"] == view).all() for view in seeds[:1])
    assert views.fingerprint() == resplit(node, Context("train"), file).fingerprint()


def pictures(root: Path, **splits: list[tuple[str, str, str]]) -> Path:
    """A manifest of (path, patient, mode) per split, with the pictures."""
    from PIL import Image

    with (root / "m.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient", "split", "kind"])
        for split, rows in splits.items():
            for i, (path, patient, mode) in enumerate(rows):
                colour = (200, 10, 10) if mode == "RGB" else 90
                Image.new(mode, (16, 16), colour).save(root / path)
                table.writerow([path, patient, split, "ab"[i % 2]])
    return root / "m.csv"


def manifest_node(table: Path) -> dict:
    transform = {"channels": "auto", "resize": 16, "crop": 16}
    return {"proto": "Manifest", "manifest": str(table), "label": "kind", "transform": transform}


def divided(node: dict, path: Path) -> SplitFile:
    cohort = pool(home_splits(node, Context("train")))
    splits_N = divide(cohort, {"train": 0.5, "test": 0.5}, method="random", seed=0)
    file = SplitFile(rows_of(cohort, splits_N, [None] * len(cohort)), {}, path)
    write_splits(file)
    return file


def test_colour_in_one_split_makes_all_colour(tmp_path):
    rows = [(f"{i}.png", f"p{i}", "L") for i in range(8)]
    colour = [(f"c{i}.png", f"c{i}", "RGB") for i in range(8)]
    node = manifest_node(pictures(tmp_path, train=rows, test=colour))
    now = resplit(node, Context("train"), divided(node, tmp_path / "s.json"))
    assert {len(now.item(i, 0)["images"]) for i in range(len(now))} == {3}
    assert now.files.mode == "rgb"


def test_an_id_in_two_splits_is_told_apart_and_still_found(tmp_path):
    rows = [(f"{i}.png", f"p{i}", "L") for i in range(6)]
    node = manifest_node(pictures(tmp_path, train=rows, test=rows[:2]))
    file = divided(node, tmp_path / "s.json")
    ids = [n for s in ("train", "test") for n in resplit(node, Context(s), file).ids]
    assert len(set(ids)) == 8 and "train:0.png" in ids and "test:0.png" in ids
    train = resplit(node, Context("train"), file)
    assert train.paths[0].name == train.ids[0].split(":")[1]


def test_other_samples_than_those_of_the_file(tmp_path):
    rows = [(f"{i}.png", f"p{i}", "L") for i in range(6)]
    node = manifest_node(pictures(tmp_path, train=rows[:4], test=rows[4:]))
    file = divided(node, tmp_path / "s.json")
    pictures(tmp_path, train=rows[:3], test=rows[4:])
    with pytest.raises(UserError, match="names 1 sample.* '3.png' of split 'train'; give the `da"):
        resplit(node, Context("train"), file)
    pictures(tmp_path, train=[(f"other{i}.png", "p", "L") for i in range(3)])
    with pytest.raises(UserError, match="other data: none of its 6 samples is here"):
        resplit(node, Context("train"), file)
    pictures(tmp_path, train=rows[:4], test=rows[4:], validate=[("new.png", "p", "L")])
    with pytest.raises(UserError, match="does not know 1 sample.* 'new.png' of split 'validate'"):
        resplit(node, Context("train"), file)
    with pytest.raises(MissingSplit, match="no split 'validate'; it has test, train"):
        resplit(node, Context("validate"), file)


def test_own_splits_may_change_where_ids_tell_samples_apart(tmp_path):
    rows = [(f"{i}.png", f"p{i}", "L") for i in range(6)]
    node = manifest_node(pictures(tmp_path, train=rows[:4], test=rows[4:]))
    file = divided(node, tmp_path / "s.json")
    before = sorted(resplit(node, Context("train"), file).ids)
    pictures(tmp_path, train=rows[2:], validate=rows[:2])
    now = resplit(node, Context("train"), file)
    assert sorted(now.ids) == before and now.splits.hash == file.hash


def test_no_run_name_and_overrides_after_options(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [(f"{i}.png", f"p{i}", "L") for i in range(6)]
    pictures(tmp_path, all=rows)
    (tmp_path / "m.csv").unlink()
    folder = "config/SELFSUP/simclr-folder.yml"
    options = ["--out", "s.json", "dataset.root=.", "--overwrite", "dataset.exclude=['5.png']"]
    assert main(["split", folder, *options]) == 0
    assert sum(map(len, (read_splits("s.json").of_split(s) for s in SHARES))) == 5
    assert main(["audit", folder, "dataset.root=.", "audit.images=false"]) == 0
    assert (tmp_path / "audit/audit.json").is_file()
    capsys.readouterr()
    assert main(["split", ".", "--out", "t.json"]) == 2
    assert "for a folder of images" in capsys.readouterr().err
    assert main(["split", folder, "dataset.root=.", "--out", "t.json", "--fractions", "8,1,1"]) == 2
    assert "images" not in capsys.readouterr().err
    for late in ("word", "--flag=1"):
        with pytest.raises(SystemExit):
            main(["split", folder, "--out", "t.json", late])
    with pytest.raises(SystemExit):
        main(["download", "--root", ".", "phantom", "a=b"])


def test_a_split_of_few_images_is_said(capsys):
    warn_if_few("test", 10)
    assert not capsys.readouterr().err
    warn_if_few("validate", 1)
    assert "validate: 1 image, too few" in capsys.readouterr().err


def test_official_test_that_shares_patients_cannot_be_kept(tmp_path, capsys):
    rows = [(f"{i}.png", f"p{i}", "L") for i in range(6)]
    table = pictures(tmp_path, train=rows, test=[("x.png", "p0", "L")])
    data = [f"dataset.manifest={table}", "dataset.label=kind"]
    for option in (["--keep-test"], ["--method", "own"]):
        assert split(*data, *option, "--out", tmp_path / "s.json") == 2
        assert "patient p0 stands in" in capsys.readouterr().err


def test_unknown_patients_are_said(tmp_path, capsys):
    rows = [(f"{i}.png", "", "L") for i in range(6)]
    table = pictures(tmp_path, train=rows, test=[("x.png", "", "L")])
    data = [f"dataset.manifest={table}", "dataset.label=kind"]
    assert split(*data, "--out", tmp_path / "s.json") == 0
    assert "patient_pattern" in capsys.readouterr().err
    assert read_splits(tmp_path / "s.json").made_by["grouped_by"] == "image"


def test_pictures_are_not_opened(tmp_path):
    rows = [(f"{i}.png", f"p{i}", "L") for i in range(6)]
    table = pictures(tmp_path, train=rows)
    for name, _, _ in rows:
        (tmp_path / name).write_bytes(b"no picture")
    data = [f"dataset.manifest={table}", "dataset.label=kind", "dataset.transform.channels=auto"]
    assert split(*data, "--out", tmp_path / "s.json") == 0


def test_fractions_need_a_file_that_has_them(tiny, tmp_path, capsys):
    assert main(["train", str(CONFIG), *tiny(), "train_fraction=0.1"]) == 2
    assert "split_file" in capsys.readouterr().err
    out = tmp_path / "s.json"
    assert split(*tiny(), "--nested", "0.1", "--out", out) == 0
    wrong = [f"split_file={out}", "train_fraction=0.5"]
    assert main(["train", str(CONFIG), *tiny(), *wrong]) == 2
    assert "no fraction 0.5; it has 0.1" in capsys.readouterr().err
    config = plain(load_config(CONFIG, [*tiny(), f"split_file={out}", "train_fraction=0.1"]))
    sizes = [len(dataset_of(typed(config), config, s)) for s in ("train", "test")]
    file = read_splits(out)
    assert sizes == [len(file.of_split("train", 0.1)), len(file.of_split("test"))]
