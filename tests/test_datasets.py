"""What each dataset reads, and what it refuses."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.image_folder import ImageFolder
from vilmedic_ssl.data.datasets.manifest import Manifest, read_table
from vilmedic_ssl.data.patients import patients_of
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import ConfigError, MissingSplit, UserError

SPLITS = ("train", "validate", "test")
SMALL = Transform(resize=16, crop=16, views=2)


def picture(path: Path, value: int = 0, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (16, 16), value if mode == "L" else (value, 0, 255)).save(path)


def tree(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        picture(root / name, i)
    return root


# ---- ImageFolder ---------------------------------------------------------------------------------


def test_split_class_image(tmp_path):
    names = [f"{s}/{c}/{c}{i}.png" for s in SPLITS for c in ("cat", "ant") for i in range(3)]
    tree(tmp_path, *names, "train/cat/.hidden.png", "train/cat/notes.txt.bmp.md.png")
    (tmp_path / "train/cat/readme.txt").write_text("no image")
    train = ImageFolder(Context("train"), root=str(tmp_path), transform=SMALL)
    assert len(train) == 7 and train.label_names == ["ant", "cat"]
    assert train.labels.tolist() == [0] * 3 + [1] * 4 and train.patients is None
    test = ImageFolder(Context("test"), root=str(tmp_path), transform=SMALL)
    assert test.ids == [f"test/{c}/{c}{i}.png" for c in ("ant", "cat") for i in range(3)]
    assert test[0]["images"].shape == (1, 16, 16) and test[0]["labels"] == 0
    assert ImageFolder(Context("train", augment=True), root=str(tmp_path), transform=SMALL)[0][
        "images"
    ].shape == (2, 1, 16, 16)


def test_class_numbers_agree_between_splits(tmp_path):
    tree(tmp_path, "train/a/1.png", "train/c/2.png", "validate/b/3.png", "test/c/4.png")
    for split, label in (("train", 0), ("validate", 1), ("test", 2)):
        data = ImageFolder(Context(split), root=str(tmp_path))
        assert data.label_names == ["a", "b", "c"] and data.labels[0] == label


def test_split_folders_are_found_in_capitals_and_other_spellings(tmp_path):
    """The layout of a well-known brain tumour collection: Training/glioma/..., Testing/..."""
    tree(tmp_path, "Training/a/1.png", "Training/b/2.png", "Testing/a/3.png", "Valid/b/4.png")
    for split, name in (("train", "Training/a/1.png"), ("test", "Testing/a/3.png")):
        data = ImageFolder(Context(split), root=str(tmp_path))
        assert data.label_names == ["a", "b"] and data.ids[0] == name


@pytest.mark.parametrize("spelling", ["validate", "val", "valid", "validation", "Val"])
def test_spellings_of_validate(tmp_path, spelling):
    tree(tmp_path, "train/a/1.png", "train/a/2.png", f"{spelling}/a/3.png")
    assert ImageFolder(Context("validate"), root=str(tmp_path)).ids == [f"{spelling}/a/3.png"]
    assert len(ImageFolder(Context("train"), root=str(tmp_path))) == 2


KERMANY = r"person(\d+)_|((?:VIRUS|NORMAL)-\d+)-"


def kermany(root: Path) -> Path:
    """File names of the paediatric chest films of Kermany et al., no validate folder."""
    names = [f"train/PNEUMONIA/person{p}_virus_{i}.png" for p in range(30) for i in range(3)]
    names += [f"train/NORMAL/NORMAL-{p}-000{i}.png" for p in range(20) for i in range(2)]
    names += ["test/NORMAL/NORMAL-99-0001.png", "test/PNEUMONIA/person99_bacteria_1.png"]
    return tree(root, *names)


@pytest.mark.parametrize(
    "pattern", [r"(person\d+|(?:VIRUS|NORMAL|BACTERIA)-\d+)", r"[A-Za-z]+-?\d+"]
)
def test_a_missing_validate_is_taken_from_the_patients_of_train(tmp_path, pattern):
    root = str(kermany(tmp_path))
    made = {s: ImageFolder(Context(s), root=root, patient_pattern=pattern) for s in SPLITS}
    patients = {split: set(data.patients) for split, data in made.items()}
    assert not patients["train"] & patients["validate"]
    assert patients["train"] | patients["validate"] == {f"person{p}" for p in range(30)} | {
        f"NORMAL-{p}" for p in range(20)
    }
    assert not set(made["train"].ids) & set(made["validate"].ids)
    assert len(made["train"]) + len(made["validate"]) == 130
    assert 9 <= len(made["validate"]) <= 17 and len(made["test"]) == 2
    assert all(data.label_names == ["NORMAL", "PNEUMONIA"] for data in made.values())
    again = ImageFolder(Context("validate"), root=root, patient_pattern=pattern)
    assert again.ids == made["validate"].ids


def test_class_image_is_split_by_patient(tmp_path):
    tree(tmp_path, *(f"{'ab'[p % 2]}/p{p:02d}_{i}.png" for p in range(40) for i in range(3)))
    made = [ImageFolder(Context(s), root=str(tmp_path), patient_pattern=r"(p\d+)_") for s in SPLITS]
    assert sum(map(len, made)) == 120 and [len(d) for d in made] == [84, 12, 24]
    assert len(set.union(*(set(d.patients) for d in made))) == 40
    assert sum(len(set(d.patients)) for d in made) == 40
    assert all(d.label_names == ["a", "b"] for d in made)
    with pytest.raises(MissingSplit, match="train, validate, test"):
        ImageFolder(Context("holdout"), root=str(tmp_path))


def test_images_without_classes(tmp_path):
    flat = tree(tmp_path / "flat", *(f"{i:02d}.png" for i in range(20)))
    data = ImageFolder(Context("train"), root=str(flat))
    assert data.labels is None and data.label_names == [] and len(data) == 14
    split = tree(tmp_path / "split", "train/1.png", "train/2.png", "val/3.png")
    assert ImageFolder(Context("train"), root=str(split)).labels is None


def test_exclude_and_classes(tmp_path):
    names = [
        f"train/{c}/{kind}/{i}.png" for c in "abc" for kind in ("images", "masks") for i in "12"
    ]
    root = str(tree(tmp_path, *names, *(n.replace("train", "validate") for n in names)))
    data = ImageFolder(Context("train"), root=root, exclude=["*/masks/*"])
    assert len(data) == 6 and not any("masks" in name for name in data.ids)
    data = ImageFolder(Context("train"), root=root, exclude=["*/masks/*", "train/a/*"])
    assert len(data) == 4 and data.label_names == ["a", "b", "c"]
    data = ImageFolder(Context("train"), root=root, classes=["c", "a"])
    assert data.label_names == ["a", "c"] and len(data) == 8
    with pytest.raises(UserError, match=r"dataset\.classes: .* has no class 'd'"):
        ImageFolder(Context("train"), root=root, classes=["d"])
    with pytest.raises(MissingSplit, match="no image for split 'train'"):
        ImageFolder(Context("train"), root=root, exclude=["*"])
    there = ["validate/a/*", "*/notes.txt"]  # of another split, or no image: not idle
    (tmp_path / "train/notes.txt").touch()
    assert len(ImageFolder(Context("train"), root=root, exclude=there)) == 12
    for glob, told in (("1.png", r"write \"dataset.exclude=\['\*1.png'\]\""), ("*x", "correct it")):
        with pytest.raises(UserError, match=f"matches no path below .*; {told}"):
            ImageFolder(Context("train"), root=root, exclude=[glob])


def test_a_class_that_one_split_lacks_may_be_asked_for(tmp_path):
    tree(tmp_path, "train/a/1.png", "train/b/2.png", "validate/a/3.png", "test/b/4.png")
    for split in SPLITS:
        data = ImageFolder(Context(split), root=str(tmp_path), classes=["a", "b"])
        assert data.label_names == ["a", "b"]


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.root: there is no folder"):
        ImageFolder(Context("train"), root=str(tmp_path / "no"))
    with pytest.raises(MissingSplit, match="folders there: train"):
        ImageFolder(Context("test"), root=str(tree(tmp_path, "train/a/1.png", "train/a/2.png")))


def test_patient_patterns():
    assert patients_of(["person12_virus_3.jpeg"], r"person(\d+)_") == ["12"]
    assert patients_of(["VIRUS-1234-0001.jpeg"], r"[A-Z]+-\d+") == ["VIRUS-1234"]
    assert patients_of(["p1_a", "other"], r"(p\d)_") == ["p1", ""]
    names = ["person12_virus_3.jpeg", "NORMAL-7-0001.jpeg", "NORMAL-7-0002.jpeg"]
    assert patients_of(names, KERMANY) == [
        "12",
        "NORMAL-7",
        "NORMAL-7",
    ]  # whichever group took part
    assert patients_of(["a"], None) is None
    with pytest.raises(UserError, match="no regular expression"):
        patients_of(["a"], "(")
    with pytest.raises(
        UserError, match=r"'x\\d' matches no file name, .* not 'a'; .*leave the key"
    ):
        patients_of(["a"], r"x\d")


# ---- Manifest ------------------------------------------------------------------------------------


def table(folder: Path, header: str, *rows: str, images: bool = True) -> str:
    path = folder / "m.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    if images:
        for row in read_table(path):
            picture(folder / row["path"])
    return str(path)


@pytest.fixture
def labelled(tmp_path):
    """Columns A and B with every kind of cell."""
    cells = [("1", "0"), ("0", "1.0"), ("-1", ""), ("", "-1"), ("-1.0", "0.0")]
    rows = [f"p{i},{i}.png,train,{a},{b}" for i, (a, b) in enumerate(cells)]
    return table(tmp_path, "patient,path,split,A,B", *rows)


@pytest.mark.parametrize(
    ("uncertain", "blank", "a", "b"),
    [
        ("ignore", "negative", [1, 0, np.nan, 0, np.nan], [0, 1, 0, np.nan, 0]),
        ("positive", "ignore", [1, 0, 1, np.nan, 1], [0, 1, np.nan, 1, 0]),
        ("negative", "positive", [1, 0, 0, 1, 0], [0, 1, 1, 0, 0]),
        ({"A": "positive"}, {"B": "positive"}, [1, 0, 1, 0, 1], [0, 1, 1, np.nan, 0]),
    ],
)
def test_uncertain_and_blank(labelled, uncertain, blank, a, b):
    data = Manifest(
        Context("train"), manifest=labelled, labels=["A", "B"], uncertain=uncertain, blank=blank
    )
    np.testing.assert_array_equal(data.labels, np.array([a, b], dtype=np.float32).T)
    assert data.labels.dtype == np.float32 and data.label_names == ["A", "B"]
    known = [f"{int(np.nansum(c))} of {int(np.sum(~np.isnan(c)))}" for c in data.labels.T]
    assert data.card()["positive of known"] == dict(zip("AB", known, strict=True))


@pytest.mark.parametrize("key", ["uncertain", "blank"])
def test_a_policy_for_a_column_that_is_no_label(labelled, key):
    with pytest.raises(ConfigError, match=f"dataset.{key}: 'Aa' is no column of labels"):
        Manifest(Context("train"), manifest=labelled, labels=["A"], **{key: {"Aa": "positive"}})


@pytest.mark.parametrize("cell", ["2", "yes", "nan", "inf", "1;0"])
def test_a_bad_label_cell(tmp_path, cell):
    path = table(tmp_path, "path,split,A", "0.png,train,1", f"1.png,train,{cell}")
    with pytest.raises(UserError, match=rf"m\.csv, 1\.png: A is '{cell}'; write 1, 0, -1"):
        Manifest(Context("train"), manifest=path, labels=["A"])


def test_the_phantoms_manifest(phantom):
    from vilmedic_ssl.data.phantom import DOMINANT

    made = [
        Manifest(
            Context(s), manifest=str(phantom / "manifest.csv"), label="dominant", transform=SMALL
        )
        for s in SPLITS
    ]
    assert all(data.label_names == sorted(DOMINANT) for data in made)
    assert len({p for data in made for p in data.patients}) == 40
    sample = made[0][0]
    assert sample["images"].shape == (1, 16, 16) and "text" not in sample
    assert "FINDINGS" in made[0].reports[0]
    assert sample["id"] == made[0].ids[0]
    card = made[0].card()
    assert sum(card["classes"].values()) == card["images"] == len(made[0])


def test_filter(phantom):
    path = str(phantom / "manifest.csv")
    rows = [row for row in read_table(path) if row["split"] == "train"]
    for views in (["PA", "AP"], "PA"):
        data = Manifest(Context("train"), manifest=path, filter={"view": views})
        assert data.ids == [row["path"] for row in rows if row["view"] in views]
    with pytest.raises(MissingSplit, match=r"dataset\.filter .* keeps none"):
        Manifest(Context("train"), manifest=path, filter={"view": "oblique"})
    with pytest.raises(UserError, match="has no column 'veiw'; did you mean 'view'"):
        Manifest(Context("train"), manifest=path, filter={"veiw": "PA"})


def test_without_a_split_column_patients_are_split(tmp_path):
    rows = [f"p{p},{p}_{i}.png" for p in range(30) for i in range(2)]
    path = table(tmp_path, "patient,path", *rows)
    made = [Manifest(Context(s), manifest=path) for s in SPLITS]
    assert [len(d) for d in made] == [42, 6, 12]
    assert sum(len(set(d.patients)) for d in made) == 30
    again = Manifest(Context("test"), manifest=path)
    assert again.ids == made[2].ids
    path = table(tmp_path, "path", "a.png", "b.png", "c.png")
    made = [Manifest(Context(s), manifest=path) for s in SPLITS]
    assert sorted(name for data in made for name in data.ids) == ["a.png", "b.png", "c.png"]
    assert all(data.patients is None for data in made)


def test_manifests_that_are_wrong(tmp_path):
    path = table(tmp_path, "path,split", "a.png,train", "a.png,train", "a.png,test")
    assert Manifest(Context("test"), manifest=path).ids == ["a.png"]
    with pytest.raises(UserError, match="a.png stands in two rows of split 'train'"):
        Manifest(Context("train"), manifest=path)
    path = table(tmp_path, "path,split", "a.png,train", "b.png,train,1", images=False)
    with pytest.raises(UserError, match=r"line 3: not as many values"):
        Manifest(Context("train"), manifest=path)
    path = table(tmp_path, "file,split", "a.png,train", images=False)
    with pytest.raises(UserError, match="has no column 'path'; .* this name: file, split"):
        Manifest(Context("train"), manifest=path)
    path = table(tmp_path, "path,split,dx", "a.png,Training,x", "b.png,Training,", images=False)
    with pytest.raises(MissingSplit, match="splits there: Training; write train in the column"):
        Manifest(Context("train"), manifest=path)
    with pytest.raises(UserError, match=r'dx is blank; .* "dataset.filter=\{dx: \[x\]\}"'):
        Manifest(Context("Training"), manifest=path, label="dx")
    path = table(tmp_path, "path,split,A", "a.png,train,1")
    with pytest.raises(ConfigError, match="exclude each other"):
        Manifest(Context("train"), manifest=path, labels=["A"], label="A")


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "sub/../../a.png", "C:\\a.png"])
def test_paths_stay_below_the_root(tmp_path, name):
    (tmp_path / "m.csv").write_text(f"path,split\n{name},train\n")
    with pytest.raises(UserError, match=f"leads out of {tmp_path}.*set the root"):
        Manifest(Context("train"), manifest=str(tmp_path / "m.csv"))


def test_root_byte_order_mark_and_quotes(tmp_path):
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [["path", "split", "report"], ["a.png", "train", 'No "acute"\nfinding, Ödem.']]
        )
    picture(tmp_path / "elsewhere/a.png")
    data = Manifest(
        Context("train"), manifest=str(tmp_path / "m.csv"), root=str(tmp_path / "elsewhere")
    )
    assert data.reports == ['No "acute"\nfinding, Ödem.'] and len(data[0]["images"]) == 1


def test_the_fingerprint_sees_files_labels_reports_and_patients(tmp_path):
    header = "patient,path,split,report,A"
    rows = ["p1,a.png,train,well,1", "p2,b.png,train,ill,0"]

    def fingerprint(*rows: str) -> str:
        path = table(tmp_path, header, *rows, images=False)
        return Manifest(Context("train"), manifest=path, labels=["A"]).fingerprint()

    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    first = fingerprint(*rows)
    changed = [
        (rows[1], rows[0]),
        (rows[0],),
        (rows[0], rows[1].replace("ill", "sick")),
        (rows[0], rows[1].replace(",0", ",1")),
        (rows[0], rows[1].replace("p2", "p1")),
    ]
    assert first == fingerprint(*rows) and re.fullmatch("[0-9a-f]{16}", first)
    assert len({first, *(fingerprint(*r) for r in changed)}) == 6
    Image.new("L", (64, 64), 7).save(tmp_path / "b.png")
    assert fingerprint(*rows) != first


def test_grey_stays_one_channel_until_the_network(tmp_path):
    picture(tmp_path / "grey/train/a.png", 9)
    Image.new("RGB", (16, 16), (7, 7, 7)).save(tmp_path / "grey/train/b.png")
    picture(tmp_path / "grey/validate/a.png")
    picture(tmp_path / "colour/train/a.png", 9, "RGB")
    picture(tmp_path / "colour/validate/a.png")
    for kind, channels in (("grey", 1), ("colour", 3)):
        data = ImageFolder(Context("train"), root=str(tmp_path / kind), transform=SMALL)
        assert all(data[i]["images"].shape[0] == channels for i in range(len(data)))
    forced = Transform(resize=16, crop=16, channels="gray")
    data = ImageFolder(Context("train"), root=str(tmp_path / "colour"), transform=forced)
    assert data[0]["images"].shape == (1, 16, 16)
