"""Divisions that are made where data has none: by patient, even in classes, moved by nothing."""

from __future__ import annotations

import csv
import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vilmedic_ssl.data import split_patients
from vilmedic_ssl.data.automatic import automatic, of_table
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.image_folder import ImageFolder
from vilmedic_ssl.data.datasets.manifest import Manifest
from vilmedic_ssl.data.datasets.tok import ImageDataset
from vilmedic_ssl.data.divide import divide, pool
from vilmedic_ssl.data.spread import NEAR, spread
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import UserError

SPLITS = ("train", "validate", "test")
SHARES = {"train": 0.7, "validate": 0.1, "test": 0.2}
PLAIN = Transform(channels="gray")  # so that no file is opened
QUICK = settings(max_examples=60, deadline=None)


def folder(root: Path, *names: str) -> str:
    """Empty files: nothing here looks into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def splits_of(root: str, **keys) -> dict[str, str]:
    """id -> split, over all splits."""
    homes = {}
    for split in SPLITS:
        data = ImageFolder(Context(split), root=root, transform=PLAIN, **keys)
        homes |= dict.fromkeys(data.ids, split)
    return homes


def people(seed: int):
    """(patient and labels of each image): patients of one to many images, rare labels, one label
    or several per image.
    """
    draw = np.random.default_rng(seed)
    count, labels = int(draw.integers(9, 80)), int(draw.integers(1, 7))
    heavy, several = draw.random() < 0.5, draw.random() < 0.5
    often_L = draw.dirichlet(np.full(labels, 0.7))
    groups, rows = [], []
    for p in range(count):
        kind = int(draw.choice(labels, p=often_L))
        for _ in range(int(draw.pareto(1.2)) + 1 if heavy else int(draw.integers(1, 5))):
            groups.append(f"p{p:02d}")
            shows = draw.random(labels) < often_L if several else np.arange(labels) == kind
            rows.append(shows)
    return groups, np.array(rows)


def missing(groups, table_NL, homes, fractions):
    """Labels that a split lacks, of those that enough patients show for one in each."""
    of_label = [
        {g for g, shows in zip(groups, column, strict=True) if shows} for column in table_NL.T
    ]
    home = dict(zip(groups, homes, strict=True))
    return [
        (label, split)
        for label, patients in enumerate(of_label)
        for split in fractions
        if len(patients) >= len(fractions) and split not in {home[g] for g in patients}
    ]


@QUICK
@given(st.integers(0, 10_000), st.sampled_from([SHARES, {"train": 0.9, "validate": 0.1}]))
def test_patients_stay_whole_labels_are_everywhere_and_sizes_are_near(seed, fractions):
    groups, table_NL = people(seed)
    homes = automatic(groups, table_NL, fractions)
    assert len(set(zip(groups, homes, strict=True))) == len(set(groups))
    lacking = missing(groups, table_NL, homes, fractions)
    assert len(lacking) <= (1 if len(set(groups)) < 20 else 0)  # several findings, few patients
    largest = max(map(groups.count, set(groups)))
    # one patient of each label may be more than a small split's share
    shown = table_NL.any(0).sum() * largest
    for split, share in fractions.items():
        off = homes.count(split) - share * len(groups)
        room = max(largest, NEAR * len(groups))
        assert -max(room, shown) <= off <= max(room, shown - share * len(groups))
    # whatever the order of images
    order = random.Random(seed).sample(range(len(groups)), len(groups))
    again = automatic([groups[i] for i in order], table_NL[order], fractions)
    assert again == [homes[i] for i in order]


def test_what_a_few_patients_can_cover_is_covered():
    """Against every division of up to seven patients in which training is the largest split."""
    shares_S, draw, possible = np.array([0.7, 0.1, 0.2]), np.random.default_rng(3), 0
    for seed in range(60):
        count, labels = int(draw.integers(4, 8)), int(draw.integers(1, 5))
        sizes_G = draw.integers(1, 5, count).astype(float)
        counts_GL = (draw.random((count, labels)) < 0.5) * draw.integers(1, 4, (count, labels))
        counts_GL = np.minimum(counts_GL, sizes_G[:, None]).astype(float)
        needed_GL = counts_GL[:, (counts_GL > 0).sum(0) >= 3] > 0

        def covers(home_G, needed_GL=needed_GL):
            return all(needed_GL[home_G == s].any(0).all() for s in range(3))

        made_G = spread(counts_GL, sizes_G, shares_S, seed=seed)
        assert set(made_G.tolist()) == {0, 1, 2}
        if not covers(made_G):
            for home in itertools.product(range(3), repeat=count):
                home_G = np.array(home)
                size_S = np.bincount(home_G, weights=sizes_G, minlength=3)
                assert not (size_S.min() > 0 and size_S.argmax() == 0 and covers(home_G))
        possible += covers(made_G)
    assert possible > 30


def test_it_is_the_division_of_the_split_verb(tmp_path):
    names = [f"{'ab'[p % 2]}/p{p:02d}_{i}.png" for p in range(60) for i in range(p % 4 + 1)]
    root = folder(tmp_path, *names)
    keys = {"root": root, "patient_pattern": r"(p\d+)_", "transform": PLAIN}
    homes = {split: ImageFolder(Context(split), **keys) for split in SPLITS}
    cohort = pool(homes)
    verb = dict(zip(cohort.ids, divide(cohort, SHARES, method="stratified", seed=0), strict=True))
    made = {name: split for split, data in homes.items() for name in data.ids}
    assert {k: made[k] for k in sorted(made)} == {k: str(verb[k]) for k in sorted(verb)}


def test_a_tenth_of_the_patients_is_a_tenth_of_the_images_and_of_each_class(tmp_path):
    """One patient with most of a class; the tenth once was 19.6 % and 324 of 400 of one class."""
    names = [f"train/rare/big_{i}.png" for i in range(300)]
    names += [f"train/rare/r{p}_{i}.png" for p in range(20) for i in range(5)]
    names += [f"train/usual/u{p:03d}_{i}.png" for p in range(300) for i in range(4)]
    names += ["test/rare/x_0.png", "test/usual/y_0.png"]
    made = splits_of(folder(tmp_path, *names), patient_pattern=r"^([a-z]+\d*)_")
    tenth = [name for name, split in made.items() if split == "validate"]
    assert abs(len(tenth) / 1600 - 0.1) <= 0.01
    rare = [name for name in tenth if "/rare/" in name]
    assert 5 <= len(rare) <= 60 and not any("big" in name for name in tenth)


LAYOUTS = ["{c}/{k}/p{p:02d}_{i}.png", "train/{c}/{k}/p{p:02d}_{i}.png", "{k}/p{p:02d}_{i}.png"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", [None, r"(p\d+)_"])
def test_nothing_that_is_left_out_moves_another_image(tmp_path, layout, pattern):
    names = [
        layout.format(c="abc"[p % 3], k=k, p=p, i=i)
        for p in range(45)
        for i in range(p % 3 + 1)
        for k in ("images", "masks")
    ]
    extra = ["test/a/images/q_0.png"] if layout.startswith("train") else []
    root, keys = folder(tmp_path, *names, *extra), {"patient_pattern": pattern}
    whole = splits_of(root, **keys)
    assert set(whole) == {*names, *extra}
    draw = random.Random(0)
    some = [draw.sample(names, count) for count in (1, 5, 20)]
    for exclude in (["*masks/*"], ["*p0*"], *some):
        left = splits_of(root, exclude=exclude, **keys)
        assert left.items() <= whole.items() and len(left) < len(whole)
    if "{c}" in layout:
        left = splits_of(root, classes=["a", "c"], **keys)
        assert left.items() <= whole.items() and len(left) < len(whole)
    # images and masks are even, each
    images = [split for name, split in whole.items() if "images" in name and name in names]
    share = 0.9 if layout.startswith("train") else 0.7
    assert abs(images.count("train") / len(images) - share) <= 0.05


def test_a_division_goes_by_names_below_the_root_alone(tmp_path):
    names = [f"{'ab'[i % 2]}/{i:02d}.png" for i in range(40)]
    one = splits_of(folder(tmp_path / "here", *names))
    shuffled = random.Random(1).sample(names, len(names))
    assert splits_of(folder(tmp_path / "there" / "deep", *shuffled)) == one
    os.symlink(tmp_path / "here", tmp_path / "link")
    assert splits_of(str(tmp_path / "link")) == one


def write(path: Path, rows: list[dict[str, str]]) -> str:
    for row in rows:
        folder(path.parent, row["path"])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def rows_of(patients: int, **more: object) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {
            "path": f"{p:03d}_{i}.png",
            "patient": f"p{p}",
            "dx": "abc"[min(p % 7, 2)],
            "Mass": str(int(p % 9 == 0)),
            "Edema": ["1", "0", "-1", ""][draw.randrange(4)],
            "view": draw.choice(["PA", "AP"]),
            "age": str(draw.randrange(20, 90)),
            "report": f"text {p} {i}",
        }
        for p in range(patients)
        for i in range(p % 3 + 1)
    ]


def test_no_key_of_a_table_moves_an_image(tmp_path):
    rows = rows_of(90)
    path = write(tmp_path / "m.csv", rows)

    def made(**keys) -> dict[str, str]:
        homes = {}
        for split in SPLITS:
            data = Manifest(Context(split), manifest=path, transform=PLAIN, **keys)
            homes |= dict.fromkeys(data.ids, split)
        return homes

    whole = made()
    assert len(whole) == len(rows)
    findings = {"labels": ["Mass", "Edema"]}
    same = [findings, {"labels": ["Mass"]}, {"label": "dx"}, {"label": "view"}]
    same += [{**findings, "uncertain": "positive"}, {**findings, "blank": "ignore"}]
    for keys in same:
        assert made(**keys) == whole
    for keys in ({"filter": {"view": "PA"}}, {"label": "dx", "filter": {"dx": ["a", "c"]}}):
        left = made(**keys)
        assert left.items() <= whole.items() and len(left) < len(whole)
    path = write(tmp_path / "m.csv", random.Random(3).sample(rows, len(rows)))
    assert made() == whole
    # even in what the table says, each class and finding in every split
    for column in ("dx", "Mass", "Edema", "view"):
        for value in {row[column] for row in rows}:
            mine = [whole[row["path"]] for row in rows if row[column] == value]
            for split, share in SHARES.items():
                assert abs(mine.count(split) - share * len(mine)) <= 4, (column, value, split)


def test_columns_that_divide_a_table():
    rows = rows_of(30)
    groups = [row["patient"] for row in rows]
    table_NL = of_table(rows, groups, 3)
    assert table_NL.shape == (len(rows), 2 + 1 + 3 + 2)  # findings, none of them, dx, view
    assert of_table([{"path": "a"}, {"path": "b"}], ["a", "b"], 3).shape == (2, 0)
    many = [{**row, "dx": f"{i % 25}"} for i, row in enumerate(rows)]
    narrow = of_table(many, groups, 3).shape[1]
    assert of_table(many, groups, 3, "dx").shape[1] > narrow == 5
    frame = [{**row, "Mass": float(row["Mass"]), "Edema": None} for row in rows]
    assert of_table(frame, groups, 3).any(0).all()


def test_what_cannot_be_divided_is_one_sentence():
    with pytest.raises(UserError, match="2 patients cannot fill 3 splits"):
        split_patients([{"patient": p} for p in "aabb"])
    with pytest.raises(UserError, match="sum to 1"):
        split_patients([{"patient": p} for p in "abcd"], fractions={"train": 0.5, "test": 0.2})


def test_sizes_that_miss_their_fractions_are_said(capsys):
    groups = [f"p{i // 20}" for i in range(60)] + ["a", "b", "c"]
    automatic(groups, np.ones((63, 1), dtype=bool), {"train": 0.8, "test": 0.2}, seed=11)
    assert "patients stay whole (one has 20 of 63)" in capsys.readouterr().err


def test_a_class_with_three_patients_is_in_all_splits(tmp_path):
    names = [f"{c}/{c}{p}_{i}.png" for c in "ab" for p in range(3) for i in range(2)]
    names += [f"c/c{p:02d}_{i}.png" for p in range(30) for i in range(3)]
    made = splits_of(folder(tmp_path, *names), patient_pattern=r"([abc]\d+)_")
    for label in "abc":
        assert {split for name, split in made.items() if name[0] == label} == set(SPLITS)


# ---- symbolic links ------------------------------------------------------------------------------


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)


def read(root: Path, split: str = "train", **keys) -> list[str]:
    return ImageFolder(Context(split), root=str(root), transform=PLAIN, **keys).ids


def test_links_to_classes_splits_files_and_the_root_are_followed(tmp_path):
    folder(tmp_path / "far", *(f"sick/{i}.png" for i in range(4)), "one.png")
    folder(tmp_path / "test", *(f"{c}/{i}.png" for c in ("well", "sick") for i in range(2)))
    root = tmp_path / "root"
    folder(root, *(f"train/well/{i}.png" for i in range(4)), "val/well/9.png")
    link(root / "train/sick", tmp_path / "far/sick")
    link(root / "test", "../test")
    link(root / "val/sick/one.png", tmp_path / "far/one.png")
    link(tmp_path / "alias", root)
    whole = {"well": 4, "sick": 4}
    for place in (root, tmp_path / "alias"):
        names = read(place)
        assert {c: sum(f"/{c}/" in name for name in names) for c in whole} == whole
        assert len(read(place, "test")) == 4
        assert read(place, "validate") == ["val/sick/one.png", "val/well/9.png"]


def test_links_in_circles_end_and_are_said(tmp_path, capsys):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(10)]
    root = tmp_path / "circles"
    folder(root, *names)
    link(root / "a/up", root)  # to the root
    link(root / "a/self", "self")  # to itself
    link(root / "a/other", root / "b")
    link(root / "b/other", root / "a")
    link(root / "c", root / "a")  # a class twice
    link(root / "a/above", tmp_path)  # above the root
    for depth in range(12):  # two ways at each step: 4096 to the last
        place = root / f"b/step{depth}"
        place.mkdir()
        for way in "xy":
            link(place / way, root / f"b/step{depth + 1}" if depth < 11 else root / "a")
    whole = splits_of(str(root))
    assert set(whole) == set(names)
    told = capsys.readouterr().err
    assert told.count("links to folders that are read anyway are not followed: ") == 1
    assert f"not followed: {root}/c (is {root}/a), " in told and " more\n" in told
    left = splits_of(str(root), exclude=["a/*"])  # what is left out may be read another way
    assert {n.replace("c/", "a/") for n in left if n.startswith("c/")} == set(names[:10])
    for name, split in left.items():
        assert whole[name.replace("c/", "a/")] == split


def test_the_same_file_twice_is_read_once_or_refused(tmp_path, capsys):
    root = tmp_path / "same"
    folder(root, *(f"train/{c}/{i}.png" for c in "ab" for i in range(6)))
    link(root / "train/a/0_again.png", "0.png")
    assert len([n for s in ("train", "validate") for n in read(root, s)]) == 12
    assert capsys.readouterr().err.count("a/0_again.png (is ") == 1
    link(root / "train/b/9.png", "../a/1.png")
    with pytest.raises(UserError, match=r"dataset.exclude=\['train/b/9.png'\]"):
        read(root)
    names = [n for s in ("train", "validate") for n in read(root, s, exclude=["train/b/9.png"])]
    assert len(names) == 12
    link(root / "train/a/gone.png", "nowhere.png")  # not passed over in silence
    assert "train/a/gone.png" in [
        n for s in ("train", "validate") for n in read(root, s, exclude=["train/b/9.png"])
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_said(tmp_path):
    folder(tmp_path, "a/1.png", "b/2.png", "b/3.png")
    (tmp_path / "a").chmod(0)
    with pytest.raises(UserError, match="a cannot be read"):
        read(tmp_path)
    (tmp_path / "a").chmod(0o700)


def test_folders_are_no_images(tmp_path):
    folder(tmp_path, *(f"a/{i}.png" for i in range(9)), "a/series.dcm/1.dcm")
    assert set(splits_of(str(tmp_path))) == {
        *(f"a/{i}.png" for i in range(9)),
        "a/series.dcm/1.dcm",
    }


def test_absolute_paths_below_the_root(tmp_path):
    rows = [{"path": str(tmp_path / f"images/{i:02d}.png"), "split": "train"} for i in range(3)]
    path = write(tmp_path / "m.csv", rows)
    for root in (None, "/", str(tmp_path)):
        data = Manifest(Context("train"), manifest=path, root=root, transform=PLAIN)
        assert data.ids == [row["path"] for row in rows]
        assert all(file.is_file() for file in data.files.paths)
    with pytest.raises(UserError, match="leads out of .*set the root to a folder that holds them"):
        Manifest(Context("train"), manifest=path, root=str(tmp_path / "other"))


def test_links_below_the_root_of_a_table_or_list_are_followed(tmp_path):
    """A linked folder of images, and links to files of other names without an ending."""
    names = [f"{i}.png" for i in range(3)]
    folder(tmp_path / "disk", *names)
    folder(tmp_path / "store", "a1b2", "c3d4", "e5f6")
    data = tmp_path / "data"
    link(data / "images", tmp_path / "disk")
    for name, key in zip(names, ("a1b2", "c3d4", "e5f6"), strict=True):
        link(data / "annex" / name, tmp_path / "store" / key)
    paths = [f"{place}/{name}" for place in ("images", "annex") for name in names]
    (data / "m.csv").write_text("\n".join(["path,split", *(f"{path},train" for path in paths)]))
    (data / "train.image.tok").write_text("\n".join(paths))
    there = [data / path for path in paths]
    table = Manifest(Context("train"), manifest=str(data / "m.csv"), transform=PLAIN)
    listed = ImageDataset(
        Context("train"), root=str(data), file="image.tok", image_path=str(data), channels="gray"
    )
    for files in (table.files.paths, listed.files.paths):
        assert files == there and all(path.is_file() for path in files)
    (data / "out.csv").write_text("path,split\nimages/../../secret.png,train\n")
    with pytest.raises(UserError, match="leads out of"):
        Manifest(Context("train"), manifest=str(data / "out.csv"), transform=PLAIN)


@pytest.mark.parametrize("place", ["train/sick", "validate", "sick"])
def test_a_link_that_leads_nowhere_is_said(place, tmp_path, capsys):
    """A class or a split on a disk that is not there."""
    top = "train/" if "/" in place or place == "validate" else ""
    folder(tmp_path, *(f"{top}{c}/{i}.png" for c in "ab" for i in range(6)))
    link(tmp_path / place, "/disk/that/is/not/there")
    read(tmp_path)
    read(tmp_path, "validate")
    said = capsys.readouterr().err
    assert said.count(f"{tmp_path / place} (to /disk/that/is/not/there)") == 1
    read(tmp_path, exclude=[place])
    assert not capsys.readouterr().err


def test_a_folder_around_the_classes_or_splits_is_said(tmp_path, capsys):
    folder(tmp_path / "a b/archive", *(f"{c}/{i}.png" for c in "xy" for i in range(4)))
    read(tmp_path / "a b")
    assert f"write 'dataset.root={tmp_path}/a b/archive'" in capsys.readouterr().err
    folder(tmp_path / "c/archive", *(f"{s}/x/{i}.png" for s in ("train", "test") for i in range(4)))
    read(tmp_path / "c")
    assert f"write dataset.root={tmp_path}/c/archive" in capsys.readouterr().err
    read(tmp_path / "c/archive")
    folder(tmp_path / "d", *(f"x/patient/{i}.png" for i in range(4)))
    read(tmp_path / "d")
    assert "dataset.root" not in capsys.readouterr().err


def test_images_beside_the_class_folders_are_counted(tmp_path, capsys):
    folder(tmp_path, "montage.png", *(f"{c}/{i}.png" for c in "xy" for i in range(4)))
    read(tmp_path)
    assert "1 of 9 images lie beside the class folders" in capsys.readouterr().err
    read(tmp_path, exclude=["montage.png"])
    assert "beside" not in capsys.readouterr().err


def test_blank_paths_splits_and_rows_of_a_table(tmp_path, capsys):
    path = tmp_path / "m.csv"
    path.write_text("path,split\na.png,train\nb.png,\n,\n")  # the last as spreadsheets write it
    assert Manifest(Context("train"), manifest=str(path), transform=PLAIN).ids == ["a.png"]
    assert "split is blank in 1 of 2 rows, first b.png" in capsys.readouterr().err
    path.write_text("path,split\na.png,train\n,train\n")
    with pytest.raises(UserError, match="path is blank in 1 rows, first in row 2"):
        Manifest(Context("train"), manifest=str(path), transform=PLAIN)


def test_a_split_without_a_fraction_is_refused_with_what_gives_it_one(tmp_path):
    two = {"train": 0.5, "validate": 0.5}
    rows = [{"path": f"x/{i}.png", "dx": "a"} for i in range(6)]
    table = write(tmp_path / "m.csv", rows)
    words = "made from it are train, validate; give test a share in dataset.fractions"
    with pytest.raises(UserError, match=words):
        Manifest(Context("test"), manifest=table, transform=PLAIN, fractions=two)
    with pytest.raises(UserError, match=words):
        ImageFolder(Context("test"), root=str(tmp_path), transform=PLAIN, fractions=two)
    table = write(tmp_path / "m.csv", [{**row, "split": "train"} for row in rows])
    with pytest.raises(UserError, match="write test in the column split"):
        Manifest(Context("test"), manifest=table, transform=PLAIN)
