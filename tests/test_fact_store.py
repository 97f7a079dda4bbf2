"""The memo of facts: when it must forget, and that nothing about it stops or slows a run."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilmedic_ssl.data import fact_store
from vilmedic_ssl.data.fact_store import FILE, recall, stamp_of
from vilmedic_ssl.data.facts import content_hashes, facts_of
from vilmedic_ssl.data.paths import cache_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "cache"))


def picture(path: Path, value: int) -> Path:
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path, format="bmp")
    return path


def test_facts_come_back_whole(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.bmp", 3)
    assert recall([stamp_of(path), None]) == [None, None]
    facts = dict(facts_of([path]))[0]
    assert recall([stamp_of(path), None, stamp_of(tmp_path / "none")]) == [facts, None, None]


@pytest.mark.skipif(sys.platform == "win32", reason="there the time is that of creation")
@pytest.mark.parametrize("way", ["in place", "moved over"])
def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path, way: str) -> None:
    """As after `cp -p` or `rsync -a` of another file of the same size and time."""
    old, new = (picture(tmp_path / f"{value}.bmp", value) for value in (3, 200))
    os.utime(new, ns=(os.stat(old).st_atime_ns, os.stat(old).st_mtime_ns))
    assert os.stat(old).st_size == os.stat(new).st_size
    before, (right,) = content_hashes([old]), content_hashes([new])
    if way == "moved over":
        os.replace(new, old)
    else:
        shutil.copy2(new, old)
    assert before != content_hashes([old]) == [right]
    assert dict(facts_of([old]))[0].sha256 == right


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    paths = []
    for value, name in enumerate((b"f\xff.bmp", b"f\xfe.bmp")):
        paths.append(tmp_path / os.fsdecode(name))
        os.replace(picture(tmp_path / "x.bmp", value), paths[-1])
    facts = dict(facts_of(paths))
    assert facts[0].pixels != facts[1].pixels
    assert recall([stamp_of(path) for path in paths]) == [facts[0], facts[1]]


def test_a_lock_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fact_store, "PATIENCE", 0.5)
    monkeypatch.setattr(fact_store, "_held", set())
    paths = [picture(tmp_path / f"{i}.bmp", i % 250) for i in range(600)]
    hashes = content_hashes(paths)
    (cache_folder() / FILE).unlink()
    with contextlib.closing(sqlite3.connect(cache_folder() / FILE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        begin = time.monotonic()
        assert content_hashes(paths) == hashes and len(dict(facts_of(paths[:9]))) == 9
        assert 0.4 < time.monotonic() - begin < 2.0
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "another"))
    content_hashes(paths[:1])
    assert recall([stamp_of(paths[0])])[0] is not None


def test_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("VILMEDIC_SSL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path and folder.name.startswith("vilmedic_ssl-")
    assert sys.platform == "win32" or folder.stat().st_mode & 0o077 == 0
    path = picture(tmp_path / "a.bmp", 3)
    assert dict(facts_of([path]))[0] == recall([stamp_of(path)])[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x/vilmedic_ssl"
