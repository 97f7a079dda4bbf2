"""Recipes: nothing unsafe, nothing half done."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import LINK, zip_of
from conftest import REPOSITORY
from server import Answers, serving

from vilmedic_ssl.cli import main
from vilmedic_ssl.data import archive as archives
from vilmedic_ssl.data.archive import read_members
from vilmedic_ssl.data.download import RECIPES, download, listing
from vilmedic_ssl.data.fetching import packages
from vilmedic_ssl.data.fetching.packages import Package, Pip
from vilmedic_ssl.data.paths import digest_of
from vilmedic_ssl.data.recipes.base import STAMP, Built
from vilmedic_ssl.data.recipes.elsewhere import ELSEWHERE
from vilmedic_ssl.data.recipes.medmnist import SETS, SIZES, VOLUMES
from vilmedic_ssl.errors import UserError


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    """A recipe whose archive already lies in the cache of root `tmp_path / "data"`."""
    cache = tmp_path / "data/.cache"
    cache.mkdir(parents=True)
    archive = zip_of(cache / "toy.whl", {"toy/a.png": b"a", "toy/b.png": b"b"})

    def build(archive: Path, folder: Path) -> tuple[int, str]:
        (folder / "images").mkdir()
        for name, content in read_members(archive, under="toy/"):
            (folder / "images" / Path(name).name).write_bytes(content)
        return 2, "a toy"

    recipe = Built(
        name="toy",
        size="1 kB",
        licence="none",
        source="here",
        about="a toy",
        build=build,
        sources=(Pip(spec="toy==1", archive="toy.whl", sha256=digest_of(archive)),),
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

    monkeypatch.setattr(packages.subprocess, "run", run)


def test_complete_then_already_there(toy: Built, tmp_path: Path, monkeypatch) -> None:
    no_pip(monkeypatch, "pip must not be called: the archive is in the cache")
    root = tmp_path / "data"
    assert download("toy", root=root) == [root / "toy"]
    stamp = json.loads((root / "toy" / STAMP).read_text())
    assert stamp == {"recipe": 1, "sha256": toy.sources[0].sha256, "images": 2}
    card = (root / "toy/README.txt").read_text()
    assert toy.sources[0].sha256 in card and "Licence" in card
    assert not (root / ".toy.partial").exists()
    before = (root / "toy").stat().st_mtime_ns
    assert download(["toy", "toy"], root=root) == [root / "toy"]
    assert (root / "toy").stat().st_mtime_ns == before


def test_interrupted_build_is_not_taken_as_finished(
    toy: Built, tmp_path: Path, monkeypatch
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


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_at_once_make_it_once(toy: Built, tmp_path: Path, capsys) -> None:
    root, built = tmp_path / "data", []
    begun, go_on = threading.Event(), threading.Event()

    def build(archive: Path, folder: Path) -> tuple[int, str]:
        built.append(folder)
        begun.set()
        assert go_on.wait(20)
        return toy.build(archive, folder)

    slow = replace(toy, build=build)
    first, second = (threading.Thread(target=slow.make, args=(root,)) for _ in range(2))
    first.start()
    assert begun.wait(20)
    second.start()
    second.join(0.5)
    assert second.is_alive()  # it waits
    go_on.set()
    first.join(20)
    second.join(20)
    assert len(built) == 1 and toy.is_complete(root / "toy")
    told = capsys.readouterr().err
    assert told.count("another process is making toy; waiting") == 1
    assert told.index("waiting") < told.index("2 images in") < told.index("already there")
    assert sorted(path.name for path in root.iterdir()) == [".cache", "toy"]


def test_a_folder_in_the_way_is_kept(toy: Built, tmp_path: Path, monkeypatch) -> None:
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


def test_wrong_hash_is_refused_and_thrown_away(toy: Built, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "data"
    (root / ".cache/toy.whl").write_bytes(b"half an arch")  # a broken cache entry is fetched again
    no_pip(monkeypatch, bring=b"something else")
    with pytest.raises(UserError, match="expected sha256 " + toy.sources[0].sha256):
        download("toy", root=root)
    assert not (root / "toy").exists()
    assert [p.name for p in (root / ".cache").iterdir()] == ["toy.whl"]
    assert (root / ".cache/toy.whl").read_bytes() == b"half an arch"


def test_failing_pip_is_one_sentence(toy: Built, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data/.cache/toy.whl").unlink()
    no_pip(monkeypatch, "WARNING: retry\nERROR: No matching distribution found for toy==1\n")
    with pytest.raises(UserError) as caught:
        download("toy", root=tmp_path / "data")
    assert "(No matching distribution found for toy==1)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_before_anything_is_fetched(toy: Built, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'brain-mr'"):
        download("toy,brain_mr", root=tmp_path / "data")
    assert not (tmp_path / "data/toy").exists()


def test_listing_shows_every_recipe() -> None:
    text = listing()
    assert len(text.splitlines()) < 20  # one line for the 48 files of MedMNIST
    for recipe in RECIPES.values():
        assert (recipe.listed or recipe.name) in text
        if isinstance(recipe, Built):
            assert recipe.licence in text and recipe.size in text
            for source in recipe.sources:
                assert not isinstance(source, Package) or len(source.sha256) == 64


# Names that are not fetched, and MedMNIST -------------------------------------------------------


@pytest.mark.parametrize("recipe", ELSEWHERE, ids=lambda r: r.name)
def test_data_with_an_agreement(recipe, tmp_path: Path, capsys) -> None:
    """How to get it and where it goes, exit code 2; once it is there, ready and 0."""
    root = tmp_path / "data"
    assert main(["download", recipe.name, f"--root={root}"]) == 2
    told = capsys.readouterr().err
    for word in (recipe.name, "https://", "data/", "{train" if "tok" in recipe.layout else "files"):
        assert word in told
    config = next(word for word in recipe.then if word.endswith(".yml"))
    assert (REPOSITORY / config).is_file()
    folder = recipe.folder(root)
    for n, pattern in enumerate(recipe.needs):
        path = folder / pattern.replace("*", "p10")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        if n == 0 and len(recipe.needs) > 1:
            assert main(["download", recipe.name, f"--root={root}"]) == 2
            assert f"incomplete: {recipe.needs[1]}" in capsys.readouterr().err
    assert main(["download", recipe.name, f"--root={root}"]) == 0
    told = capsys.readouterr()
    assert f"ready in {folder}" in told.err and told.out.strip() == str(folder)
    assert {"mimic-cxr-images-512", "SELFSUP", "CLIP", "padchest-images-512"} <= set(RECIPES)


def test_every_name_is_tried(toy: Built, tmp_path: Path) -> None:
    """The command of ViLMedic's documentation says how to get both; what can be made is made."""
    root = tmp_path / "data"
    with pytest.raises(UserError) as caught:
        download("mimic-cxr-images-512,SELFSUP,toy", root=root)
    told = str(caught.value)
    assert "mimic-cxr-images-512 is not fetched" in told and "SELFSUP is not fetched" in told
    assert f"{root}/SELFSUP/mimic-cxr/" in told
    assert (root / "toy" / STAMP).is_file()


def test_medmnist_table() -> None:
    assert len(SETS) == 12 and len(VOLUMES) == 6
    md5 = [word for known in SETS.values() for word in known.md5]
    assert len(set(md5)) == 48 and {len(word) for word in md5} == {32}
    one = RECIPES["medmnist-chestmnist-64"].file
    assert one.urls == ("https://zenodo.org/records/10519652/files/chestmnist_64.npz?download=1",)
    assert one.md5 == "9de6cd0b934ebb5b7426cfba5efbae16" and one.archive == "chestmnist_64.npz"
    assert sum(f"medmnist-{name}" in RECIPES for name in SETS) == 12
    assert [SETS["pathmnist"].file(size) for size in SIZES[:2]] == [
        *("pathmnist.npz", "pathmnist_64.npz"),
    ]
    with pytest.raises(UserError, match="3-D volumes"):
        download("medmnist-organmnist3d-64")
    with pytest.raises(UserError, match="did you mean 'medmnist-pneumoniamnist'"):
        download("medmnist-pneumonia")
    with pytest.raises(UserError, match=r"known: .*medmnist-SET\["):
        download("qqq")


def test_medmnist_download(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    body = b"an npz file"
    recipe = RECIPES["medmnist-dermamnist-128"]
    with serving(Answers(body, cuts=[4])) as answers:
        file = replace(recipe.file, urls=(answers.url,), md5=hashlib.md5(body).hexdigest())
        monkeypatch.setitem(RECIPES, recipe.name, replace(recipe, file=replace(file, pause=0.001)))
        (path,) = download(recipe.name, root=tmp_path)
        assert path == tmp_path / "medmnist/dermamnist_128.npz" and path.read_bytes() == body
        assert "CC BY-NC 4.0" in capsys.readouterr().err
        assert download(recipe.name, root=tmp_path) == [path]
    assert len(answers.seen) == 2
    path.write_bytes(b"my own")
    with pytest.raises(UserError, match="not the published md5"):
        download(recipe.name, root=tmp_path)
    assert path.read_bytes() == b"my own"


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


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_an_unsafe_archive_leaves_nothing_outside(toy: Built, tmp_path: Path, name: str) -> None:
    """Neither the archive's good members nor its bad ones become a data set or a file elsewhere."""
    root = tmp_path / "data"
    bad = zip_of(root / ".cache/toy.whl", {"toy/a.png": b"a", name: b"evil"})
    source = replace(toy.sources[0], sha256=digest_of(bad))
    RECIPES["toy"] = replace(toy, sources=(source,))
    before = {path for path in tmp_path.parent.rglob("*evil*")}
    with pytest.raises(UserError, match="unsafe or damaged"):
        download("toy", root=root)
    assert {path for path in tmp_path.parent.rglob("*evil*")} == before
    assert not Path("/evil").exists() and not (root / "toy").exists()


def test_too_many_members_and_too_many_bytes(tmp_path: Path, monkeypatch) -> None:
    path = zip_of(tmp_path / "a.zip", {f"x{n}": bytes(100) for n in range(20)})
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    with pytest.raises(UserError, match="limits"):
        list(read_members(path))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 100)
    monkeypatch.setattr(archives, "MAX_TOTAL", 1000)
    with pytest.raises(UserError, match="limits"):
        list(read_members(path))
    with tarfile.open(tmp_path / "bomb.tgz", "w:gz") as pack:
        info = tarfile.TarInfo("x")
        info.size = 2**22
        pack.addfile(info, io.BytesIO(bytes(2**22)))
    monkeypatch.undo()
    with pytest.raises(UserError, match="grows"):
        list(read_members(tmp_path / "bomb.tgz"))
