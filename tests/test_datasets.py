"""Datasets, transforms, loader and splits: every sample once, the same one every time."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vilmedic_ssl.data.datasets.base import Context, patients_of
from vilmedic_ssl.data.datasets.image_folder import ImageFolder
from vilmedic_ssl.data.datasets.manifest import Manifest, read_table
from vilmedic_ssl.data.datasets.tok import ImageDataset, LabelDataset, TextDataset
from vilmedic_ssl.data.loader import EpochBatches, Loader, batches_of, sample_seed, share
from vilmedic_ssl.data.splits import FRACTIONS, assign, split_patients
from vilmedic_ssl.data.transforms import Pipeline, Transform, compose, preset
from vilmedic_ssl.errors import ConfigError, MissingSplit, UserError
from vilmedic_ssl.registry import build

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


@pytest.mark.parametrize("spelling", ["validate", "val", "valid", "validation"])
def test_spellings_of_validate(tmp_path, spelling):
    tree(tmp_path, "train/a/1.png", "train/a/2.png", f"{spelling}/a/3.png")
    assert ImageFolder(Context("validate"), root=str(tmp_path)).ids == [f"{spelling}/a/3.png"]
    assert len(ImageFolder(Context("train"), root=str(tmp_path))) == 2


KERMANY = r"person(\d+)_|((?:VIRUS|NORMAL)-\d+)-"


def kermany(root: Path) -> Path:
    """File names of the paediatric chest films of Kermany et al., no validate folder."""
    names = [f"train/PNEUMONIA/person{p}_virus_{i}.png" for p in range(30) for i in range(3)]
    names += [f"train/NORMAL/NORMAL-{p}-000{i}.png" for p in range(20) for i in range(2)]
    return tree(root, *names, "test/NORMAL/NORMAL-99-0001.png", "test/PNEUMONIA/person99_bacteria_1.png")  # fmt: skip


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
    again = ImageFolder(Context("validate", seed=5), root=root, patient_pattern=pattern)
    assert again.ids == made["validate"].ids  # splits do not move with the seed of a run


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
    assert patients_of(["p1_a", "other"], r"(p\d)_") == ["p1", "other"]
    names = ["person12_virus_3.jpeg", "NORMAL-7-0001.jpeg", "NORMAL-7-0002.jpeg"]
    assert patients_of(names, KERMANY) == [
        "12",
        "NORMAL-7",
        "NORMAL-7",
    ]  # whichever group took part
    assert patients_of(["a"], None) is None
    with pytest.raises(UserError, match="no regular expression"):
        patients_of(["a"], "(")
    with pytest.raises(UserError, match="matches no file name, for example not 'a'"):
        patients_of(["a"], "x")


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
        ({"A": "positive"}, {"B": "positive"}, [1, 0, 1, np.nan, 1], [0, 1, 1, np.nan, 0]),
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
    assert sample["images"].shape == (1, 16, 16) and "FINDINGS" in sample["text"].upper()
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
    again = Manifest(Context("test", seed=9), manifest=path)
    assert again.ids == made[2].ids
    path = table(tmp_path, "path", "a.png", "b.png", "c.png")
    with pytest.raises(UserError, match="row 1 has no patient"):
        Manifest(Context("train"), manifest=path)


def test_manifests_that_are_wrong(tmp_path):
    path = table(tmp_path, "path,split", "a.png,train", "a.png,train", "a.png,test")
    assert Manifest(Context("test"), manifest=path).ids == ["a.png"]
    with pytest.raises(UserError, match="a.png stands in two rows of split 'train'"):
        Manifest(Context("train"), manifest=path)
    path = table(tmp_path, "path,split", "a.png,train", "b.png,train,1", images=False)
    with pytest.raises(UserError, match=r"line 3: not as many values"):
        Manifest(Context("train"), manifest=path)
    path = table(tmp_path, "file,split", "a.png,train", images=False)
    with pytest.raises(UserError, match="has no column 'path'"):
        Manifest(Context("train"), manifest=path)
    path = table(tmp_path, "path,split,A", "a.png,train,1")
    with pytest.raises(ConfigError, match="exclude each other"):
        Manifest(Context("train"), manifest=path, labels=["A"], label="A")


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "sub/../../a.png", "C:\\a.png"])
def test_paths_stay_below_the_root(tmp_path, name):
    (tmp_path / "m.csv").write_text(f"path,split\n{name},train\n")
    with pytest.raises(UserError, match="absolute|leads out"):
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


# ---- the .tok layout -----------------------------------------------------------------------------


def tok(folder: Path, **lines: str) -> dict[str, str]:
    """Files train.<name>.tok; `lines` are joined by |."""
    for name, text in lines.items():
        split, _, file = name.rpartition("_")
        path = folder / f"{split or 'train'}.{file}.tok"
        path.write_text("".join(f"{line}\n" for line in text.split("|")), encoding="utf-8")
    return {"root": str(folder)}


def test_the_phantoms_tok_files_agree_with_its_manifest(phantom):
    part = {"root": str(phantom)}
    node = {
        "proto": "ImSeqLabel",
        "image": {
            **part,
            "file": "image.tok",
            "image_path": str(phantom),
            "resize": 16,
            "crop": 16,
        },
        "seq": {**part, "file": "report.tok", "tokenizer_max_len": 12},
        "label": {**part, "file": "label.tok"},
    }
    for split in SPLITS:
        data = build(node, Context(split))
        rows = [row for row in read_table(phantom / "manifest.csv") if row["split"] == split]
        assert data.ids == [row["path"] for row in rows]
        assert data.text.texts == [" ".join(row["report"].split()) for row in rows]
        assert data.labels.shape == (len(rows), len(data.label_names)) and data.labels.max() == 1
    batch = data.collate([data[0], data[1]])
    assert batch["images"].shape == (2, 1, 16, 16) and batch["input_ids"].shape == (2, 12)
    assert batch["labels"].shape[0] == 2 and batch["text"][0] == data.text.texts[0]


def test_misaligned_and_missing_files(tmp_path):
    part = tok(tmp_path, image="a.png|b.png|c.png", label="x|y", validate_image="a.png")
    image = {**part, "file": "image.tok", "image_path": str(tmp_path), "channels": "gray"}
    node = {"proto": "ImLabel", "image": image, "label": {**part, "file": "label.tok"}}
    with pytest.raises(UserError, match=r"'train'.*\(image 3, label 2\); align them"):
        build(node, Context("train"))
    with pytest.raises(MissingSplit, match=r"there is no .*test\.image\.tok; .*: train, validate"):
        build(node, Context("test"))
    with pytest.raises(MissingSplit, match="set dataset root and file"):
        TextDataset(Context("train"), **part, file="nothing.tok")


def test_blank_lines(tmp_path):
    part = tok(tmp_path, image="a.png||c.png", report="one|  |three", label="x||y")
    with pytest.raises(UserError, match=r"train\.image\.tok, line 2: blank"):
        ImageDataset(Context("train"), **part, file="image.tok")
    with pytest.raises(UserError, match=r"train\.label\.tok, line 2: no label"):
        LabelDataset(Context("train"), **part, file="label.tok")
    assert TextDataset(Context("train"), **part, file="report.tok").texts == ["one", "", "three"]
    (tmp_path / "train.empty.tok").write_text("")
    with pytest.raises(UserError, match="is empty"):
        TextDataset(Context("train"), **part, file="empty.tok")
    (tmp_path / "train.latin.tok").write_bytes("Ödem\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 at byte 0"):
        TextDataset(Context("train"), **part, file="latin.tok")


def test_windows_line_ends_and_extensions(tmp_path):
    (tmp_path / "train.image.tok").write_bytes(b"a\r\nb.png\r\n")
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.png")
    data = ImageDataset(
        Context("train"), root=str(tmp_path), file="image.tok", image_path=str(tmp_path), ext=".jpg"
    )
    assert data.ids == ["a", "b.png"] and [p.name for p in data.files.paths] == ["a.jpg", "b.png"]


def test_single_and_multi_label(tmp_path):
    part = tok(tmp_path, label="b|a|b", test_label="c", multi="a,b|b", test_multi="c, a")
    data = LabelDataset(Context("train"), **part, file="label.tok")
    assert data.label_names == ["a", "b", "c"] and data.labels.tolist() == [1, 0, 1]
    data = LabelDataset(Context("test"), **part, file="multi.tok")
    assert data.labels.tolist() == [[1, 0, 1]]
    # one split alone has single names only, but the task is that of the whole data set
    tok(tmp_path, validate_multi="b|c")
    assert LabelDataset(Context("validate"), **part, file="multi.tok").labels.shape == (2, 3)


def test_a_label_file_fixes_the_order(tmp_path):
    part = tok(tmp_path, label="b|a")
    names = tmp_path / "names.txt"
    names.write_text("b\nz\na\n")
    data = LabelDataset(Context("train"), **part, file="label.tok", label_file=str(names))
    assert data.label_names == ["b", "z", "a"] and data.labels.tolist() == [0, 2]
    names.write_text("b\n")
    with pytest.raises(UserError, match=r"line 2: 'a' is not in .*names\.txt"):
        LabelDataset(Context("train"), **part, file="label.tok", label_file=str(names))


def test_words_become_tokens_between_specials(tmp_path):
    part = tok(tmp_path, report="no acute finding|acute  oedema", test_report="new acute word")
    data = TextDataset(Context("train"), **part, file="report.tok")
    batch = data.collate([data[0], data[1]])
    # [CLS] 0, [PAD] 1, [SEP] 2, [UNK] 3, [MASK] 4, then acute 5, finding 6, no 7, oedema 8
    assert batch["input_ids"].tolist() == [[0, 7, 5, 6, 2], [0, 5, 8, 2, 1]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0]]
    test = TextDataset(Context("test"), **part, file="report.tok")
    assert test.collate([test[0]])["input_ids"].tolist() == [[0, 3, 5, 3, 2]]
    short = TextDataset(Context("train"), **part, file="report.tok", tokenizer_max_len=4)
    assert short.collate([short[0]])["input_ids"].tolist() == [[0, 7, 5, 2]]


def test_the_vocabulary_is_kept_in_the_run_folder(tmp_path):
    part = tok(tmp_path, report="one two", test_report="two three")
    run = tmp_path / "run"
    first = TextDataset(Context("train", run_dir=run), **part, file="report.tok")
    tok(tmp_path, report="three four one two")  # the training reports change afterwards
    later = TextDataset(Context("test", run_dir=run), **part, file="report.tok")
    assert later.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert later.collate([later[0]])["input_ids"].tolist() == [[0, 6, 3, 2]]
    with pytest.raises(UserError, match="no folder with tokenizer files"):
        TextDataset(Context("train"), **part, file="report.tok", tokenizer=str(tmp_path / "x"))


def test_specials_written_in_a_report_stay_words_of_the_specials(tmp_path):
    part = tok(tmp_path, report="a [PAD] b [SEP]")
    data = TextDataset(Context("train"), **part, file="report.tok")
    assert len(data.tokenizer) == 7


# ---- transforms ----------------------------------------------------------------------------------


def gradient(channels: int = 1, side: int = 40) -> torch.Tensor:
    plane = torch.linspace(0, 1, side * side).reshape(1, side, side)
    return plane.repeat(channels, 1, 1).contiguous()


@pytest.mark.parametrize("name", ["simclr", "simclr-natural", "convirt"])
@pytest.mark.parametrize("channels", ["gray", "rgb"])
def test_presets(name, channels):
    transform = Transform(resize=36, crop=32, train=name, views=2)
    pipeline = Pipeline(transform, channels=channels, random=True)
    count = 1 if channels == "gray" else 3
    image = pipeline.prepare(gradient(count))
    views = pipeline(image, seed=1)
    assert views.shape == (2, count, 32, 32) and torch.isfinite(views).all()
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views, pipeline(image, seed=1))
    assert not torch.equal(views, pipeline(image, seed=2))


def test_the_preset_for_reports_does_not_mirror():
    assert "Flip" not in str(preset("convirt", 224)) and "Flip" in str(preset("simclr", 224))
    with pytest.raises(ConfigError, match="no transform preset 'simcrl'; did you mean 'simclr'"):
        preset("simcrl", 224)


def test_defaults_crop_pad_and_flip():
    pipeline = Pipeline(Transform(resize=20, crop=32, views=3), channels="gray", random=True)
    assert pipeline(pipeline.prepare(gradient()), 0).shape == (3, 1, 32, 32)
    still = Pipeline(Transform(resize=40, crop=[24, 32]), channels="gray", random=False)
    assert still(still.prepare(gradient()), 0).shape == (1, 24, 32)


def test_the_evaluation_view_is_one_and_deterministic():
    pipeline = Pipeline(Transform(resize=40, crop=32, views=2), channels="gray", random=False)
    image = pipeline.prepare(gradient())
    assert torch.equal(pipeline(image, 1), pipeline(image, 2)) and pipeline(image, 1).dim() == 3


def test_normalisation():
    keys: dict[str, Any] = {"resize": 8, "crop": 8, "mean": [0.5], "std": [0.25]}
    pipeline = Pipeline(Transform(**keys), channels="gray", random=False)
    assert torch.allclose(pipeline(torch.full((1, 8, 8), 0.75), 0), torch.ones(1, 8, 8))
    for wrong in ({"mean": [0.5, 0.5]}, {"std": [0.0]}, {"std": [0.1, 0.1]}, {"std": [-1.0]}):
        with pytest.raises(ConfigError, match=r"dataset\.transform\.mean"):
            Pipeline(Transform(**{**keys, **wrong}), channels="gray", random=False)


def test_randomness_leaves_the_global_generators_alone():
    pipeline = Pipeline(Transform(train="simclr", views=2), channels="gray", random=True)
    image = pipeline.prepare(gradient(side=64))
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    pipeline(image, 3)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_nested_lists():
    blur = {"GaussianBlur": {"kernel_size": 3, "sigma": [0.1, 1.0]}}
    items = [
        {"RandomApply": {"p": 0.5, "transforms": [blur, {"RandomChoice": {"transforms": [blur]}}]}},
        "RandomHorizontalFlip",
        {"RandomRotation": {"degrees": 5}},
    ]
    assert compose(items, "t")(gradient()).shape == (1, 40, 40)
    assert torch.equal(compose([], "t")(gradient()), gradient())


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["RandomHorizontalFlop"], r"t\.0: there is no transform .*'RandomHorizontalFlip'"),
        ([{"Resize": {"siz": 3}}], r"t\.0\.Resize\.siz: there is no such argument; .*'size'"),
        (
            [{"RandomApply": {"transforms": ["Nope"]}}],
            r"t\.0\.RandomApply\.transforms\.0: .*'Nope'",
        ),
        ([{"Resize": {}}], r"t\.0\.Resize: "),
        ([{"ColorJitter": {"brightness": -1}}], r"t\.0\.ColorJitter: "),
        ([{"a": {}, "b": {}}], r"t\.0: expected one transform"),
        ([3], r"t\.0: expected one transform"),
        ([{"Lambda": {"lambda": "x"}}], r"t\.0"),
        (["__import__('os')"], r"t\.0: there is no transform"),
    ],
)
def test_wrong_lists(items, words):
    with pytest.raises(ConfigError, match=words):
        compose(items, "t")


@pytest.mark.parametrize(
    "items", ["simclr", ["RandomHorizontalFlip"], [{"ColorJitter": {}}], ["TrivialAugmentWide"]]
)
def test_evaluation_must_be_deterministic_already_in_training(items):
    for augment in (True, False):
        with pytest.raises(ConfigError, match=r"dataset\.transform\.evaluate: .*deterministic"):
            Pipeline(Transform(evaluate=items), channels="gray", random=augment)


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


def test_keeping_images_in_memory_changes_nothing_between_visits(tmp_path, phantom):
    keys = {"manifest": str(phantom / "manifest.csv")}
    kept = Transform(resize=24, crop=16, views=2, load_memory=True)
    data = Manifest(Context("train", augment=True), **keys, transform=kept)
    first, second = data[3, 11]["images"], data[3, 11]["images"]
    assert torch.equal(first, second)
    plain = Transform(resize=24, crop=16, views=2)
    other = Manifest(Context("train", augment=True), **keys, transform=plain)[3, 11]["images"]
    assert (first - other).abs().max() < 0.01  # half precision


# ---- loader --------------------------------------------------------------------------------------


def test_every_index_exactly_once_over_any_number_of_ranks():
    draw = random.Random(0)
    for _ in range(400):
        n, size = draw.randrange(1, 60), draw.randrange(1, 20)
        ranks = draw.randrange(1, min(size, n) + 1)
        seed, epoch, drop_last = draw.randrange(99), draw.randrange(1, 5), draw.random() < 0.5
        keys = {"batch_size": size, "seed": seed, "shuffle": True, "drop_last": drop_last}
        samplers = [EpochBatches(n, **keys, rank=r, ranks=ranks) for r in range(ranks)]
        alone = EpochBatches(n, **keys).batches(epoch)
        batches = samplers[0].batches(epoch)
        assert len(samplers[0]) == len(batches)
        parts = []
        for sampler in samplers:
            sampler.epoch = epoch
            parts.append(list(sampler))
        for i, batch in enumerate(batches):
            shares = [part[i] for part in parts]
            assert [index for part in shares for index, _ in part] == batch
            lengths = [len(part) for part in shares]
            assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
        seen = sorted(index for batch in batches for index in batch)
        if drop_last and n >= size:
            assert len(seen) == len(set(seen)) == n - n % size and batches == alone
        else:
            assert seen == list(range(n))


def test_shares_of_a_batch():
    assert [share(list(range(7)), r, 3) for r in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert batches_of(list(range(9)), 4, ranks=2, drop_last=False) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7, 8],
    ]


def test_epochs_differ_and_repeat():
    def epoch(number: int, seed: int = 0) -> list:
        sampler = EpochBatches(50, batch_size=7, seed=seed, shuffle=True)
        sampler.epoch = number
        return list(sampler)

    assert epoch(1) == epoch(1) and epoch(1) != epoch(2) and epoch(1) != epoch(1, seed=1)
    seeds = {s for number in (1, 2, 3) for batch in epoch(number) for _, s in batch}
    assert len(seeds) == 150 and all(0 <= s < 2**63 for s in seeds)
    assert sample_seed(0, 1, 11) != sample_seed(0, 11, 1)
    still = EpochBatches(50, batch_size=7, seed=0, shuffle=False)
    still.epoch = 4
    fourth = list(still)
    still.epoch = 9
    assert fourth == list(still) and [i for b in fourth for i, _ in b] == list(range(50))


@pytest.fixture(scope="module")
def films(phantom):
    transform = Transform(resize=24, crop=16, views=2, train="simclr")
    path = str(phantom / "manifest.csv")
    return Manifest(Context("train", augment=True), manifest=path, transform=transform)


def read_epoch(films, epoch: int, *, position: int = 0, workers: int = 0, **keys: Any) -> list:
    sampler = EpochBatches(len(films), batch_size=16, seed=3, shuffle=True, **keys)
    loader = Loader(films, sampler, workers=workers, pin_memory=False)
    return list(loader.epoch(epoch, position))


def test_resuming_gives_the_same_tail(films):
    whole = read_epoch(films, 2)
    for position in range(len(whole) + 1):
        tail = read_epoch(films, 2, position=position)
        assert [b["id"] for b in tail] == [b["id"] for b in whole[position:]]
        for one, other in zip(tail, whole[position:], strict=True):
            assert torch.equal(one["images"], other["images"])


def test_workers_change_nothing(films):
    for workers in (1, 2):
        for one, other in zip(
            read_epoch(films, 1), read_epoch(films, 1, workers=workers), strict=True
        ):
            assert one["id"] == other["id"] and torch.equal(one["images"], other["images"])


def test_ranks_change_nothing(films):
    alone = torch.cat([b["images"] for b in read_epoch(films, 1)])
    parts = [read_epoch(films, 1, rank=r, ranks=3) for r in range(3)]
    together = [batch["images"] for batches in zip(*parts, strict=True) for batch in batches]
    assert torch.equal(alone, torch.cat(together))


def test_reading_leaves_the_global_generator_alone(films):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    read_epoch(films, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_message_with_error_in_it_comes_out_whole(films, monkeypatch):
    def broken(self, index, seed):
        raise UserError("a.png: cannot be decoded (SyntaxError: not a PNG file); leave it out")

    monkeypatch.setattr(Manifest, "item", broken)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^a\.png: .*leave it out$"):
            read_epoch(films, 1, workers=workers)


# ---- splits --------------------------------------------------------------------------------------


def test_splits_keep_patients_together_and_come_near_their_shares():
    draw = random.Random(1)
    for _ in range(100):
        groups = [f"p{draw.randrange(60)}" for _ in range(draw.randrange(150, 400))]
        seed = draw.randrange(1000)
        homes = assign(groups, fractions=FRACTIONS, seed=seed)
        where: dict[str, str] = {}
        for group, home in zip(groups, homes, strict=True):
            assert where.setdefault(group, home) == home
        for name, fraction in FRACTIONS.items():
            assert abs(homes.count(name) / len(homes) - fraction) < 0.05
        assert homes == assign(groups, fractions=FRACTIONS, seed=seed)
        order = list(range(len(groups)))
        draw.shuffle(order)
        again = assign([groups[i] for i in order], fractions=FRACTIONS, seed=seed)
        assert again == [homes[i] for i in order]  # the order of rows does not matter


def test_few_patients_still_fill_every_split():
    for n in range(3, 9):
        assert set(assign([f"p{i}" for i in range(n)], fractions=FRACTIONS, seed=n)) == set(SPLITS)
    with pytest.raises(UserError, match="2 patients cannot fill 3 splits"):
        assign(["a", "b"], fractions=FRACTIONS, seed=0)


@pytest.mark.parametrize("fractions", [{}, {"a": 1.5}, {"a": 1.2, "b": -0.2}, {"a": 0.5, "b": 0.4}])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(UserError, match="write positive numbers that sum to 1"):
        assign(["a", "b", "c"], fractions=fractions, seed=0)


def test_split_patients():
    rows = [{"patient": f"p{i % 10}", "path": str(i)} for i in range(30)]
    done = split_patients(rows)
    assert [row["path"] for row in done] == [str(i) for i in range(30)]
    assert "split" not in rows[0] and {row["split"] for row in done} == set(SPLITS)
    with pytest.raises(UserError, match="row 2 has no patient"):
        split_patients([rows[0], {"patient": " ", "path": "x"}])
