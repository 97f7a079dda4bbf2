"""Text files as editors save them: byte-order marks, Windows line ends, blank lines at the end."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from PIL import Image

from vilmedic_ssl.config import read_yaml
from vilmedic_ssl.data.budget_rows import read_ids
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.manifest import read_table
from vilmedic_ssl.data.datasets.tok import LabelDataset, TextDataset
from vilmedic_ssl.data.lines import lines_of
from vilmedic_ssl.data.masks import read_masks
from vilmedic_ssl.data.split_file import SplitFile, read_splits, write_splits
from vilmedic_ssl.errors import MissingSplit, UserError
from vilmedic_ssl.schema import build

MARK = "\ufeff"
ROOM = Path(__file__).parents[1] / "vilmedic_ssl"


def as_notepad(path: Path, text: str) -> Path:
    """With a byte-order mark and CRLF."""
    path.write_bytes((MARK + text.replace("\n", "\r\n")).encode())
    return path


def pairs(
    folder: Path, *, images="a b", reports="one two", labels="x y", end="\n", mark=""
) -> dict:
    """A node of three line-aligned files; in words, _ is a blank line."""
    for word in set(images.replace("_", "").split()):
        Image.new("L", (8, 8)).save(folder / f"{word}.png")
    for kind, words in (("image", images), ("report", reports), ("label", labels)):
        lines = ["" if word == "_" else word for word in words.split()]
        lines = [f"{line}.png" if line and kind == "image" else line for line in lines]
        text = mark + "".join(f"{line}{end}" for line in lines)
        (folder / f"train.{kind}.tok").write_bytes(text.encode())
    part = {"root": str(folder)}
    return {
        "proto": "ImSeqLabel",
        "image": {**part, "file": "image.tok", "image_path": str(folder), "channels": "gray"},
        "seq": {**part, "file": "report.tok"},
        "label": {**part, "file": "label.tok"},
    }


@pytest.mark.parametrize("mark", ["", MARK])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_are_no_part_of_a_line(tmp_path, mark, end):
    data = build(pairs(tmp_path, end=end, mark=mark), Context("train"))
    assert data.ids == ["a.png", "b.png"] and data.label_names == ["x", "y"]
    assert data.reports == ["one", "two"] and all(p.is_file() for p in data.paths)


def test_files_put_together_hold_marks_in_the_middle(tmp_path):
    (tmp_path / "t").write_bytes(f"{MARK}a\n{MARK}b\r\n{MARK}\nc\u2028\x0b\x85\x0cd".encode())
    assert lines_of(tmp_path / "t") == ["a", "b", "", "c\u2028\x0b\x85\x0cd"]


TAILS = {
    "nothing": {},
    "images": {"images": "a b _"},
    "labels": {"labels": "x y _ _"},
    "reports": {"reports": "one two _ _"},
    "all": {"images": "a b _", "reports": "one two _", "labels": "x y _"},
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
def test_blank_lines_at_the_end_are_no_samples(tmp_path, tail, end):
    data = build(pairs(tmp_path, **TAILS[tail], end=end), Context("train"))
    assert len(data) == 2 and data.reports == ["one", "two"] and data.labels.tolist() == [0, 1]


def test_an_empty_report_keeps_its_row_wherever_it_stands(tmp_path):
    three = {"images": "a b c", "labels": "x y x"}
    for reports in ("_ two three", "one _ three", "one two _", "one two _ _ _", "_ _ _ _"):
        data = build(pairs(tmp_path, **three, reports=reports), Context("train"))
        assert data.reports == [w.replace("_", "") for w in reports.split()[:3]]
    with pytest.raises(UserError, match=r"\(image 3, seq 4, label 3\)"):
        build(pairs(tmp_path, **three, reports="one two _ four"), Context("train"))
    with pytest.raises(UserError, match=r"\(image 3, seq 2, label 3\)"):
        build(pairs(tmp_path, **three, reports="one two"), Context("train"))


def test_a_blank_line_in_the_middle_shifts_nothing(tmp_path):
    for change in ({"images": "a _ b"}, {"labels": "x _ y"}, {"images": "_ a b"}):
        with pytest.raises(UserError, match="line [12]: (blank|no label)"):
            build(pairs(tmp_path, **change), Context("train"))


def test_a_lone_carriage_return_is_refused_even_where_lengths_agree(tmp_path):
    node = pairs(tmp_path, images="a b c", labels="x y x")
    (tmp_path / "train.report.tok").write_bytes(b"one\nt\rwo\n")  # three lines to some programs
    with pytest.raises(UserError, match=r"report\.tok, line 2: a carriage return without"):
        build(node, Context("train"))
    (tmp_path / "train.report.tok").write_bytes(b"one\rtwo\rthree\r")
    with pytest.raises(UserError, match="line 1: a carriage return"):
        build(node, Context("train"))


def test_files_without_a_line_are_empty(tmp_path):
    part = {"root": str(tmp_path), "file": "x.tok"}
    for content in (b"", MARK.encode(), b"\n\n", b" \r\n"):
        (tmp_path / "train.x.tok").write_bytes(content)
        for kind in (LabelDataset, TextDataset)[: 1 if content.strip() != content else 2]:
            with pytest.raises(UserError, match="is empty"):
                kind(Context("train"), **part)
    with pytest.raises(MissingSplit):
        TextDataset(Context("test"), **part)


def test_every_list_that_people_write_is_read(tmp_path):
    """Tables, ids, class lists, split files, masks and YAML, as Notepad saves them."""
    assert read_table(as_notepad(tmp_path / "m.csv", "path,split\na.png,train\n")) == [
        {"path": "a.png", "split": "train"}
    ]
    ids = as_notepad(tmp_path / "ids.txt", "# mine\na.png\n\nodd\u2028name.png\n")
    assert read_ids(ids) == ["a.png", "odd\u2028name.png"]
    Image.new("L", (8, 8)).save(tmp_path / "k.png")
    masks = as_notepad(tmp_path / "k.csv", "path,finding,mask,side\na.png,Mass,k.png,left\n")
    assert read_masks(masks, {"a.png"})["a.png"]["Mass"][0].side == "left"
    file = SplitFile([("train", "a", "train", None)], {"seed": 0}, tmp_path / "s.json")
    write_splits(file)
    as_notepad(file.path, file.path.read_text(encoding="utf-8"))
    assert read_splits(file.path).rows == file.rows
    assert read_yaml(as_notepad(tmp_path / "c.yml", "name: run\nseed: 3\n")) == {
        "name": "run",
        "seed": 3,
    }
    (tmp_path / "train.l.tok").write_text("b\na\n", encoding="utf-8")
    part = {"root": str(tmp_path), "file": "l.tok"}
    names = as_notepad(tmp_path / "names.txt", "b\n a \n")
    data = LabelDataset(Context("train"), **part, label_file=str(names))
    assert data.label_names == ["b", "a"] and data.labels.tolist() == [0, 1]
    as_notepad(names, "b\na\nb\n")
    with pytest.raises(UserError, match="names 'b' twice"):
        LabelDataset(Context("train"), **part, label_file=str(names))


def test_json_and_source_with_a_mark_are_read(tmp_path):
    from vilmedic_ssl.auto_vilmedic import _vocabulary

    as_notepad(tmp_path / "vocab.src", "[PAD]\n[UNK]\nlung\n")
    assert _vocabulary({}, tmp_path) == ["[PAD]", "[UNK]", "lung"]
    as_notepad(tmp_path / "x.json", json.dumps({"a": 1}))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8-sig")) == {"a": 1}


def readers(path: Path):
    """(line, encoding) of each call that reads text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        keys = {k.arg: k.value for k in node.keywords if k.arg}
        modes = [*node.args[:1], *([keys["mode"]] if "mode" in keys else [])]
        mode = next((m.value for m in modes if isinstance(m, ast.Constant)), "r")
        text = name == "read_text" or (name == "open" and "encoding" in keys and "r" in mode)
        if text:
            encoding = keys.get("encoding")
            yield node.lineno, getattr(encoding, "value", None)


def test_every_reader_of_data_takes_a_mark():
    """Those of executors, experiment and locks read what the program itself wrote."""
    own = {ROOM / "locks.py"}
    files = [
        *({*ROOM.glob("*.py")} - own),
        *ROOM.glob("data/**/*.py"),
        *ROOM.glob("post_processing/*.py"),
    ]
    found = {(p.name, line): encoding for p in files for line, encoding in readers(p)}
    assert len(found) >= 8
    assert not {place for place, encoding in found.items() if encoding != "utf-8-sig"}
