"""Whose an image is: an unknown patient is a patient of its own, for whatever asks."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vilmedic_ssl.data.auditing.parts import from_dataset
from vilmedic_ssl.data.budget import Budget
from vilmedic_ssl.data.budget_rows import choose
from vilmedic_ssl.data.datasets.base import Context, MedicalDataset
from vilmedic_ssl.data.datasets.image_folder import ImageFolder
from vilmedic_ssl.data.datasets.manifest import Manifest
from vilmedic_ssl.data.datasets.part import Part
from vilmedic_ssl.data.datasets.resplit import Resplit
from vilmedic_ssl.data.datasets.tok import ImageDataset
from vilmedic_ssl.data.divide import counts, divide, pool
from vilmedic_ssl.data.patients import MISSING, Unknown, count_unknown, is_missing, tell_apart
from vilmedic_ssl.data.split_file import SplitFile
from vilmedic_ssl.data.texts import group_names
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment.data import tell_unknown

SPLITS = ("train", "validate", "test")
SPELLINGS = ["", " ", "\t", "\u00a0", "nan", "NaN", "NA", "n/a", "None", "NULL", "<NA>", "NaT"]


class Toy(MedicalDataset):
    """Samples that set patients before, or after, their ids."""

    def __init__(self, ids, patients, *, split="train", late=False, studies=None):
        self.split = split
        if not late:
            self.patients = patients
        self.ids, self.studies = ids, studies
        if late:
            self.patients = patients
        self.labels, self.label_names = np.arange(len(ids)) % 2, ["a", "b"]


def table(folder: Path, rows: list[dict[str, str]]) -> str:
    for row in rows:
        file = folder / row["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(file)
    with (folder / "m.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / "m.csv")


@pytest.mark.parametrize("missing", [*SPELLINGS, None, float("nan"), np.nan])
@pytest.mark.parametrize("late", [False, True])
def test_every_spelling_of_nobody_is_a_patient_of_its_own(missing, late):
    assert is_missing(missing)
    data = Toy(["x", "y", "z", "w"], ["p", missing, missing, 7], late=late, studies=[missing] * 4)
    assert data.patients[0] == "p" and data.patients[3] == "7"
    assert len(set(data.patients)) == 4 and count_unknown(data.patients) == 2
    assert data.studies is None and Toy(["x", "y"], [missing] * 2).patients is None
    again = pickle.loads(pickle.dumps(data))
    assert again.patients == data.patients and count_unknown(again.patients) == 2
    assert data.card()["patients"] == 4 and data.card()["images without a patient"] == 2


def test_names_of_people_are_no_spelling_of_nobody():
    for name in ("0", "Nana", "N", "-", "unknown1", "none1", "P-NA"):
        assert not is_missing(name)
    assert all(word == word.lower() for word in MISSING)
    apart = tell_apart(["a", "", None], ["1", "2", "2"], "patient")
    assert apart[1] == apart[2]  # the same image twice is the same unknown patient
    assert tell_apart(apart, ["1", "2", "2"], "patient") == apart


def test_every_proto_names_unknown_patients_apart(tmp_path):
    rows = [
        {"path": f"{s}/{n}.png", "patient": p, "study": p, "split": s}
        for s in SPLITS
        for n, p in (("p1_a", "p1"), ("p1_b", "p1"), ("x", ""), ("y", "NA"))
    ]
    manifest = table(tmp_path, rows)
    for split in SPLITS:
        lines = [row["path"] for row in rows if row["split"] == split]
        (tmp_path / f"{split}.image.tok").write_text("".join(f"{line}\n" for line in lines))
    root = str(tmp_path)
    makers = {
        "Manifest": lambda split: Manifest(Context(split), manifest=manifest),
        "ImageFolder": lambda split: ImageFolder(
            Context(split), root=root, patient_pattern=r"(p\d)_"
        ),
        "ImageDataset": lambda split: ImageDataset(
            Context(split), root=root, file="image.tok", image_path=root, patient_pattern=r"(p\d)_"
        ),
    }
    for make in makers.values():
        homes = {split: make(split) for split in SPLITS}
        names = [name for data in homes.values() for name in data.patients]
        assert names.count("p1") == 6 and len(set(names)) == 7  # x and y of a split are others
        part = from_dataset(homes["train"])
        assert part.patients == ["p1", "p1", "", ""]
        cohort = pool(homes)
        assert sum(cohort.unknown) == 6 and len(set(cohort.groups)) == 7
        few = Part(homes["train"], [1, 2])
        assert few.patients == [homes["train"].patients[i] for i in (1, 2)]


def test_a_pattern_may_miss_a_whole_split_but_not_all(tmp_path):
    names = [f"train/a/p{i}_0.png" for i in range(4)] + ["val/a/x.png", "test/a/y.png"]
    table(tmp_path, [{"path": name} for name in names])
    data = ImageFolder(Context("test"), root=str(tmp_path), patient_pattern=r"(p\d)_")
    assert data.patients is None and len(data) == 1
    with pytest.raises(UserError, match="matches no file name"):
        ImageFolder(Context("test"), root=str(tmp_path), patient_pattern=r"(q\d)_")
    for split in ("train", "test"):
        lines = [name for name in names if name.startswith(split)]
        (tmp_path / f"{split}.image.tok").write_text("".join(f"{line}\n" for line in lines))
    part = {"root": str(tmp_path), "file": "image.tok", "image_path": str(tmp_path)}
    assert ImageDataset(Context("test"), **part, patient_pattern=r"(p\d)_").patients is None
    with pytest.raises(UserError, match="matches no file name"):
        ImageDataset(Context("test"), **part, patient_pattern=r"(q\d)_")


def test_homes_without_patients_do_not_take_those_of_others_away():
    homes = {
        "train": Toy(["a", "b"], None),
        "test": Toy(["c", "d"], ["p", "p"], split="test"),
    }
    chosen = [(home, name) for home, data in homes.items() for name in data.ids]
    data = Resplit("train", homes, chosen, SplitFile([]), prefix=False)
    assert data.patients.count("p") == 2 and len(set(data.patients)) == 3
    assert count_unknown(data.patients) == 2


def test_divisions_and_budgets_count_them_apart():
    ids = [f"i{i}" for i in range(40)]
    data = Toy(ids, ["p"] * 4 + [""] * 36)
    cohort = pool({"train": data})
    shares = {"train": 0.7, "validate": 0.1, "test": 0.2}
    for method in ("random", "stratified"):
        splits_N = divide(cohort, shares, method=method, seed=0)
        told = counts(cohort, splits_N)
        assert abs(told["train"]["images"] - 28) <= 4 and told["validate"]["images"] > 0
        assert sum(part["patients"] for part in told.values()) == 37
    assert 7 <= len(choose(data, Budget(samples=10), seed=0).labelled) <= 10  # 4 of p at once


def test_losses_take_them_for_other_patients_and_studies():
    data = Toy(list("abcd"), ["p", "p", "", ""], studies=["s", "s", "", "t"])
    named = [group_names("text", data.studies[i], data.patients[i], data.ids[i]) for i in range(4)]
    kinds = [np.unique(column, return_inverse=True)[1] for column in zip(*named, strict=True)]
    groups = torch.from_numpy(np.stack(kinds, axis=1))
    alike = groups[:, None] == groups
    assert alike[0, 1].tolist() == [True, True, True]
    assert not alike[2, 3, 1:].any() and not alike[0, 2, 1:].any()
    # the patients of one study are one, also where the table does not say who
    assert group_names("", "s", Unknown("u"), "a")[1] == group_names("", "s", None, "b")[1]


def test_a_table_needs_no_patients(tmp_path):
    rows = [{"path": f"{i:02d}.png", "Mass": str(i % 2)} for i in range(30)]
    for extra in ({}, {"patient": ""}, {"patient": " nan "}):
        path = table(tmp_path, [{**row, **extra} for row in rows])
        made = [Manifest(Context(s), manifest=path, labels=["Mass"]) for s in SPLITS]
        assert [len(data) for data in made] == [21, 3, 6]
        assert all(data.patients is None for data in made)
    path = table(tmp_path, [{**r, "patient": "" if i % 3 else f"p{i}"} for i, r in enumerate(rows)])
    made = [Manifest(Context(s), manifest=path, labels=["Mass"]) for s in SPLITS]
    assert [len(data) for data in made] == [21, 3, 6]
    assert sum(len(set(data.patients or data.ids)) for data in made) == 30


def test_it_is_said_once_with_the_count(capsys):
    data = Toy([f"once{i}" for i in range(5)], ["p", "", None, "nan", "q"], split="once")
    for _ in range(3):
        tell_unknown(data)
    told = capsys.readouterr().err
    assert told.count("once: 3 of 5 images have no patient: each counts as a patient of its") == 1
    tell_unknown(Toy(["a"], None, split="never"))
    tell_unknown(Toy(["a"], ["p"], split="never"))
    assert not capsys.readouterr().err
