"""ViLMedic's line-aligned files: images, reports and labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.manifest import read_table
from vilmedic_ssl.data.datasets.tok import ImageDataset, LabelDataset, TextDataset
from vilmedic_ssl.data.texts import Texts, TextSettings
from vilmedic_ssl.data.tokenizers import train_tokenizer
from vilmedic_ssl.errors import MissingSplit, UserError
from vilmedic_ssl.schema import build

SPLITS = ("train", "validate", "test")


def picture(path: Path, value: int = 0, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (16, 16), value if mode == "L" else (value, 0, 255)).save(path)


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
    settings = TextSettings(tokenizer_max_len=12, processing="none")
    texts = Texts(settings, train_tokenizer(["no acute finding"], 100))
    for split in SPLITS:
        data = build(node, Context(split, texts=texts))
        rows = [row for row in read_table(phantom / "manifest.csv") if row["split"] == split]
        assert data.ids == [row["path"] for row in rows]
        assert data.reports == [" ".join(row["report"].split()) for row in rows]
        assert data.labels.shape == (len(rows), len(data.label_names)) and data.labels.max() == 1
    batch = data.collate([data[0], data[1]])
    assert batch["images"].shape == (2, 1, 16, 16) and batch["input_ids"].shape == (2, 12)
    assert batch["groups"].shape == (2, 3)
    assert batch["labels"].shape[0] == 2 and batch["text"][0] == data.reports[0]


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
    assert TextDataset(Context("train"), **part, file="report.tok").reports == ["one", "", "three"]
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
