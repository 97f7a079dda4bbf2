"""The audit of records: studies, patients and columns as people write them, pictures of nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vilmedic_ssl.cli import main
from vilmedic_ssl.data import audit, split_patients
from vilmedic_ssl.data.auditing import audit_parts, leaks
from vilmedic_ssl.data.auditing.parts import Part, from_dataset, from_table, pairs
from vilmedic_ssl.data.datasets.base import Context, MedicalDataset
from vilmedic_ssl.data.datasets.image_folder import ImageFolder
from vilmedic_ssl.data.datasets.manifest import Manifest
from vilmedic_ssl.data.patients import Unknown
from vilmedic_ssl.errors import ConfigError

Rows = list[dict]


def rows_of(patients: str, **more) -> Rows:
    """Rows of train and test from "a b | c d"."""
    halves = [half.split() for half in patients.split("|")]
    return [
        {"patient": "" if p == "-" else p, "split": split, **more}
        for split, half in zip(("train", "test"), halves, strict=True)
        for p in half
    ]


def of(found, kind: str) -> list:
    return [item for item in found if item.kind == kind]


def scene(seed: int, side: int = 48) -> np.ndarray:
    """A smooth picture of its own."""
    y, x = np.mgrid[0:side, 0:side] / side
    a, b, c = np.random.default_rng(seed).uniform(1, 12, 3)
    return (120 + 100 * np.sin(a * x + c) * np.cos(b * y + c)).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path.name


def write(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# ---- studies and patients ------------------------------------------------------------------------


def test_study_names_that_restart_with_each_patient_are_no_leak():
    table = [
        {"patient": f"p{p}", "study": f"study{s}", "split": "train" if p < 6 else "test"}
        for p in range(9)
        for s in (1, 2)
    ]
    assert not leaks(audit(table))
    (patient, study) = leaks(audit([*table, {**table[0], "split": "test"}]))
    assert patient.patients == ("p0",) and study.examples == ("p0 study1",)


def test_a_study_under_two_patients_is_a_leak_where_study_names_are_unique():
    table = [{**row, "study": f"s{i}"} for i, row in enumerate(rows_of("a b | c d"))]
    (found,) = leaks(audit([*table, {**table[0], "patient": "e", "split": "test"}]))
    assert found.kind == "study" and found.examples == ("s0",)


def test_studies_that_restart_do_not_hide_a_repeated_text():
    table = [{"patient": p, "study": "study1", "report": "same"} for p in "ab"]
    assert of(audit(table), "duplicate_text")


def test_samples_without_patient_are_counted_per_split():
    found = of(audit(rows_of("a b - | c - -")), "no_patients")
    assert [(f.severity, f.count) for f in found] == [("warning", 1), ("warning", 2)]
    assert found[1].message.startswith("test: 2 of 3 samples have no patient, so their overlap")
    (found,) = of(audit(rows_of("a b | - -")), "no_patients")
    assert found.splits == ("test",) and "2 of 2 samples" in found.message
    (found,) = of(audit(rows_of("- - | - -")), "no_patients")
    assert found.severity == "note" and found.splits == ("train", "test")


@pytest.mark.parametrize(
    "train, test", [("p1", "P1"), ("p1", "p01"), ("p 1", "p1"), ("12", "12.0"), ("a007b", "A7b")]
)
def test_patients_spelled_in_two_ways_are_told(train, test):
    table = [{"patient": train, "split": "train"}, {"patient": test, "split": "test"}]
    (found,) = of(audit(table), "patient_spelling")
    assert found.severity == "warning" and found.examples == (f"{train} = {test}",)


def test_other_patients_are_not_called_misspelled():
    for patients in ("p1 p10 | p100 p1000", "a1 a01 | a1 a01", "1.5 | 1.50", "- | 00"):
        assert not of(audit(rows_of(patients)), "patient_spelling")


@pytest.mark.parametrize("missing", [None, float("nan"), "nan", "None", " ", "<NA>", np.nan])
def test_a_missing_patient_is_nobody(missing):
    table = [{"patient": p, "split": s} for p, s in ((missing, "train"), (missing, "test"))]
    found = audit([*table, {"patient": "a", "split": "test"}])
    assert not leaks(found) and len(of(found, "no_patients")) == 2
    assert len({row["split"] for row in split_patients([*table, {"patient": "a"}])}) == 3


def test_a_filled_column_names_the_patient_whatever_the_file_is_called(tmp_path):
    rows = []
    for i, split in enumerate(("train", "test")):
        save(tmp_path / split / "p0.png", scene(i))
        (tmp_path / split / "p0.png").rename(tmp_path / split / "p0")
        rows.append({"path": f"{split}/p0", "patient": "p0", "split": split})
    table = write(tmp_path / "m.csv", rows)
    assert [f.kind for f in leaks(audit(table))] == ["patient"]
    made = [Manifest(Context(split=s), manifest=str(table)) for s in ("train", "test")]
    assert [f.kind for f in leaks(audit_parts([from_dataset(d) for d in made]))] == ["patient"]


def test_names_that_a_pattern_misses_have_no_patient(tmp_path):
    for i, name in enumerate(("train/p1_0", "train/scan", "val/p3_0", "test/p2_0", "test/scan")):
        save(tmp_path / f"{name}.png", scene(i))
    made = [
        ImageFolder(Context(split=s), root=str(tmp_path), patient_pattern=r"(p\d)_")
        for s in ("train", "test")
    ]
    assert made[0].patients[0] == "p1" and not set(made[0].patients) & set(made[1].patients)
    assert isinstance(made[0].patients[1], Unknown)
    found = audit_parts([from_dataset(d) for d in made])
    assert not leaks(found) and [f.count for f in of(found, "no_patients")] == [1, 1]


def test_only_train_itself_may_share_with_its_pieces():
    parts = [Part(name, ["a"]) for name in ("train", "train_small", "train_b", "test")]
    apart = {(a.name, b.name) for a, b in pairs(parts)}
    assert ("train_small", "train_b") in apart and ("train_small", "test") in apart
    assert not any("train" in pair and pair[1].startswith("train") for pair in apart)


# ---- tables as people write them -----------------------------------------------------------------


@pytest.mark.parametrize(
    "path, patient",
    [
        ("Image Index", "Patient ID"),
        ("image_id", "PatientID "),
        ("File_Name", "subject-id"),
        ("IMAGE PATH", "Subject"),
    ],
)
def test_columns_of_published_tables_are_recognised(tmp_path, path, patient):
    rows = [
        {path: save(tmp_path / f"{i}.png", scene(i % 2)), patient: f"p{i % 2}", "split": split}
        for i, split in enumerate(("train", "train", "test"))
    ]
    found = audit(write(tmp_path / "m.csv", rows))
    assert {f.kind for f in leaks(found)} == {"patient", "file"} and not of(found, "no_images")


def test_columns_can_be_named(tmp_path, capsys):
    rows = [
        {"scan": save(tmp_path / f"{i}.png", scene(0)), "who": "a", "visit": "v", "split": split}
        for i, split in enumerate(("train", "test"))
    ]
    named = {"path": "scan", "patient": "who", "study": "visit"}
    table, out = write(tmp_path / "m.csv", rows), ["--out", str(tmp_path / "out")]
    assert not leaks(found := audit(table)) and of(found, "no_images")[0].severity == "warning"
    assert {f.kind for f in leaks(audit(table, **named))} == {"patient", "study", "file"}
    words = [f"dataset.{key}={column}" for key, column in named.items()]
    assert main(["audit", str(table), *words, *out]) == 4
    assert main(["audit", str(table), "dataset.path=scna", *out]) == 2
    assert "did you mean 'scan'" in capsys.readouterr().err


def test_ids_without_suffix_are_no_files():
    found = audit([{"image_id": f"x{i}", "report": f"text {i}"} for i in range(3)])
    assert of(found, "no_images")[0].severity == "note"
    assert from_table([{"image_id": "x7"}], Path())[0].ids == ["x7"]


def test_rows_need_not_have_the_same_keys():
    table = [{"split": "train"}, {"patient": "a", "split": "test"}, {"patient": "a"}]
    found = audit(table)
    assert [f.patients for f in leaks(found)] == [("a",)]
    assert audit(table[::-1]) and audit(iter(table)) == found


def test_a_data_frame_is_a_table():
    pandas = pytest.importorskip("pandas")
    table = rows_of("a b - c d e f g h | a i")
    frame = pandas.DataFrame([{**row, "patient": row["patient"] or None} for row in table])
    assert audit(frame) == audit(table)
    assert not leaks(audit(frame[:3], against=frame[9:][["split"]]))
    full = frame.dropna()
    assert {row["split"] for row in split_patients(full)} == {"train", "validate", "test"}


@pytest.mark.parametrize(
    "words, told",
    [({"allow": ["patients"]}, "did you mean 'patient'"), ({"distance": 99}, "from 0 to 16")],
)
def test_settings_are_checked_in_python_too(words, told):
    with pytest.raises(ConfigError, match=told):
        audit([{"patient": "a"}], **words)


# ---- pictures ------------------------------------------------------------------------------------


def collection(folder: Path, **pictures: np.ndarray) -> Rows:
    """Rows of the pictures; names begin with train or test."""
    return [
        {
            "path": save(folder / f"{name}.png", values),
            "patient": name,
            "split": "train" if name.startswith("train") else "test",
        }
        for name, values in pictures.items()
    ]


def test_empty_slices_are_alike_and_no_leak(tmp_path):
    black, grey = np.zeros((48, 48), np.uint8), np.full((48, 48), 90, np.uint8)
    rows = collection(tmp_path, train0=black, train1=grey, train2=scene(0), test0=black)
    save(tmp_path / "t.png", grey)
    Image.open(tmp_path / "t.png").save(tmp_path / "grey.bmp")
    found = audit([*rows, {"path": "grey.bmp", "patient": "x", "split": "test"}], root=tmp_path)
    assert not leaks(found) and not of(found, "duplicate_image")
    assert [f.count for f in of(found, "constant")] == [2, 2]


def test_eight_bits_in_a_file_of_sixteen_are_not_constant(tmp_path):
    films = {f"train{i}": scene(i) for i in range(12)}
    rows = collection(tmp_path, **films, test0=scene(3).astype(np.uint16))
    found = audit(rows, root=tmp_path)
    assert not of(found, "constant")
    (leak,) = leaks(found)
    assert leak.rows == ("train:train3.png", "test:test0.png")


def test_a_film_twice_in_one_split_is_told(tmp_path):
    rows = collection(tmp_path, train0=scene(0), train1=scene(0), train2=scene(1), test0=scene(2))
    labelled = [{**row, "label": "ab"[i % 2]} for i, row in enumerate(rows)]
    (found,) = of(audit(labelled, root=tmp_path), "duplicate_image")
    assert found.severity == "warning" and found.rows == ("train:train0.png", "train:train1.png")
    assert "1 under several patients and 1 with different labels" in found.message
    views = [{**row, "report": f"{row} {i}"} for row in rows[1:] for i in range(2)]
    assert not of(audit(views, root=tmp_path), "duplicate_image")


class Drawn(MedicalDataset):
    """A plug-in whose pictures are made on the spot."""

    def __init__(self, split: str, first: int):
        self.split, self.first = split, first
        self.ids = [f"{split}{i}" for i in range(5)]

    def decoded(self, index: int) -> torch.Tensor:
        return torch.from_numpy(scene(self.first + index)).float()[None] / 255


def test_pictures_of_plug_ins_are_looked_at():
    for first, shared in ((4, 1), (5, 0)):  # the same ids: nothing of the first is remembered
        parts = [from_dataset(Drawn("train", 0)), from_dataset(Drawn("test", first))]
        assert [f.count for f in leaks(audit_parts(parts))] == [1] * shared
    texts = MedicalDataset()
    texts.split, texts.ids, texts.reports = "train", ["a"], ["text"]
    assert of(audit_parts([from_dataset(texts)]), "no_images")[0].severity == "note"


@pytest.mark.parametrize("names", [("training", "test"), ("Training", "Testing"), ("train", "VAL")])
def test_a_folder_in_another_spelling_is_counted_once(tmp_path, names):
    for i, split in enumerate(names * 10):
        save(tmp_path / "data" / split / "a" / f"{i}.png", np.roll(scene(i), 7 * i, axis=0))
    assert main(["audit", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
