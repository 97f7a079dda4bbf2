"""MedMNIST on files of the published layout: four tasks, grey and colour, what can be wrong."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from medmnist_files import write_set

from vilmedic_ssl.cli import main
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.medmnist import MedMNIST
from vilmedic_ssl.data.npz import Npz
from vilmedic_ssl.data.paths import cache_folder
from vilmedic_ssl.data.recipes.medmnist import SETS
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import ConfigError, MissingSplit, UserError

CONFIG = REPOSITORY / "config/SELFSUP/simclr-medmnist.yml"
FEW = (30, 12, 15)
KINDS = {
    "bloodmnist": ("multi-class", 3),
    "organsmnist": ("multi-class", 1),
    "pneumoniamnist": ("binary", 1),
    "chestmnist": ("multi-label", 1),
    "retinamnist": ("ordinal", 3),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "cache"))


def dataset(root: Path, name: str, size: int = 28, split: str = "train", **keys) -> MedMNIST:
    transform = Transform(resize=size, crop=size, **keys)
    return MedMNIST(Context(split), name=name, size=size, root=str(root), transform=transform)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("name", KINDS)
def test_every_task_grey_and_colour(tmp_path: Path, name: str, size: int) -> None:
    path = write_set(tmp_path, name, size=size, counts=FEW)
    task, channels = KINDS[name]
    splits = ("train", "train", FEW[0]), ("validate", "val", FEW[1]), ("test", "test", FEW[2])
    for split, theirs, count in splits:
        data = dataset(tmp_path, name, size, split)
        with np.load(path) as arrays:
            pictures, labels = arrays[f"{theirs}_images"], arrays[f"{theirs}_labels"]
        assert len(data) == count and data.ids[0] == f"{name}/{theirs}/000000"
        assert data.label_names == SETS[name].classes and data.patients is None
        if task == "multi-label":
            assert data.labels.dtype == np.float32 and (data.labels == labels).all()
        else:
            assert data.labels.dtype == np.int64 and (data.labels == labels[:, 0]).all()
        for index in (0, count - 1):
            picture = data.decoded(index)
            assert picture.shape == (channels, size, size) and picture.dtype == torch.float32
            found = (picture * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
            assert (found == pictures[index]).all()
        sample = data[0]
        assert sample["images"].shape == (channels, size, size)
        assert data.paths is None
    card = data.card()
    assert card["task"] == task and card["published images"] == SETS[name].counts[2]


def test_grey_to_rgb_and_random_views(tmp_path: Path) -> None:
    write_set(tmp_path, "breastmnist", counts=FEW)
    transform = Transform(resize=28, crop=28, views=2, train="simclr", channels="rgb")
    data = MedMNIST(
        Context("train", augment=True), name="breastmnist", root=str(tmp_path), transform=transform
    )
    assert data[0, 7]["images"].shape == (2, 3, 28, 28)
    assert torch.equal(data[0, 7]["images"], data[0, 7]["images"])


def test_published_counts_say_nothing_and_traps_are_named(tmp_path: Path, capsys) -> None:
    write_set(tmp_path, "breastmnist")
    data = dataset(tmp_path, "breastmnist")
    assert len(data) == 546 and "published images" not in data.card()
    assert capsys.readouterr().err == ""
    for name, word in (
        ("tissuemnist", "few specimens"),
        ("dermamnist", "one lesion"),
        ("pneumoniamnist", "up-sampled"),
        ("retinamnist", "ordered"),
    ):
        write_set(tmp_path, name, counts=FEW)
        data = dataset(tmp_path, name)
        assert word in data.card()["note"] and data.card()["licence"] == SETS[name].licence
    assert "published were 1080" in capsys.readouterr().err


def test_splits_and_sizes_are_known_by_their_samples(tmp_path: Path) -> None:
    write_set(tmp_path, "breastmnist", counts=FEW)
    write_set(tmp_path, "breastmnist", size=64, counts=FEW)
    small, large = dataset(tmp_path, "breastmnist"), dataset(tmp_path, "breastmnist", 64)
    assert torch.equal(small.members(), large.members())  # one sample, whatever its size
    assert small.fingerprint() != large.fingerprint()
    test = dataset(tmp_path, "breastmnist", split="test")
    assert not set(test.members().tolist()) & set(small.members().tolist())
    with pytest.raises(MissingSplit, match="train, validate, test"):
        dataset(tmp_path, "breastmnist", split="dev")


# The copy in the cache --------------------------------------------------------------------------


def copies() -> list[Path]:
    return sorted((cache_folder() / "npz").iterdir())


def test_pictures_are_mapped_from_one_copy(tmp_path: Path) -> None:
    write_set(tmp_path, "breastmnist", counts=FEW)
    data = dataset(tmp_path, "breastmnist")
    assert isinstance(data.files.array, np.memmap) and not data.files.array.flags.writeable
    (copy,) = copies()
    before = copy.stat().st_mtime_ns
    again = dataset(tmp_path, "breastmnist")
    assert copies() == [copy] and copy.stat().st_mtime_ns == before
    assert torch.equal(data.decoded(3), again.decoded(3))


def test_a_worker_opens_the_map_itself(tmp_path: Path) -> None:
    """Where workers are spawned the dataset is pickled; the pictures must not be."""
    write_set(tmp_path, "breastmnist", counts=FEW)
    array = dataset(tmp_path, "breastmnist").files.array
    packed = pickle.dumps(array)
    assert len(packed) < 1000
    again = pickle.loads(packed)
    assert isinstance(again, np.memmap) and (again == array).all()
    assert (pickle.loads(pickle.dumps(array[3])) == array[3]).all()


@pytest.mark.parametrize("damage", ["short", "flipped", "empty"])
def test_a_damaged_copy_is_made_again(tmp_path: Path, damage: str) -> None:
    write_set(tmp_path, "breastmnist", counts=FEW)
    good = dataset(tmp_path, "breastmnist").decoded(29)
    (copy,) = copies()
    raw = bytearray(copy.read_bytes())
    if damage == "flipped":
        raw[-5] ^= 255
    copy.unlink()
    copy.write_bytes({"short": raw[:-9], "flipped": raw, "empty": b""}[damage])
    assert torch.equal(dataset(tmp_path, "breastmnist").decoded(29), good)


def test_other_pictures_get_another_copy(tmp_path: Path) -> None:
    write_set(tmp_path, "breastmnist", counts=FEW)
    dataset(tmp_path, "breastmnist")
    write_set(tmp_path, "breastmnist", counts=(31, 12, 15))
    assert len(dataset(tmp_path, "breastmnist")) == 31 and len(copies()) == 2


def test_a_full_cache_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    write_set(tmp_path, "breastmnist", counts=FEW)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vilmedic_ssl.data.npz.os.replace", full)
    with pytest.raises(UserError, match="No space left.*VILMEDIC_SSL_CACHE"):
        dataset(tmp_path, "breastmnist")
    assert copies() == []


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    write_set(tmp_path, "breastmnist", counts=FEW)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("VILMEDIC_SSL_CACHE", str(tmp_path / "a file" / "cache"))
    with pytest.raises(UserError, match="cannot be unpacked into.*VILMEDIC_SSL_CACHE"):
        dataset(tmp_path, "breastmnist")


# What can be wrong ------------------------------------------------------------------------------


def test_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'pneumoniamnist'"):
        dataset(tmp_path, "pneumonia")
    with pytest.raises(ConfigError, match="3-D volumes"):
        dataset(tmp_path, "organmnist3d")
    with pytest.raises(UserError, match="vilmedic-ssl download medmnist-pathmnist-128"):
        dataset(tmp_path, "pathmnist", 128)


def broken(tmp_path: Path, **changes: np.ndarray | None) -> str:
    path = write_set(tmp_path, "breastmnist", counts=FEW)
    with np.load(path) as arrays:
        members = {**arrays, **changes}
    np.savez_compressed(path, **{k: v for k, v in members.items() if v is not None})
    with pytest.raises(UserError) as caught:
        dataset(tmp_path, "breastmnist")
    told = str(caught.value)
    assert "\n" not in told and str(path) in told
    return told


def test_contents_that_do_not_fit(tmp_path: Path) -> None:
    grey = np.zeros((30, 28, 28), np.uint8)
    assert "holds no array train_images" in broken(tmp_path, train_images=None)
    assert "holds no array train_labels" in broken(tmp_path, train_labels=None)
    assert "30 x 28 x 28 x 28 uint8" in broken(
        tmp_path, train_images=np.zeros((30, 28, 28, 28), "u1")
    )
    assert "30 x 28 x 28 x 3" in broken(tmp_path, train_images=np.zeros((30, 28, 28, 3), "u1"))
    assert "expected N x 28 x 28 uint8" in broken(tmp_path, train_images=grey.astype(np.float32))
    assert "64 x 64" in broken(tmp_path, train_images=np.zeros((30, 64, 64), np.uint8))
    assert "0 x 28" in broken(tmp_path, train_images=grey[:0])
    assert "expected integers (30, 1)" in broken(tmp_path, train_labels=np.zeros((29, 1), "u1"))
    assert "expected integers (30, 1)" in broken(tmp_path, train_labels=np.zeros((30, 14), "u1"))
    assert "expected integers" in broken(tmp_path, train_labels=np.zeros((30, 1), np.float32))
    assert "outside 0 to 1" in broken(tmp_path, train_labels=np.full((30, 1), 2, np.uint8))
    assert "outside" in broken(tmp_path, train_labels=np.full((30, 1), -1, np.int8))
    pickled = np.array([{"a": 1}] * 30, dtype=object)
    assert "damaged" in broken(tmp_path, train_images=pickled)
    assert "damaged" in broken(tmp_path, train_labels=pickled)
    assert "damaged" in broken(
        tmp_path,
        train_images=np.asfortranarray(np.arange(30 * 784, dtype="u1").reshape(30, 28, 28)),
    )


def test_damaged_files(tmp_path: Path) -> None:
    path = write_set(tmp_path, "breastmnist", counts=FEW)
    raw = path.read_bytes()
    for bad in (b"", b"nothing", raw[:-30], raw[:2000] + b"\0" * 500 + raw[2500:]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="damaged|fetch it again"):
            dataset(tmp_path, "breastmnist")
    assert not (cache_folder() / "npz").exists() or copies() == []


def test_a_member_longer_or_shorter_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((4, 5), np.uint8))
    with zipfile.ZipFile(path) as pack:
        raw = pack.read("x.npy")
    for bad in (raw + b"\0", raw[:-1], raw[:20], b"", raw.replace(b"(4, 5)", b"(4, 9)")):
        with zipfile.ZipFile(path, "w") as pack:
            pack.writestr("x.npy", bad)
        with pytest.raises(UserError, match="damaged"):
            Npz(path).mapped("x")


HEADERS = {  # of an array of bytes
    "more rows than fit into memory": "'|u1', 'fortran_order': False, 'shape': (10000000000000, 1)",
    "negative": "'|u1', 'fortran_order': False, 'shape': (-5, -6)",
    "a date": "'<M8', 'fortran_order': False, 'shape': (30, 1)",
    "no end": "'|u1', 'fortran_order': False, 'shape': (30, 1",
    "an open string": "\"\"\"|u1, 'fortran_order': False, 'shape': (30, 1)",
    "nested": f"'|u1', 'fortran_order': False, 'shape': {'(' * 900}{')' * 900}",
}


@pytest.mark.parametrize("fault", HEADERS)
@pytest.mark.parametrize("member", ["train_labels", "train_images"])
def test_headers_that_lie(tmp_path: Path, fault: str, member: str) -> None:
    path = write_set(tmp_path, "breastmnist", counts=FEW)
    with zipfile.ZipFile(path) as pack:
        raw = {info.filename: pack.read(info) for info in pack.infolist()}
    words = f"{{'descr': {HEADERS[fault]}, }}\n".encode()
    raw[f"{member}.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words + bytes(30)
    with zipfile.ZipFile(path, "w") as pack:
        for name, content in raw.items():
            pack.writestr(name, content)
    with pytest.raises(UserError, match="breastmnist.npz"):
        dataset(tmp_path, "breastmnist")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_numpy_does_not_write(tmp_path: Path, packing: int) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((4, 5), np.uint8))
    with zipfile.ZipFile(path) as pack:
        raw = pack.read("x.npy")
    with zipfile.ZipFile(path, "w", packing) as pack:
        pack.writestr("x.npy", raw)
    for read in (Npz(path).shape, Npz(path).small, Npz(path).mapped):
        with pytest.raises(UserError, match="NumPy does not write"):
            read("x")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damage_is_a_traceback(tmp_path: Path, save) -> None:
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    wanted = np.arange(600).astype(np.uint8).reshape(30, 20)
    save(path, x=wanted)
    good = path.read_bytes()
    for _ in range(300):
        bad = bytearray(good)
        for at in rng.integers(0, len(good), rng.integers(1, 4)):
            bad[at] = rng.integers(256)
        path.write_bytes(bad[: rng.integers(len(bad))] if rng.random() < 0.2 else bad)
        try:
            assert (Npz(path).small("x") == wanted).all()
            assert (Npz(path).mapped("x") == wanted).all()
        except UserError as error:
            assert str(path) in str(error)


# Training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chestmnist", "retinamnist"])
def test_the_config_runs_any_set(tmp_path: Path, name: str, capsys) -> None:
    write_set(tmp_path, name, counts=(48, 16, 24))
    keys = [f"dataset.name={name}", f"dataset.root={tmp_path}", f"ckpt_dir={tmp_path}", "name=run"]
    keys += ["model.cnn.backbone=test_resnet", "model.cnn.stem=standard", "num_workers=0"]
    keys += ["device=cpu", "trainor.batch_size=16", "trainor.epochs=1", "trainor.eval_every=1"]
    keys += [
        "trainor.lr_decay_params={warmup_steps: 1}",
        "ensemblor.post_processing=[linear_probe]",
    ]
    assert main(["train", str(CONFIG), *keys]) == 0
    assert main(["ensemble", str(CONFIG), *keys]) == 0
    assert " failed (" not in capsys.readouterr().err
    assert (tmp_path / "run/report.html").is_file()
