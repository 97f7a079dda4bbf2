"""Images kept in memory or in a cache file: equal to decoding, found again, renewed, limited."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from vilmedic_ssl.data import store
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.manifest import Manifest
from vilmedic_ssl.data.images import ImageArray, ImageFiles
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import UserError

SMALL = {"resize": 24, "crop": 16}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def paths(tmp_path):
    """Two sizes, 8 and 16 bits."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(9):
        kind, top = (np.uint16, 65535) if i % 3 == 0 else (np.uint8, 255)
        pixels = rng.integers(0, top, (30 + i, 41), dtype=kind, endpoint=True)
        made.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(made[-1])
    return made


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["load_memory", "cache"])
def test_kept_images_are_the_decoded_ones_to_their_bit_depth(paths, where, workers):
    plain = ImageFiles(paths, Transform(**SMALL), augment=False)
    kept = ImageFiles(paths, Transform(**SMALL, **{where: True}), augment=False)
    kept.ready(workers)
    for i in range(len(paths)):
        assert kept.prepared(i).dtype == torch.float32
        assert torch.equal(plain.prepared(i), kept.prepared(i))
        exact = plain.pipeline.prepare(plain.decoded(i))
        error = (exact.clamp(0, 1) - kept.prepared(i)).abs().max()
        assert error <= 0.501 / (65535 if i % 3 == 0 else 255)


def test_an_image_that_needs_no_resizing_is_kept_exactly(tmp_path):
    pixels = np.arange(24 * 24, dtype=np.uint16).reshape(24, 24) * 100
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    Image.fromarray((pixels % 256).astype(np.uint8)).save(tmp_path / "flat.png")
    files = [tmp_path / "deep.png", tmp_path / "flat.png"]
    plain = ImageFiles(files, Transform(**SMALL), augment=False)
    kept = ImageFiles(files, Transform(**SMALL, cache=True), augment=False)
    kept.ready()
    assert all(torch.equal(plain.decoded(i), kept.prepared(i)) for i in range(2))
    assert kept._store.shapes[:, 4].tolist() == [2, 1]


def test_a_cache_is_found_again_and_not_decoded_twice(paths, own_cache, monkeypatch):
    ImageFiles(paths, Transform(**SMALL, cache=True), augment=False).ready()
    again = ImageFiles(paths, Transform(**SMALL, cache=True, views=2), augment=True)
    monkeypatch.setattr(again, "decoded", lambda index: pytest.fail("decoded again"))
    again.ready()
    assert again.view(0, 0).shape == (2, 1, 16, 16)
    assert len(list(own_cache.iterdir())) == 1


def test_another_content_size_or_channel_count_is_another_cache(paths, own_cache):
    def count(**keys):
        ImageFiles(paths, Transform(**{**SMALL, "cache": True, **keys}), augment=False).ready()
        return len(list(own_cache.iterdir()))

    assert count() == 1 and count(crop=8) == 1
    assert count(resize=20) == 2 and count(channels="rgb") == 3
    stat = paths[1].stat()
    Image.fromarray(np.zeros((31, 41), np.uint8)).save(paths[1])
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert count() == 4
    files = ImageFiles(paths, Transform(**SMALL, cache=True), augment=False)
    files.ready()
    assert files.prepared(1).max() == 0


def test_moved_files_keep_their_cache(paths, own_cache, tmp_path):
    ImageFiles(paths, Transform(**SMALL, cache=True), augment=False).ready()
    moved = [shutil.copy(p, tmp_path / f"moved-{p.name}") for p in paths]
    ImageFiles(moved, Transform(**SMALL, cache=True), augment=False).ready()
    assert len(list(own_cache.iterdir())) == 1


def test_a_damaged_cache_is_made_again(paths, own_cache):
    ImageFiles(paths, Transform(**SMALL, cache=True), augment=False).ready()
    (folder,) = own_cache.iterdir()
    for spoil in (
        lambda: (folder / store.PIXELS).write_bytes(b"short"),
        lambda: (folder / store.SHAPES).write_bytes(b"no array"),
        lambda: (folder / store.PIXELS).unlink(),
    ):
        spoil()
        files = ImageFiles(paths, Transform(**SMALL, cache=True), augment=False)
        files.ready()
        assert files._store is not None and files.prepared(2).shape == (1, 24, 30)


def test_a_cache_that_would_be_too_large_is_not_made(paths, own_cache, capsys):
    files = ImageFiles(paths, Transform(**SMALL, cache=True, cache_gb=1e-6), augment=False)
    files.ready()
    assert "raise cache_gb" in " ".join(capsys.readouterr().err.split())
    assert list(own_cache.iterdir()) == [] and files.prepared(0).shape == (1, 24, 32)


def test_a_cache_that_cannot_be_written_is_a_warning(paths, tmp_path, monkeypatch, capsys):
    (tmp_path / "a-file").write_text("in the way")
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "a-file"))
    files = ImageFiles(paths, Transform(**SMALL, cache=True), augment=False)
    files.ready()
    assert "no cache in" in capsys.readouterr().err and files.prepared(0).shape == (1, 24, 32)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("where", ["load_memory", "cache"])
def test_an_unreadable_image_is_one_sentence_and_leaves_nothing(paths, where, workers, own_cache):
    paths[4].write_bytes(paths[4].read_bytes()[:200])
    files = ImageFiles(paths, Transform(**SMALL, **{where: True}), augment=False)
    with pytest.raises(UserError) as refused:
        files.ready(workers)
    assert str(refused.value).startswith(str(paths[4])) and "Traceback" not in str(refused.value)
    assert not own_cache.exists() or list(own_cache.iterdir()) == []


def used(folder, seconds_ago):
    then = time.time() - seconds_ago
    for path in [*folder.iterdir(), folder]:
        os.utime(path, (then, then))


def test_what_a_killed_process_left_goes_after_a_day(paths, own_cache):
    old, young = (own_cache / f"{store.PARTIAL}{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / store.PIXELS).write_bytes(b"123")
    used(old, 2 * store.UNUSED)
    ImageFiles(paths, Transform(**SMALL, cache=True), augment=False).ready()
    assert not old.exists() and young.exists()


def test_the_limit_is_for_all_caches_and_the_longest_unused_make_room(paths, own_cache, capsys):
    def made(resize, size=50_000):
        keys = Transform(resize=resize, crop=16, cache=True, cache_gb=size / 1e9)
        files = ImageFiles(paths, keys, augment=False)
        files.ready()
        return files._store is not None

    assert made(24) and made(25)  # 9 pictures of 24 x 32, a third at two bytes: 10 kB
    first, second = sorted(own_cache.iterdir(), key=lambda p: (p / store.PIXELS).stat().st_mtime)
    assert not made(26, size=25_000) and "cache_gb" in capsys.readouterr().err
    used(second, 3 * store.UNUSED)
    used(first, 2 * store.UNUSED)
    assert made(26, size=27_000)
    assert first.exists() and not second.exists()


def test_a_dataset_with_a_cache_trains_on_the_same_views_as_one_in_memory(phantom):
    keys = {"manifest": str(phantom / "manifest.csv")}
    views = []
    for where in ("cache", "load_memory"):
        transform = Transform(**SMALL, views=2, **{where: True})
        data = Manifest(Context("train", augment=True), **keys, transform=transform)
        data.ready()
        assert torch.equal(data[3, 11]["images"], data[3, 11]["images"])
        views.append(data[3, 11]["images"])
    assert torch.equal(*views)


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 28, 28, 3)])
def test_an_array_of_pictures_is_read_like_files_of_them(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8, endpoint=True)
    paths = [tmp_path / f"{i}.png" for i in range(len(array))]
    for path, pixels in zip(paths, array, strict=True):
        Image.fromarray(pixels).save(path)
    for channels in ("auto", "gray", "rgb"):
        keys = Transform(resize=28, crop=16, channels=channels)
        from_array = ImageArray(array, keys, augment=False, content="x")
        from_files = ImageFiles(paths, keys, augment=False)
        assert from_array.mode == from_files.mode
        for i in range(len(array)):
            assert torch.equal(from_array.decoded(i), from_files.decoded(i))
            assert torch.equal(from_array.view(i, 0), from_files.view(i, 0))
