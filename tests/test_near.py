"""Near-duplicates: copies are found, honest look-alikes are not, in bounded time, and only once."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image

from vilmedic_ssl.data.auditing import near
from vilmedic_ssl.data.auditing.lookalikes import correlations, nearest
from vilmedic_ssl.data.auditing.near import CERTAIN, copies, near_duplicates
from vilmedic_ssl.data.auditing.parts import Part
from vilmedic_ssl.data.auditing.pictures import Pictures
from vilmedic_ssl.data.facts import measure
from vilmedic_ssl.data.paths import cache_folder

DOWN, ACROSS = np.mgrid[0:64, 0:64] / 63 - 0.5


def split(name: str, films: list[np.ndarray], patients: list[int] | None = None) -> Pictures:
    """Films as the audit sees them; without patients, all are unknown."""
    n = len(films)
    facts = [measure(film.astype(np.float32)) for film in films]
    return Pictures(
        Part(name, [str(i) for i in range(n)]),
        sha256=[""] * n,
        pixels=[f.pixels for f in facts],
        thumbs=np.stack([np.frombuffer(f.thumb, np.uint8) for f in facts]),
        spread=np.array([f.spread for f in facts], np.float32),
        shape=np.zeros((n, 3), np.int32),
        patients=np.array(patients) if patients else -1 - np.arange(n),
    )


def smooth(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8))
    values = np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC)) / 255
    return (values + rng.normal(0, 0.02, values.shape)).clip(0, 1)


def augmented(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gamma, a turn and noise, each clearly there."""
    gamma = np.exp(rng.choice([-1, 1]) * rng.uniform(0.5, 0.9))
    turned = Image.fromarray((255 * film**gamma).astype(np.uint8)).rotate(
        rng.choice([-1, 1]) * rng.uniform(0.6, 1.0), Image.Resampling.BILINEAR
    )
    return (np.asarray(turned) / 255 + rng.normal(0, 0.06, film.shape)).clip(0, 1)


def head(patient: int, height: float) -> np.ndarray:
    """An aligned axial slice of a head: a skull, a brain with its own folds, ventricles."""
    rng = np.random.default_rng(patient)
    size = np.sqrt(1 - (height / 1.1) ** 2)
    wide, long = (size * (mean + rng.normal(0, 0.008)) for mean in (0.36, 0.44))
    inside = (ACROSS / wide) ** 2 + (DOWN / long) ** 2
    folds = np.cos(10 * ACROSS + rng.normal()) * np.cos(9 * DOWN + 6 * height + rng.normal())
    film = 0.9 * np.exp(-(((inside - 1) / 0.12) ** 2)) + (0.45 + 0.05 * folds) * (inside < 0.9)
    if abs(height) < 0.4:
        place = (np.abs(ACROSS) - 0.06) ** 2 / 0.0015 + (DOWN - 0.02) ** 2 / 0.01
        film = film - 0.3 * np.exp(-place)
    noise = np.random.default_rng([patient, round(1000 * (height + 1))])
    return (film + noise.normal(0, 0.01, film.shape)).clip(0, 1)


def volumes(name: str, patients: range, known: bool) -> Pictures:
    heights = np.linspace(-0.8, 0.8, 24)
    films = [head(p, z) for p in patients for z in heights]
    return split(name, films, np.repeat(patients, len(heights)).tolist() if known else None)


def alike(seed: int, count: int, name: str) -> Pictures:
    """Thumbnails of one protocol: all correlate by about 0.97."""
    common = 128 + 90 * np.cos(6 * np.linspace(-0.5, 0.5, 32)) * np.ones((32, 1))
    own = np.random.default_rng(seed).standard_normal((count, 8, 8)).astype(np.float32)
    own = 14 * own.repeat(4, axis=1).repeat(4, axis=2)
    thumbs = (common + own).clip(0, 255).astype(np.uint8).reshape(count, -1)
    ids = [str(i) for i in range(count)]
    return Pictures(
        Part(name, ids),
        sha256=[""] * count,
        pixels=[f"{name}{i}" for i in ids],
        thumbs=thumbs,
        spread=np.ones(count, np.float32),
        shape=np.zeros((count, 3), np.int32),
        patients=-1 - np.arange(count),
    )


@pytest.mark.parametrize("k", [1, 3, 5, 8, 12])
@pytest.mark.parametrize("known", [False, True])
def test_copies_made_before_the_split_do_not_hide_each_other(k, known):
    rng = np.random.default_rng(0)
    films = [smooth(i) for i in range(40)]
    train = split("train", [augmented(f, rng) for f in films for _ in range(k)])
    test = split("test", [augmented(f, rng) for f in films for _ in range(k)])
    if known:  # every copy under a name of its own
        train.patients, test.patients = (np.arange(40 * k) for _ in range(2))
    found = copies(train, test, distance=6)
    assert len({j for _, j in found}) >= 0.3 * len(test.part)
    assert all(i // k == j // k for i, j in found)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("train", "test"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_aligned_slices_of_different_heads_are_no_copies(train, test, known):
    a = volumes("train", range(1, 1 + train), known)
    b = volumes("test", range(1 + train, 1 + train + test), known)
    for (i, j), way in copies(a, b, distance=6).items():  # drawn so alike that nothing tells them
        assert correlations(a, np.array([i]), b, np.array([j]), way) >= CERTAIN


@pytest.mark.parametrize("way", ["as it is", "mirrored", "inverted"])
def test_a_copy_among_aligned_slices_is_found(way):
    a, b = volumes("train", range(1, 4), True), volumes("test", range(4, 6), True)
    film = head(2, np.linspace(-0.8, 0.8, 24)[16])
    planted = {"as it is": film, "mirrored": film[:, ::-1], "inverted": 1 - film}[way]
    facts = measure((0.8 * planted + 0.1).astype(np.float32))
    b.thumbs[7], b.pixels[7] = np.frombuffer(facts.thumb, np.uint8), facts.pixels
    assert (24 + 16, 7) in copies(a, b, distance=6)


def test_knowing_the_patients_never_adds_a_pair():
    rng = np.random.default_rng(1)
    films = [smooth(i) for i in range(30)]
    noisy = [(f + rng.normal(0, 0.05, f.shape)).clip(0, 1) for f in films[:10]]
    unknown = copies(split("train", films), split("test", noisy), distance=6)
    assert len(unknown) == 10
    for patients in ([0] * 30, [i // 3 for i in range(30)], list(range(30))):
        a, b = split("train", films, patients), split("test", noisy, patients[:10])
        assert copies(a, b, distance=6).keys() <= unknown.keys()


class Films:
    def __init__(self, films: list[np.ndarray]):
        self.films = films

    def decoded(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.films[index].astype(np.float32))[None]


def test_one_outline_with_another_detail_is_no_copy():
    """Two slices of a liver's edge: what correlates is the edge."""

    def edge(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        grain = Image.fromarray(rng.normal(0, 1, (32, 32)).astype(np.float32))
        own = np.asarray(grain.resize((64, 64), Image.Resampling.BICUBIC))
        return (0.5 + 0.4 * np.tanh(6 * (ACROSS + 0.3 * DOWN)) + 0.06 * own).clip(0, 1)

    a = [smooth(i) for i in range(20)] + [edge(0)]
    b = [smooth(100 + i) for i in range(20)] + [edge(1)]
    train, test = split("train", a), split("test", b)
    assert list(copies(train, test, distance=6)) == [(20, 20)]  # by the thumbnails alone
    train.part.pictures, test.part.pictures = Films(a), Films(b)
    assert not copies(train, test, distance=6)
    b[20] = 0.9 * a[20] + 0.05 + np.random.default_rng(9).normal(0, 0.02, a[20].shape)
    test = split("test", b)
    test.part.pictures = Films(b)
    assert list(copies(train, test, distance=6)) == [(20, 20)]


@pytest.mark.parametrize(("images", "twins", "share", "stops"), [
    (20, 1, 0.02, False), (20, 4, 0.02, False), (20, 5, 0.02, True), (300, 6, 0.02, False),
    (300, 7, 0.02, True), (300, 1, 0, True), (20, 20, 1, False),
])  # fmt: skip
def test_many_near_duplicates_stop_a_run_and_few_are_warned_of(images, twins, share, stops):
    films = [np.random.default_rng(i).normal(0.5, 0.1, (32, 32)).clip(0, 1) for i in range(images)]
    others = [0.9 * film for film in films[:twins]]
    others += [np.random.default_rng(9999 + i).normal(0.5, 0.1, (32, 32)) for i in range(600)]
    a, b = split("train", films), split("test", others)
    (found,) = near_duplicates(a, b, distance=6, share=share)
    assert found.count == twins and (found.severity == "leak") == stops


def test_few_pictures_need_certainty():
    a, b = split("train", [head(1, 0.1)]), split("test", [head(2, 0.1), smooth(1)])
    assert not copies(a, b, distance=64)
    b = split("test", [0.9 * head(1, 0.1), smooth(1)])
    assert list(copies(a, b, distance=6)) == [(0, 0)]


def test_the_nearest_are_those_of_the_full_table():
    a, b = alike(0, 50, "train"), alike(1, 5000, "test")  # more than one block
    distances, numbers = nearest(a, np.arange(50), b, "as it is", 8)
    table = 1 - np.corrcoef(a.thumbs, b.thumbs)[:50, 50:]
    assert np.allclose(distances, np.sort(table, axis=1)[:, :8], atol=1e-5)
    assert np.allclose(np.take_along_axis(table, numbers, axis=1), distances, atol=1e-5)
    own, numbers = nearest(a, np.arange(50), a, "as it is", 60)
    assert (numbers[:, :49] != np.arange(50)[:, None]).all()
    assert np.isinf(own[:, 49:]).all()


def test_alike_pictures_take_bounded_time():
    begin = time.process_time()
    assert not copies(alike(0, 3500, "train"), alike(1, 1000, "test"), distance=6)
    assert time.process_time() - begin < 10


def test_the_answer_is_remembered_and_broken_memos_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "cache"))
    films = [smooth(i) for i in range(12)]
    a, b = split("train", films), split("test", [0.9 * f for f in films[:3]])
    (first,) = near_duplicates(a, b, distance=6, share=0)
    (memo,) = (cache_folder() / "audit").iterdir()
    assert first.count == 3

    def refuse(*args, **kwargs):
        raise AssertionError("sought again")

    with monkeypatch.context() as patch:
        patch.setattr(near, "copies", refuse)
        assert list(near_duplicates(a, b, distance=6, share=0)) == [first]
        with pytest.raises(AssertionError):
            list(near_duplicates(a, b, distance=5, share=0))
    for text in (
        "",
        "{",
        "7",
        "[[0, 99, 0]]",
        "[[0, 0, 9]]",
        "[[-1, 0, 0]]",
        "[[Infinity, 0, 0]]",
        "[" * 9999,
        '[["x"]]',
        "\udcff",
    ):
        memo.write_bytes(text.encode(errors="surrogateescape"))
        assert list(near_duplicates(a, b, distance=6, share=0)) == [first]
    assert len(list(memo.parent.iterdir())) == 1  # no scratch file is left


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "file"))
    films = [smooth(i) for i in range(12)]
    a, b = split("train", films), split("test", [0.9 * f for f in films[:3]])
    assert [f.count for f in near_duplicates(a, b, distance=6, share=0)] == [3]
