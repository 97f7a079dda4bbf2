"""The audit: every planted fault is found and named, clean data passes, a leak stops a run."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from vilmedic_ssl.cli import main
from vilmedic_ssl.data import audit
from vilmedic_ssl.data.auditing import KINDS, allowed, leaks
from vilmedic_ssl.data.auditing.findings import finding
from vilmedic_ssl.data.auditing.lookalikes import difference_bits
from vilmedic_ssl.data.auditing.parts import from_table
from vilmedic_ssl.data.datasets.manifest import read_table
from vilmedic_ssl.data.fact_store import FILE
from vilmedic_ssl.data.facts import content_hashes, facts_of, measure
from vilmedic_ssl.data.paths import cache_folder
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.experiment import load_config
from vilmedic_ssl.experiment.audit import refuse

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def cohort(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the built-in cohort that tests may add files to."""
    return shutil.copytree(phantom, tmp_path_factory.mktemp("audit") / "cohort")


@pytest.fixture
def rows(cohort: Path) -> Rows:
    return read_table(cohort / "manifest.csv")


def of(rows: Rows, split: str, suffix: str = ".png") -> dict[str, str]:
    """The first film of a split in a file of a kind."""
    return next(r for r in rows if r["split"] == split and r["path"].endswith(suffix))


def picture(cohort: Path, row: dict[str, str]) -> Image.Image:
    values = np.asarray(Image.open(cohort / row["path"])).astype(float)
    return Image.fromarray((values / 257).round().astype(np.uint8))


def planted(rows: Rows, **values: str) -> Rows:
    """The rows and one more, of a new patient in test unless told otherwise."""
    new = {**dict.fromkeys(rows[0], ""), "patient": "new", "study": "new_s1", "split": "test"}
    return [*rows, {**new, "report": "A text of its own.", **values}]


def kinds(found) -> dict[str, list]:
    out: dict[str, list] = {}
    for item in found:
        out.setdefault(item.kind, []).append(item)
    return out


def write(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# ---- leaks ---------------------------------------------------------------------------------------


def test_a_clean_cohort_passes(cohort):
    found = audit(cohort / "manifest.csv", label="dominant")
    assert not leaks(found)
    assert set(kinds(found)) <= {"classes", "class_missing", "duplicate_text", "study_text", "text"}


def test_a_patient_and_a_study_in_two_splits(cohort, rows):
    moved = next(r for r in rows if r["split"] == "train")
    row = planted(rows, path="none.png", patient=moved["patient"], study=moved["study"])
    found = kinds(audit(row, root=cohort, images=False))
    (patient,), (study,) = found["patient"], found["study"]
    assert patient.severity == study.severity == "leak"
    assert patient.patients == (moved["patient"],) and study.examples == (moved["study"],)
    assert "test:none.png" in patient.rows and f"train:{moved['path']}" in patient.rows
    assert patient.splits == ("train", "test") and moved["patient"] in patient.message


def test_the_same_file_under_another_name(cohort, rows):
    source = of(rows, "train")
    shutil.copy(cohort / source["path"], cohort / "copy.png")
    (found,) = leaks(audit(planted(rows, path="copy.png"), root=cohort))
    assert found.kind == "file" and found.count == 1
    assert set(found.rows) == {f"train:{source['path']}", "test:copy.png"}
    assert set(found.patients) == {source["patient"], "new"}


def test_the_same_path_without_reading_it(cohort, rows):
    source = of(rows, "train")
    twice = planted(rows, path=source["path"])
    (found,) = leaks(audit(twice, root=cohort, images=False))
    assert found.kind == "file" and f"test:{source['path']}" in found.rows


def test_the_same_pixels_in_another_format(cohort, rows):
    source = of(rows, "train", ".jpg")
    Image.open(cohort / source["path"]).convert("RGB").save(cohort / "lossless.bmp")
    (found,) = leaks(audit(planted(rows, path="lossless.bmp"), root=cohort))
    assert found.kind == "pixels" and f"train:{source['path']}" in found.rows


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((1, 1, image.width - 1, image.height - 1))


CHANGES = {
    "jpeg": (lambda image: image, ".jpg"),
    "half": (lambda image: image.resize((32, 32)), ".png"),
    "larger": (lambda image: image.resize((150, 150)), ".png"),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.15), ".png"),
    "contrast": (lambda image: ImageEnhance.Contrast(image).enhance(0.7), ".png"),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ".png"),
    "inverted": (lambda image: image.point(lambda value: 255 - value), ".png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates(cohort, rows, change):
    make, suffix = CHANGES[change]
    source = of(rows, "train")
    name = f"near-{change}{suffix}"
    make(picture(cohort, source)).save(cohort / name)
    (found,) = leaks(audit(planted(rows, path=name), root=cohort))
    assert found.kind == "near_duplicate"
    assert set(found.rows) == {f"train:{source['path']}", f"test:{name}"}
    assert ("(" in found.examples[0]) == (change in ("mirrored", "inverted"))


def test_constant_images_are_no_near_duplicates(cohort, rows):
    for name, value in (("black.png", 0), ("grey.png", 90)):
        Image.fromarray(np.full((64, 64), value, np.uint8)).save(cohort / name)
    both = planted(rows, path="black.png", split="train", patient="other", study="")
    both = planted(both, path="grey.png")
    found = audit(both, root=cohort)
    assert not leaks(found)
    assert [f.rows for f in kinds(found)["constant"]] == [("train:black.png",), ("test:grey.png",)]


def test_alike_pictures_are_no_copies(tmp_path):
    """A family of pictures that the hash alone cannot tell apart."""
    y, x = np.mgrid[0:64, 0:64] / 64
    rng = np.random.default_rng(0)
    scene = 120 + 90 * np.sin(7 * x) * np.cos(5 * y)
    rows = []
    for i in range(40):
        bumps = sum(
            30 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.01) for a, b in rng.uniform(0, 1, (4, 2))
        )
        Image.fromarray((scene + bumps).clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        split = "train" if i < 20 else "test"
        rows.append({"patient": f"p{i}", "path": f"{i}.png", "split": split})
    assert not leaks(audit(rows, root=tmp_path))
    Image.open(tmp_path / "3.png").save(tmp_path / "3.jpg", quality=60)
    copy = {"patient": "new", "path": "3.jpg", "split": "test"}
    (found,) = leaks(audit([*rows, copy], root=tmp_path))
    assert found.rows == ("train:3.png", "test:3.jpg")


def test_two_manifests(cohort, rows, tmp_path):
    train = write(tmp_path / "mine.csv", [r for r in rows if r["split"] == "train"])
    assert not leaks(audit(train, root=cohort))
    source = of(rows, "train")
    other = [r for r in rows if r["split"] == "test"] + [source, {**source, "path": "none.png"}]
    other = write(tmp_path / "other.csv", other)
    found = kinds(leaks(audit(train, against=other, root=cohort)))
    assert set(found) == {"patient", "study", "file"}
    assert f"other:train:{source['path']}" in found["file"][0].rows
    assert found["patient"][0].patients == (source["patient"],)


# ---- what is spoilt ------------------------------------------------------------------------------


def test_unreadable_files_are_named_with_the_reason(cohort, rows):
    whole = (cohort / of(rows, "train")["path"]).read_bytes()
    (cohort / "cut.png").write_bytes(whole[: len(whole) // 2])
    both = planted(planted(rows, path="cut.png"), path="missing.png")
    (found,) = kinds(audit(both, root=cohort))["unreadable"]
    assert found.rows == ("test:cut.png", "test:missing.png") and found.count == 2
    assert "truncated" in found.examples[0] and "no such file" in found.examples[1]


@pytest.mark.parametrize("share", [0.05, 0.45])
def test_negatives_are_found_up_to_half(cohort, rows, share, tmp_path):
    frontal = [r for r in rows if r["view"] != "lateral" and r["path"].endswith((".png", ".jpg"))]
    odd = set(range(0, len(frontal), round(1 / share)))
    for i, row in enumerate(frontal):
        values = np.asarray(Image.open(cohort / row["path"])).astype(float)
        values = values / values.max()
        values = 1 - values if i in odd else values
        Image.fromarray((values * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    made = [{**r, "path": f"{i}.png"} for i, r in enumerate(frontal)]
    (found,) = kinds(audit(made, root=tmp_path))["inverted"]
    named = {int(Path(row.split(":")[1]).stem) for row in found.rows}
    assert named <= odd and len(named) >= 0.9 * len(odd)


def test_mirrored_films_are_no_negatives(tmp_path):
    """Left and right breasts fill opposite halves of the picture."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        values = rng.normal(20, 5, (48, 48))
        values[:, : 20 + i % 7] += 160
        values = values[:, ::-1] if i % 2 else values
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append({"patient": f"p{i}", "path": f"{i}.png"})
    assert "inverted" not in kinds(audit(rows, root=tmp_path))


def test_a_class_that_the_size_gives_away(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        sick = i % 2
        side = int(rng.integers(30, 40)) + (8 if sick else 0)
        values = rng.integers(0, 255, (32, side), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
        rows.append({"patient": f"p{i // 2 * 2 + sick}", "path": f"{i}.png", "label": "ab"[sick]})
    (found,) = kinds(audit(rows, root=tmp_path))["confounded"]
    assert "AUROC" in found.message and ("width" in found.message or "aspect" in found.message)
    shuffled = [{**r, "label": "ab"[int(rng.integers(2))]} for r in rows]
    assert "confounded" not in kinds(audit(shuffled, root=tmp_path))


# ---- texts and labels ----------------------------------------------------------------------------


def test_text_statistics_of_a_table_without_paths(tmp_path):
    """Of 8 texts 6 are different: a share of 3/8 has a twin, R@1 is at most 6/8."""
    texts = ["a b", "a  b", "c", "d", "e", "f", "a b", "g", ""]
    table = [{"uid": str(i), "impression": text} for i, text in enumerate(texts)]
    found = kinds(audit(write(tmp_path / "reports.csv", table)))
    (twins,), (blank,) = found["duplicate_text"], found["blank_text"]
    assert "8 texts, 6 different" in twins.message
    assert "37.5% share" in twins.message and "at most 75.0%" in twins.message
    assert twins.rows == ("all:0", "all:1", "all:6") and twins.examples == ("3 times: a b",)
    assert blank.rows == ("all:8",)


def test_findings_and_impression_are_read_apart_and_together():
    table = [{"findings": f, "impression": "same"} for f in ("one", "two", "two")]
    told = [f.message for f in kinds(audit(table))["duplicate_text"]]
    assert [m.split(":")[0] for m in told] == ["findings", "impression", "findings + impression"]
    assert "3 texts, 2 different" in told[2] and "3 texts, 1 different" in told[1]


def test_texts_in_two_splits_are_a_warning(cohort, rows):
    source = of(rows, "train")
    found = kinds(audit(planted(rows, path="x", report=source["report"]), images=False))
    (text,) = [f for f in found["text"] if "test:x" in f.rows]
    assert text.severity == "warning" and f"train:{source['path']}" in text.rows


def test_one_report_of_many_views_is_no_duplicate():
    table = [{"study": f"s{i // 2}", "report": f"text {i // 2}"} for i in range(6)]
    found = kinds(audit(table))
    assert "duplicate_text" not in found and "at most 50.0%" in found["study_text"][0].message


def test_classes_and_the_policy_are_told():
    table = [
        {"split": split, "Edema": cell}
        for split, cells in (("train", ["1", "0", "-1", ""]), ("test", ["0", "", "0", "-1"]))
        for cell in cells
    ]
    found = kinds(audit(table))
    assert [f.message for f in found["classes"]] == ["train: Edema 1 of 2", "test: Edema 0 of 2"]
    assert "1 uncertain (-1), 1 blank" in found["policy"][0].message
    assert found["class_missing"][0].splits == ("test",)


def test_a_missing_class_comes_with_its_remedy():
    rows = [("train", "often")] * 5 + [("validate", "often"), ("test", "often")]
    rows += [("train", "rare"), ("train", "rare"), ("train", "few"), ("train", "few")]
    rows += [("train", "rare")]
    table = [
        {"split": split, "class": kind, "patient": f"p{i // 2 if kind == 'few' else i}"}
        for i, (split, kind) in enumerate(rows)
    ]
    told = {f.splits[0]: f.message for f in kinds(audit(table))["class_missing"]}
    assert set(told) == {"validate", "test"}
    assert "has no sample of 2 classes: few, rare; patients" in told["validate"]
    assert "in all: few 2, rare 3; `vilmedic-ssl split CONFIG --out" in told["test"]
    assert "with fewer than 3, add some or leave the class out" in told["test"]


def test_unknown_patients_are_told(tmp_path):
    table = [{"path": f"person{i}_virus_{i}.jpeg"} for i in range(4)]
    (found,) = kinds(audit(table, images=False))["no_patients"]
    assert found.severity == "warning" and "Kaggle: fill a column `patient`" in found.message
    (found,) = kinds(audit([{"path": "a.png"}], images=False))["no_patients"]
    assert found.severity == "note"


@pytest.mark.parametrize("paired", [False, True])
def test_the_pattern_told_finds_the_patients_of_listed_images(tmp_path, paired, capsys):
    rng = np.random.default_rng(0)
    for i, split in enumerate(("train", "validate", "test")):
        name = f"images/p{i}/p{i}_s1.png"
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(tmp_path / name)
        (tmp_path / f"{split}.image.tok").write_text(f"{name}\n")
        (tmp_path / f"{split}.label.tok").write_text("a\n")
    at, proto = ("dataset.image", "ImLabel") if paired else ("dataset", "ImageDataset")
    image = f"root: {tmp_path}, file: image.tok, image_path: {tmp_path}"
    label = f"label: {{root: {tmp_path}, file: label.tok}}"
    data = f"image: {{{image}}}, {label}" if paired else image
    config = tmp_path / "tok.yml"
    model = "model: {proto: SimCLR, cnn: {proto: CNN, backbone: resnet18}}"
    config.write_text(f"dataset: {{proto: {proto}, {data}}}\n{model}\n")
    command = ["audit", str(config), "--out", str(tmp_path)]
    assert main(command) == 0
    assert f"write '{at}.patient_pattern=" in (printed := capsys.readouterr().out)
    told = printed.split("write '")[1].split("'")[0]
    assert main([*command, told]) == 0 and "patients are unknown" not in capsys.readouterr().out


def test_data_that_was_not_looked_at_is_told(cohort, rows, tmp_path, capsys):
    (found,) = kinds(audit([{"patient": "a", "path": "a.png"}], images=False))["no_splits"]
    assert found.severity == "warning" and "`split`" in found.message
    windows = [{**r, "path": r["path"].replace("/", "\\")} for r in rows]
    out = ["--out", str(tmp_path)]
    assert main(["audit", str(write(cohort / "windows.csv", windows)), *out]) == 2
    assert f"has backslashes, write '{rows[0]['path']}'" in capsys.readouterr().err
    (tmp_path / "semi.csv").write_text("path;patient\na.png;1\n")
    assert main(["audit", str(tmp_path / "semi.csv"), *out]) == 2
    assert "one column, 'path;patient': save it with commas" in capsys.readouterr().err


# ---- the verb, and what stops a run --------------------------------------------------------------


@pytest.mark.parametrize(
    "names, patient",
    [
        ("VIRUS-12-0003 NORMAL-123-0001 NORMAL-9-0001 NORMAL-123-0002", "NORMAL-123"),
        ("person12_virus_45 IM-0115-0001 IM-0009-0001 person12_bacteria_9", "person12"),
        ("NORMAL2-IM-0003-0001 IM-0003-0001 IM-0009-0001 NORMAL2-IM-0003-0002", "NORMAL2-IM-0003"),
    ],
)
def test_kermany_patients_across_folders(tmp_path, names, patient, capsys):
    from vilmedic_ssl.data.auditing.labels import STYLES

    rng = np.random.default_rng(0)
    homes = ("train/PNEUMONIA", "train/NORMAL", "val/NORMAL", "test/NORMAL")
    for home, name in zip(homes, names.split(), strict=True):
        file = tmp_path / "xray" / home / f"{name}.jpeg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(file)
    folder, out = str(tmp_path / "xray"), ["--out", str(tmp_path / "out")]
    assert main(["audit", folder, *out]) == 0
    printed = capsys.readouterr().out
    suggested = next(p for _, p in STYLES if f"dataset.patient_pattern={p}" in printed)
    assert main(["audit", folder, f"dataset.patient_pattern={suggested}", *out]) == 4
    assert f"1 patient in train and test: {patient} " in capsys.readouterr().err
    allow = "audit.allow=[patient]"
    assert main(["audit", folder, f"dataset.patient_pattern={suggested}", allow, *out]) == 0


class Closed(HTMLParser):
    """Complains about a tag that is not closed where it should be, and about scripts."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_verb_writes_json_and_a_page(cohort, rows, tmp_path, capsys):
    moved = planted(rows, path=of(rows, "train")["path"], patient="<b>new</b>")
    table = write(cohort / "moved.csv", moved)
    out = tmp_path / "out"
    assert main(["audit", str(table), "dataset.label=dominant", "--out", str(out)]) == 4
    printed = capsys.readouterr()
    assert "leak" in printed.out and "audit.allow=[file]" in printed.err
    assert printed.err.splitlines()[-1].startswith("error: ")
    found = json.loads((out / "audit.json").read_text())["findings"]
    assert found[0]["kind"] == "file" and found[0]["severity"] == "leak"
    page = (out / "audit.html").read_text()
    reader = Closed()
    reader.feed(page)
    assert not reader.open and "<b>new</b>" not in page and "&lt;b&gt;new&lt;/b&gt;" in page


def test_the_verb_on_two_configs_and_a_table(cohort, tiny, tmp_path, capsys):
    config, out = str(CONFIG), ["--out", str(tmp_path / "out")]
    both = ["--out", str(tmp_path / "both")]
    words = [word for word in tiny() if word.startswith("dataset.")]
    assert main(["audit", config, *words, *out]) == 0
    capsys.readouterr()
    assert main(["audit", config, *words, "--against", str(cohort / "manifest.csv"), *both]) == 4
    printed = capsys.readouterr()
    assert "in train and manifest:train" in printed.err and "vilmedic-ssl split" not in printed.err
    assert f"compared with {cohort / 'manifest.csv'}, " in printed.out


def test_a_refused_folder_is_told_what_to_write(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    for i, home in enumerate(("train/a", "train/b", "val/a", "val/b", "test/a", "test/b")):
        (tmp_path / "xray" / home).mkdir(parents=True)
        values = rng.integers(0, 255, (40, 48), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "xray" / home / f"p{i % 5}_.png")
    twin = Image.open(tmp_path / "xray/train/a/p0_.png")
    twin.point(lambda value: value // 2 + 60).save(tmp_path / "xray/test/a/p7_.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    words = ["audit", "xray"]
    assert main(words) == 4
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 100
    page = (tmp_path / "audit/audit.html").read_text()
    assert page.count("<figure>") == 1 and "1 leak" in page and "share" in page
    told = printed.err.split('out with "')[1].split('"')[0]
    assert main([*words, told]) == 0
    assert main([*words, r"dataset.patient_pattern=^(p\d+)_"]) == 4
    assert "vilmedic-ssl split config/SELFSUP/simclr-folder.yml dataset.root=xray" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "argv, words",
    [
        (["audit", "nothing.csv"], "there is no nothing.csv"),
        (["audit", "nothing"], "nothing that can be audited"),
        (["audit", "{table}", "dataset.lable=x"], "did you mean 'label'"),
        (["audit", "{table}", "dataset.label=x"], "no column 'x'"),
        (["audit", "{table}", "trainor.epochs=2"], "only keys of `dataset` and `audit`"),
        (["audit", "{table}", "audit.allow=[near]"], "near_duplicate"),
        (["audit", "{table}", "audit.allow=[text]"], "stops nothing anyway"),
        (["audit", "{table}", "audit.distance=40"], "from 0 to 16"),
    ],
)
def test_mistakes_end_in_one_sentence(argv, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = write(tmp_path / "t.csv", [{"report": "a", "split": "train"}])
    assert main([word.format(table=table) for word in argv]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def leaky(cohort, rows, tiny):
    """Overrides of a training whose test split holds a film of train."""
    moved = planted(rows, path="again.png", dominant="No Finding", report="")
    shutil.copy(cohort / of(rows, "train")["path"], cohort / "again.png")
    table = write(cohort / "leaky.csv", moved)
    return [*tiny(), f"dataset.manifest={table}"]


def test_a_leak_stops_training_and_scoring(leaky, tiny, tmp_path, capsys):
    run = tmp_path / "ckpt/tiny"
    assert main(["train", str(CONFIG), *tiny()]) == 0
    found = json.loads((run / "audit.json").read_text())["findings"]
    err = capsys.readouterr().err
    assert "note" in [f["severity"] for f in found] and "audit, classes" not in err
    assert f"({run / 'audit.json'})" in err and err.count("audit, text:") <= 1
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.iterdir()}
    assert main(["train", str(CONFIG), *leaky, "overwrite=true"]) == 4
    err = capsys.readouterr().err
    assert "error: file:" in err and "again.png" in err and "audit.allow=[file]" in err
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.iterdir() if p in before}
    assert after == before and (run / "audit_refused.json").is_file()
    probe = ["ensemblor.post_processing=[]", "ensemblor.splits=[test]"]
    probe += ["ensemblor.name=probe", "overwrite=true"]
    assert main(["ensemble", str(CONFIG), *leaky, *probe]) == 4
    assert not (run / "report.html").exists()
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in before} == before
    place = run / "evaluations/probe"
    assert not (place / "report.html").exists() and (place / "audit.json").is_file()
    for way in ("audit.allow=[file]", "audit=null"):
        assert main(["ensemble", str(CONFIG), *leaky, *probe, way]) == 0
        assert ("(allowed)" in (place / "report.html").read_text()) == (way != "audit=null")


def test_an_allowed_leak_is_a_warning_and_training_goes_on(leaky, capsys, tmp_path):
    assert main(["train", str(CONFIG), *leaky, "audit.allow=[file]"]) == 0
    assert "warning: audit, file:" in capsys.readouterr().err
    found = json.loads((tmp_path / "ckpt/tiny/audit.json").read_text())["findings"]
    assert [f["severity"] for f in found if f["kind"] == "file"] == ["warning"]


def test_another_spelling_of_a_split_is_not_another_split(tmp_path):
    from vilmedic_ssl.experiment.audit_verb import _folder

    rng = np.random.default_rng(0)
    for i, split in enumerate(["train"] * 3 + ["val"] * 2 + ["train_small"]):
        (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / split / "a" / f"{i}.png")
    names = [part.name for part in _folder(tmp_path, {}, 0, "")]
    assert names == ["train", "validate", "train_small"]


def test_unknown_kinds_are_refused_with_the_closest():
    with pytest.raises(ConfigError, match="did you mean 'patient'"):
        load_config(CONFIG, ["audit.allow=[patients]"])


def test_a_refusal_names_every_kind_to_allow():
    from vilmedic_ssl.errors import Leak

    found = [finding("study", "s"), finding("patient", "p"), finding("text", "t")]
    with pytest.raises(Leak, match=r"audit\.allow=\[study, patient\]"):
        refuse(found)
    refuse(allowed(found, ["study", "patient"]))


# ---- facts and their memo ------------------------------------------------------------------------


def test_facts_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    from vilmedic_ssl.data import facts

    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(path)
    first, hashes = dict(facts_of(paths)), content_hashes(paths)
    read = []
    monkeypatch.setattr(facts, "read_facts", lambda p: read.append(p) or facts.Facts(error="x"))
    monkeypatch.setattr(facts, "digest_of", lambda p: read.append(p) or "x")
    assert dict(facts_of(paths)) == first and content_hashes(paths) == hashes and not read
    Image.fromarray(np.full((9, 8), 10, np.uint8)).save(paths[1])
    assert dict(facts_of(paths))[1].error == "x" and read == [paths[1]]


def test_the_memo_survives_garbage_and_its_absence(tmp_path, monkeypatch):
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    expected = dict(facts_of([path]))
    for damage in (b"", b"no database" * 99):
        (cache_folder() / FILE).write_bytes(damage)
        assert dict(facts_of([path])) == expected and dict(facts_of([path])) == expected
    with sqlite3.connect(cache_folder() / FILE) as memo:
        assert memo.execute("SELECT count(*) FROM facts").fetchone() == (1,)
    whole = (cache_folder() / FILE).read_bytes()
    (cache_folder() / FILE).write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert dict(facts_of([path])) == expected
    (tmp_path / "a file").touch()
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "a file" / "cache"))
    assert dict(facts_of([path])) == expected and len(content_hashes([path])[0]) == 64


def test_hashes_of_missing_files_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match="there is no such image"):
        content_hashes([tmp_path / "none.png"])


@pytest.mark.skipif(sys.platform == "win32", reason="workers are forked")
def test_workers_change_nothing(cohort, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path))
    alone = audit(rows, root=cohort)
    (tmp_path / FILE).unlink()
    assert audit(rows, root=cohort, workers=2) == alone == audit(rows, root=cohort)


def test_pictures_without_files_are_audited(tmp_path):
    from vilmedic_ssl.data.auditing import audit_parts
    from vilmedic_ssl.data.auditing.parts import from_dataset
    from vilmedic_ssl.data.datasets.base import ImageRecords
    from vilmedic_ssl.data.images import ImageArray
    from vilmedic_ssl.data.transforms import Transform

    def split(name: str, array: np.ndarray) -> ImageRecords:
        made = ImageRecords()
        made.split, made.ids = name, [f"{name}-{i}" for i in range(len(array))]
        made.files = ImageArray(array, Transform(), augment=False, content=name)
        return made

    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 255, (20, 28, 28, 3), dtype=np.uint8) for _ in range(2))
    test[4] = train[7]
    parts = [from_dataset(split("train", train)), from_dataset(split("test", test))]
    (found,) = leaks(audit_parts(parts))
    assert found.kind == "pixels" and found.rows == ("train:train-7", "test:test-4")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(8, 70), st.integers(8, 70))
def test_facts_agree_for_any_way_to_store_a_picture(seed, height, width):
    values = np.random.default_rng(seed).integers(0, 256, (height, width))
    grey = measure((values / 255).astype(np.float32))
    deep = measure((values * 257 / 65535).astype(np.float32))
    colour = measure(np.repeat((values / 255).astype(np.float32)[..., None], 3, axis=2))
    assert grey == deep == colour and (grey.width, grey.height) == (width, height)
    assert measure(1 - (values / 255).astype(np.float32)).pixels != grey.pixels


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 3), st.floats(-50, 50))
def test_the_difference_hash_knows_no_brightness_or_contrast(seed, gain, offset):
    values = np.random.default_rng(seed).normal(100, 30, (1, 1024)).astype(np.float32)
    assert difference_bits(values).shape == (1, 64)
    assert np.mean(difference_bits(values) != difference_bits(gain * values + offset)) < 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["train", "test", ""]))))
def test_patients_are_found_exactly_where_they_cross(cells):
    table = [{"patient": p, "split": s} for p, s in cells]
    if not table:
        with pytest.raises(UserError, match="no rows"):
            audit(table)
        return
    homes: dict[str, set] = {}
    for patient, split in cells:
        homes.setdefault(patient, set()).add(split)
    crossing = {p for p, found in homes.items() if len(found) > 1}
    named = {p for f in audit(table) if f.kind == "patient" for p in f.patients}
    assert named == crossing
    assert sum(map(len, from_table(table, Path()))) == len(table)


def test_every_kind_has_a_severity_and_words():
    assert {s for s, _ in KINDS.values()} == {"leak", "warning", "note"}
    assert all(words and not words.endswith(".") for _, words in KINDS.values())
