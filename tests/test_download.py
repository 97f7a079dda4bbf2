"""Recipes: nothing unsafe, nothing half done; the real archives only in tests marked slow."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilmedic_ssl.data import download as module
from vilmedic_ssl.data.archive import read_members
from vilmedic_ssl.data.download import RECIPES, STAMP, Recipe, download, listing, sha256_of
from vilmedic_ssl.data.nifti import read_nifti
from vilmedic_ssl.data.recipes import elpv
from vilmedic_ssl.data.recipes.brain_mr import GAP, SHARES, slabs
from vilmedic_ssl.data.recipes.brain_regions import ENGLISH, LABELS, Region, region, sentence
from vilmedic_ssl.errors import UserError

LINK = 0o120777 << 16


def zip_of(path: Path, members: dict[str, bytes], attributes: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes
            info.compress_type = zipfile.ZIP_DEFLATED
            pack.writestr(info, content)
    return path


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose archive already lies in the cache of root `tmp_path / "data"`."""
    cache = tmp_path / "data/.cache"
    cache.mkdir(parents=True)
    archive = zip_of(cache / "toy.whl", {"toy/a.png": b"a", "toy/b.png": b"b"})

    def build(archive: Path, folder: Path) -> tuple[int, str]:
        (folder / "images").mkdir()
        for name, content in read_members(archive, under="toy/"):
            (folder / "images" / Path(name).name).write_bytes(content)
        return 2, "a toy"

    recipe = Recipe(
        name="toy",
        size="1 kB",
        licence="none",
        source="here",
        about="a toy",
        build=build,
        package="toy==1",
        archive="toy.whl",
        sha256=sha256_of(archive),
    )
    monkeypatch.setitem(RECIPES, "toy", recipe)
    return recipe


def no_pip(monkeypatch: pytest.MonkeyPatch, stderr: str = "", bring: bytes | None = None) -> None:
    """pip is not run: it fails with `stderr`, or brings a file holding `bring`."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = next(w.removeprefix("--dest=") for w in command if w.startswith("--dest="))
        if bring is not None:
            (Path(folder) / "toy.whl").write_bytes(bring)
        return subprocess.CompletedProcess(command, int(bring is None), "", stderr)

    monkeypatch.setattr(module.subprocess, "run", run)


def test_complete_then_already_there(toy: Recipe, tmp_path: Path, monkeypatch) -> None:
    no_pip(monkeypatch, "pip must not be called: the archive is in the cache")
    root = tmp_path / "data"
    assert download("toy", root=root) == [root / "toy"]
    stamp = json.loads((root / "toy" / STAMP).read_text())
    assert stamp == {"recipe": 1, "sha256": toy.sha256, "images": 2}
    card = (root / "toy/README.txt").read_text()
    assert toy.sha256 in card and "Licence" in card
    assert not (root / ".toy.partial").exists()
    before = (root / "toy").stat().st_mtime_ns
    assert download(["toy", "toy"], root=root) == [root / "toy"]
    assert (root / "toy").stat().st_mtime_ns == before


def test_interrupted_build_is_not_taken_as_finished(
    toy: Recipe, tmp_path: Path, monkeypatch
) -> None:
    root = tmp_path / "data"

    def stop(archive: Path, folder: Path) -> tuple[int, str]:
        (folder / "images").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setitem(RECIPES, "toy", replace(toy, build=stop))
    with pytest.raises(KeyboardInterrupt):
        download("toy", root=root)
    assert not (root / "toy").exists()
    monkeypatch.setitem(RECIPES, "toy", toy)
    download("toy", root=root)
    assert len(list((root / "toy/images").iterdir())) == 2


def test_a_folder_in_the_way_is_kept(toy: Recipe, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "data"
    (root / "toy").mkdir()
    (root / "toy/mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not a complete data set"):
        download("toy", root=root)
    assert (root / "toy/mine.txt").read_text() == "precious"
    (root / "toy/mine.txt").unlink()
    (root / "toy").rmdir()
    download("toy", root=root)
    next((root / "toy/images").iterdir()).unlink()  # an image was lost
    with pytest.raises(UserError, match="not a complete data set"):
        download("toy", root=root)
    monkeypatch.setitem(RECIPES, "toy", replace(toy, version=2))
    with pytest.raises(UserError, match="version 2"):
        download("toy", root=root)


def test_wrong_hash_is_refused_and_thrown_away(toy: Recipe, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "data"
    (root / ".cache/toy.whl").write_bytes(b"half an arch")  # a broken cache entry is fetched again
    no_pip(monkeypatch, bring=b"something else")
    with pytest.raises(UserError, match="expected " + toy.sha256):
        download("toy", root=root)
    assert not (root / "toy").exists()
    assert [p.name for p in (root / ".cache").iterdir()] == ["toy.whl"]
    assert (root / ".cache/toy.whl").read_bytes() == b"half an arch"


def test_failing_pip_is_one_sentence(toy: Recipe, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data/.cache/toy.whl").unlink()
    no_pip(monkeypatch, "WARNING: retry\nERROR: No matching distribution found for toy==1\n")
    with pytest.raises(UserError) as caught:
        download("toy", root=tmp_path / "data")
    assert "(No matching distribution found for toy==1)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_before_anything_is_fetched(toy: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'brain-mr'"):
        download("toy,brain_mr", root=tmp_path / "data")
    assert not (tmp_path / "data/toy").exists()


def test_listing_shows_every_recipe() -> None:
    text = listing()
    for recipe in RECIPES.values():
        assert recipe.name in text and recipe.licence in text and recipe.size in text
        assert not recipe.package or ("==" in recipe.package and len(recipe.sha256) == 64)


# Archives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../out.png", "/etc/out", "a/../../out", "a\\..\\out", "C:/out"])
def test_members_that_leave_are_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    with pytest.raises(UserError, match="unsafe or damaged"):
        list(read_members(path))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as pack:
        info = tarfile.TarInfo(name)
        info.size = 1
        pack.addfile(info, io.BytesIO(b"2"))
    with pytest.raises(UserError, match="unsafe or damaged"):
        list(read_members(tmp_path / "a.tar.gz"))


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="link"):
        list(read_members(zip_of(tmp_path / "a.zip", {"x": b"/etc/passwd"}, LINK)))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as pack:
            info = tarfile.TarInfo("x")
            info.type, info.linkname = kind, "/etc/passwd"
            pack.addfile(info)
        with pytest.raises(UserError, match="link"):
            list(read_members(tmp_path / "a.tar"))


def test_bombs_and_damage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="grows"):
        list(read_members(zip_of(tmp_path / "a.zip", {"x": bytes(2**22)})))
    path = zip_of(tmp_path / "b.zip", {"x": np.random.default_rng(0).bytes(5000)})
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 255
    path.write_bytes(bytes(raw))
    with pytest.raises(UserError, match="damaged"):
        list(read_members(path))
    (tmp_path / "c.zip").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        list(read_members(tmp_path / "c.zip"))


def test_members_of_zip_and_tar(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"a/": b"", "a/x": b"1", "b/y": b"2"})
    assert list(read_members(path, under="a/")) == [("a/x", b"1")]
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as pack:
        pack.add(path, "a/x.zip")
    assert list(read_members(tmp_path / "a.tgz")) == [("a/x.zip", path.read_bytes())]


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
    splits = elpv.stratified(strata)
    assert splits == elpv.stratified(strata)
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
