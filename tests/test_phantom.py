"""The built-in cohort: reproducible, true to itself, and without a shortcut from file to label."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilmedic_ssl.data.phantom import (
    DOMINANT,
    DRAWN,
    SPLITS,
    VERSION,
    make_phantom,
    plan_patient,
)
from vilmedic_ssl.data.phantom_draw import SIGN, Anatomy, Finding, draw_film
from vilmedic_ssl.data.phantom_text import LABELS, NOUNS, OPACITIES, grade, zone
from vilmedic_ssl.errors import UserError

PATIENTS, SIZE = 80, 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(
        tmp_path_factory.mktemp("phantom") / "a cohort", patients=PATIENTS, size=SIZE
    )


@pytest.fixture(scope="module")
def manifest(root: Path) -> list[dict[str, str]]:
    return table(root / "manifest.csv")


@pytest.fixture(scope="module")
def truth(root: Path) -> list[dict[str, str]]:
    return table(root / "truth.csv")


@pytest.fixture(scope="module")
def boxes(root: Path) -> list[dict[str, str]]:
    return table(root / "boxes.csv")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def hashes(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def sentences(report: str) -> list[str]:
    """Sentences of both sections, lower case; decimals and list numbers end no sentence."""
    body = re.split(r"FINDINGS:|IMPRESSION:", report)[1:]
    text = re.sub(r"\b\d\. (?=[A-Z0-9])", "", " ".join(body))
    return [s.strip().lower() for s in re.split(r"\.(?=\s|$)", text) if s.strip()]


def stance(report: str, noun: str) -> int | None:
    """What a report says of a noun: 1, 0, -1, or None where it is silent."""
    said = set()
    for sentence in sentences(report):
        if not re.search(rf"\b{noun}\b", sentence):
            continue
        if re.match(r"(no|there is no|no evidence of)\b", sentence):
            said.add(0)
        elif re.search(r"\b(possible|may|cannot be excluded)\b", sentence):
            said.add(-1)
        else:
            said.add(1)
    assert len(said) <= 1, f"contradiction about {noun}: {report}"
    return said.pop() if said else None


# ---- files ---------------------------------------------------------------------------------------


def test_two_builds_are_equal_to_the_byte(tmp_path: Path) -> None:
    one = make_phantom(tmp_path / "one", patients=12, size=SIZE)
    two = make_phantom(tmp_path / "two", patients=12, size=SIZE)
    assert hashes(one) == hashes(two)
    assert hashes(one) != hashes(make_phantom(tmp_path / "other", patients=12, size=SIZE, seed=1))


def test_larger_cohort_begins_with_the_smaller(root: Path, tmp_path: Path) -> None:
    few = make_phantom(tmp_path / "few", patients=7, size=SIZE)
    for name in ("manifest.csv", "truth.csv", "boxes.csv"):
        assert (root / name).read_text().startswith((few / name).read_text())
    small, large = hashes(few), hashes(root)
    assert all(large[k] == v for k, v in small.items() if k.startswith(("images", "masks")))


def test_existing_cohort_is_kept_and_another_replaced(tmp_path: Path) -> None:
    place = make_phantom(tmp_path / "c", patients=2, size=SIZE)
    before = (place / "manifest.csv").stat().st_mtime_ns
    assert (
        make_phantom(place, patients=2, size=SIZE) / "manifest.csv"
    ).stat().st_mtime_ns == before
    make_phantom(place, patients=3, size=SIZE)
    stamp = json.loads((place / "phantom.json").read_text())
    assert stamp == {"version": VERSION, "patients": 3, "size": SIZE, "seed": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["c"], "no scratch folder stays behind"


def test_wrong_inputs_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not a built-in cohort"):
        make_phantom(tmp_path, patients=2)
    assert (tmp_path / "mine.txt").exists()
    with pytest.raises(UserError, match="patients >= 1"):
        make_phantom(tmp_path / "x", patients=0)


def test_all_formats_decode_to_the_same_kind_of_film(
    root: Path, truth: list[dict[str, str]]
) -> None:
    pydicom = pytest.importorskip("pydicom")
    means = defaultdict(list)
    for row in truth:
        path = root / row["path"]
        assert path.suffix == f".{row['format']}"
        if row["format"] == "dcm":
            data = pydicom.dcmread(path)
            assert (data.PhotometricInterpretation, data.BitsStored) == ("MONOCHROME1", 12)
            assert (
                data.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1" and not data.PatientName
            )
            film = 1 - data.pixel_array / 4095
        else:
            image = Image.open(path)
            assert image.mode == {"png": "I;16", "jpg": "L"}[row["format"]]
            film = np.asarray(image) / (65535 if row["format"] == "png" else 255)
        assert film.shape == (SIZE, SIZE)
        means[row["format"]].append(film.mean())
    assert set(means) == {"png", "jpg", "dcm"}
    spread = [np.mean(m) for m in means.values()]
    assert max(spread) - min(spread) < 0.1


def test_splits_are_by_patient(manifest: list[dict[str, str]]) -> None:
    owner: dict[str, set[str]] = defaultdict(set)
    for row in manifest:
        owner[row["patient"]].add(row["split"])
    assert all(len(s) == 1 for s in owner.values())
    counts = [sum(s == {name} for s in owner.values()) for name in SPLITS]
    assert counts == [PATIENTS * 7 // 10, PATIENTS // 10, PATIENTS * 2 // 10]


def test_tok_files_follow_the_tables(
    root: Path, manifest: list[dict[str, str]], truth: list[dict[str, str]]
) -> None:
    for split in SPLITS:
        pairs = [(m, t) for m, t in zip(manifest, truth, strict=True) if m["split"] == split]
        assert lines(root / f"{split}.image.tok") == [m["path"] for m, _ in pairs]
        assert lines(root / f"{split}.report.tok") == [m["report"] for m, _ in pairs]
        assert lines(root / f"{split}.dominant.tok") == [m["dominant"] for m, _ in pairs]
        for line, (m, t) in zip(lines(root / f"{split}.label.tok"), pairs, strict=True):
            there = {n for n in DRAWN if t[n] == "1"} | (
                {"Support Devices"} if t["device"] else set()
            )
            assert set(line.split(",")) - {"No Finding", "Lung Opacity"} == there
            assert ("Lung Opacity" in line) == bool(there & set(OPACITIES))
            assert set(line.split(",")) <= set(LABELS)
            assert ("No Finding" in line) == (m["dominant"] == "No Finding")
        assert all((root / m["path"]).is_file() for m, _ in pairs)


# ---- report, labels and picture agree ------------------------------------------------------------


def test_labels_can_be_read_from_the_report(manifest: list[dict[str, str]]) -> None:
    values = set()
    for row in manifest:
        assert (
            "FINDINGS:" in row["report"]
            and "IMPRESSION:" in row["report"]
            and "\n" not in row["report"]
        )
        for name, noun in NOUNS.items():
            if name == "Cardiomegaly" and row[name] == "0":
                assert re.search(
                    "Heart size is normal|heart is not enlarged|No cardiomegaly", row["report"]
                )
                continue
            said = stance(row["report"], noun)
            assert row[name] == ("" if said is None else str(said)), (name, row["report"])
            values.add(row[name])
    assert values == {"1", "0", "-1", ""}


def test_labels_are_true_of_the_picture(
    manifest: list[dict[str, str]], truth: list[dict[str, str]]
) -> None:
    for row, fact in zip(manifest, truth, strict=True):
        assert row["path"] == fact["path"] and row["dominant"] == fact["dominant"]
        for name in DRAWN:
            assert row[name] != "1" or fact[name] == "1"
            assert row[name] != "0" or fact[name] == "0"
        assert (row["Support Devices"] == "1") == bool(fact["device"])
        assert not fact["device"] or fact["device"] in row["report"].lower()
        if row["No Finding"] == "1":
            assert row["dominant"] == "No Finding" and not any(row[n] in ("1", "-1") for n in DRAWN)
        if row["Lung Opacity"] == "0":
            assert fact["Consolidation"] == fact["Atelectasis"] == "0"


def test_sides_grades_and_centimetres_are_true(
    manifest: list[dict[str, str]], boxes: list[dict[str, str]]
) -> None:
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for box in boxes:
        found[box["path"]].append(box)
    checked = 0
    for row in manifest:
        facts = [b for b in found[row["path"]] if row[b["finding"]] == "1"]
        for name in {b["finding"] for b in facts} - {"Cardiomegaly"}:
            about = [s for s in sentences(row["report"]) if NOUNS[name] in s]
            sides = {side for s in about for side in SIGN if f"{side} " in s}
            assert sides == {b["side"] for b in facts if b["finding"] == name}, row["report"]
        for box in facts:
            made = Finding(box["finding"], box["side"], float(box["severity"]))
            word = (
                f"{float(box['size_mm']) / 10:.1f} cm"
                if made.name == "Lung Lesion"
                else grade(made)
            )
            assert any(
                word in s and NOUNS[made.name] in s and box["side"] in s
                for s in sentences(row["report"])
            )
            checked += 1
    assert checked > 100


def test_zone_names_the_third_of_the_lung() -> None:
    assert [zone(Finding("Lung Lesion", "left", 0.5, y=y)) for y in (-0.5, 0.0, 0.3)] == [
        "upper",
        "mid",
        "lower",
    ]


def test_trends_compare_with_the_previous_study() -> None:
    seen = set()
    for index in range(300):
        rng = np.random.default_rng([3, index])
        before: tuple[Finding, ...] = ()
        for study in plan_patient("p", Anatomy.draw(rng), rng):
            old = {(f.name, f.side): f.severity for f in before}
            for trend in re.findall(r"(\w+) since the prior study", study.report):
                steps = [f.severity - old.get((f.name, f.side), 9.0) for f in study.findings]
                word = {"increased": 0.1, "unchanged": 0.0, "decreased": -0.1}[trend]
                assert any(abs(s) < 0.1 if word == 0 else s / word >= 1 for s in steps)
                seen.add(trend)
            before = study.findings
    assert seen == {"increased", "decreased", "unchanged"}


def test_boxes_frame_their_masks(
    root: Path, manifest: list[dict[str, str]], boxes: list[dict[str, str]]
) -> None:
    positives: dict[str, set[str]] = defaultdict(set)
    for box in boxes:
        ys, xs = np.nonzero(np.asarray(Image.open(root / box["mask"])))
        edge = [int(box[k]) for k in ("x0", "y0", "x1", "y1")]
        assert edge == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        positives[box["path"]].add(box["finding"])
    for row in manifest:
        assert all(name in positives[row["path"]] for name in DRAWN if row[name] == "1")
    assert len(list((root / "masks").rglob("*.png"))) == len(boxes)


@pytest.mark.parametrize("name", [n for n in DRAWN if n != "Cardiomegaly"])
@pytest.mark.parametrize("side", list(SIGN))
def test_left_of_the_patient_is_right_on_the_film(name: str, side: str) -> None:
    size = {"Lung Lesion": 30.0, "Pneumothorax": 40.0}.get(name, 80.0)
    finding = Finding(name, side, 0.5, t=0.42, y=0.1, size_mm=size)
    for draw in range(5):
        rng = np.random.default_rng(draw)
        film, (mask,) = draw_film(
            Anatomy.draw(rng), [finding], view="PA", device="", size=SIZE, rng=rng
        )
        middle = np.nonzero(mask)[1].mean() + 0.5 - SIZE / 2
        assert (middle > 0) == (side == "left")
        assert film.dtype == np.float32 and film.min() >= 0 and film.max() <= 1


# ---- no shortcuts --------------------------------------------------------------------------------


def test_raw_pixels_of_the_nearest_film_are_a_poor_guide() -> None:
    """The nearest film of another patient has the same dominant finding less than half the time."""
    pixels, names, owners = [], [], []
    for index in range(150):
        rng = np.random.default_rng([0, index])
        anatomy = Anatomy.draw(rng)
        for study in plan_patient("p", anatomy, rng):
            film, _ = draw_film(
                anatomy, study.findings, view="PA", device=study.device, size=64, rng=rng
            )
            pixels.append(film.reshape(32, 2, 32, 2).mean((1, 3)).ravel())
            names.append(study.dominant)
            owners.append(index)
    x = np.stack(pixels) - np.mean(pixels, axis=0)
    similar = (x @ x.T) / np.linalg.norm(x, axis=1)[None]
    similar[np.equal.outer(owners, owners)] = -np.inf
    hits = [names[i] == names[j] for i, j in enumerate(similar.argmax(1))]
    assert np.mean(hits) < 0.5


def test_format_and_path_tell_no_finding(truth: list[dict[str, str]]) -> None:
    """A film's format says as little about its findings as shuffled labels do."""
    formats = [r["format"] for r in truth]
    for name in (*DRAWN, "dominant", "device"):
        column = [r[name] for r in truth]
        assert association(formats, column) < highest_by_chance(formats, column), name
    assert all(
        re.fullmatch(r"images/(p\d+)/(s\d)/\1_\2_\d\.(png|jpg|dcm)", r["path"]) for r in truth
    )


def test_number_of_bytes_tells_no_finding(root: Path, truth: list[dict[str, str]]) -> None:
    """Within each compressed format the file size does not rank the classes: AUROC near 1/2."""
    for kind in ("png", "jpg"):
        rows = [r for r in truth if r["format"] == kind]
        rank = np.argsort(np.argsort([(root / r["path"]).stat().st_size for r in rows]))
        for name in DOMINANT:
            has = np.array([r["dominant"] == name for r in rows])
            if min(has.sum(), (~has).sum()) < 10:
                continue
            above = rank[has].sum() - has.sum() * (has.sum() - 1) / 2
            assert 0.25 < above / (has.sum() * (~has).sum()) < 0.75, (kind, name)


def test_devices_are_independent_of_findings() -> None:
    """On 1500 planned patients, first study only so that rows are independent."""
    devices, dominants = [], []
    for index in range(1500):
        rng = np.random.default_rng([7, index])
        study = next(plan_patient("p", Anatomy.draw(rng), rng))
        devices.append(study.device)
        dominants.append(study.dominant)
    assert association(devices, dominants) < highest_by_chance(devices, dominants)
    share = [dominants.count(name) / len(dominants) for name in DOMINANT]
    assert max(share) < 0.2 and min(share) > 0.13


def association(a: list[str], b: list[str]) -> float:
    """Pearson's chi-square of two columns."""
    _, i = np.unique(a, return_inverse=True)
    _, j = np.unique(b, return_inverse=True)
    seen = np.zeros((i.max() + 1, j.max() + 1))
    np.add.at(seen, (i, j), 1)
    expected = seen.sum(1, keepdims=True) * seen.sum(0, keepdims=True) / seen.sum()
    return float(((seen - expected) ** 2 / expected).sum())


def highest_by_chance(a: list[str], b: list[str]) -> float:
    """The largest association among 300 shuffles."""
    rng = np.random.default_rng(0)
    _, j = np.unique(b, return_inverse=True)
    return max(association(a, list(rng.permutation(j))) for _ in range(300))
