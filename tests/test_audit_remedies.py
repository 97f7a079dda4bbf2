"""What an audit says to write instead is pasted into a shell and makes the command pass."""

from __future__ import annotations

import csv
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilmedic_ssl.cli import main
from vilmedic_ssl.data.auditing import leaks
from vilmedic_ssl.data.auditing.findings import finding
from vilmedic_ssl.data.exclude import matching, write_list
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.settings import AuditSettings
from vilmedic_ssl.experiment.audit import refusal

ODD = (
    *("a b.png", "it's.png", 'say "x".png', "a #2.png", "[1].png", "é ü.png", "$HOME.png"),
    *("a\nb.png", "*.png", "a, b.png", "{c}.png", "!x.png", "a=b.png", "back\\slash.png"),
)


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (24, 24), dtype=np.uint8)
    Image.fromarray(values).save(path)


def folder(root: Path, shared: list[str], more: int = 6) -> Path:
    """Splits with images of their own, and these names below two of them with one picture each."""
    save(root / "val/a/v.png", 77)
    for split, first in (("train", 0), ("test", 1000)):
        for i in range(more):
            save(root / split / "ab"[i % 2] / f"own{i}.png", first + i)
        for k, name in enumerate(shared):
            save(root / split / "a" / name, 5000 + k)
    return root


def pasted(message: str, start: str, end: str = ", or write") -> list[str]:
    """The words of a remedy, as a shell splits them."""
    remedy = message.split(start, 1)[1].split(end)[0]
    command = f'printf "%s\\0" {remedy}'
    out = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    return [word.decode() for word in out.split(b"\0")[:-1]]


@pytest.mark.parametrize("shared", [ODD[:1], ODD[3:6], ODD, [f"{i}.png" for i in range(9)]])
def test_an_exclusion_is_pasted_as_it_is(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "my data", list(shared))
    words = ["audit", "my data", "dataset.exclude=['*/own5.png']"]
    assert main(words) == 4
    told = capsys.readouterr().err
    (word,) = pasted(told, "leave those of train out with ")
    assert "own5" in word  # what was excluded before stays so
    assert ("file:" in word) == (len(shared) > 5)
    before = sorted((tmp_path / "audit").iterdir())
    assert main([*words, word]) == 0
    assert main(words) == 4 and sorted((tmp_path / "audit").iterdir()) == before


def test_all_leaks_that_an_exclusion_mends_go_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "xray", ["one.png"])
    twin = Image.open(tmp_path / "xray/train/b/own1.png")
    twin.save(tmp_path / "xray/test/b/pixels.bmp")
    (tmp_path / "xray/val/a/again.png").write_bytes(
        (tmp_path / "xray/test/b/own1.png").read_bytes()
    )
    assert main(["audit", "xray"]) == 4
    (word,) = pasted(capsys.readouterr().err, "leave those of train and validate out with ")
    assert main(["audit", "xray", word]) == 0


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ([f"masks/{i}.png" for i in range(7)], "*/masks/*"),
        ([f"{i}_mask.png" for i in range(7)], "*[[]_-]mask.*"),
        ([f"deeper/{i}.png" for i in range(7)], None),
    ],
)
def test_a_pattern_that_explains_all_is_told(names, pattern, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "xray", names)
    assert main(["audit", "xray"]) == 4
    err = capsys.readouterr().err
    if pattern is None:
        assert "they all match" not in err and "file:" in err
        return
    (word,) = pasted(err, "leave them out with ")
    assert "masks/*" in word or "mask.*" in word
    assert main(["audit", "xray", word]) == 0


def test_allow_is_pasted_as_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "xray", ["p1_.png"])
    words = ["audit", "xray", r"dataset.patient_pattern=^(p\d+|own\d+|v)", "audit.allow=[study]"]
    assert main(words) == 4
    (word,) = pasted(capsys.readouterr().err, ", or write ", " if it is meant")
    assert word == "audit.allow=[study,patient,file]"
    assert main([*words, word]) == 0


def test_a_division_by_patient_is_pasted_as_it_is(tmp_path, capsys, monkeypatch, tiny):
    """Of a folder, by the verb; of a config, by what stops the training."""
    monkeypatch.chdir(tmp_path)
    for i in range(60):
        split, patient = ("train", i % 20) if i < 40 else ("test", i % 20)
        save(tmp_path / "x ray" / split / "ab"[i % 2] / f"p{patient}_{i}.png", i)
    pattern = r"dataset.patient_pattern=^(p\d+)_"
    assert main(["audit", "x ray", pattern]) == 4
    told = capsys.readouterr().err
    assert main(["train", "config/SELFSUP/simclr-folder.yml", "dataset.root=x ray", pattern,
                 "name=it", "ckpt_dir=ckpt"]) == 4  # fmt: skip
    for err, target in ((told, None), (capsys.readouterr().err, "ckpt")):
        command = err.split("with `")[1].split("`")[0]
        assert (target or "audit") in command
        words = shlex.split(command)
        assert words[:2] == ["vilmedic-ssl", "split"] and main(words[1:]) == 0
        (split_file,) = shlex.split(err.split("go on with ")[1].split(" and the same")[0])
        config = ["config/SELFSUP/simclr-folder.yml", "dataset.root=x ray", pattern]
        assert main(["audit", *config, split_file]) == 0


def test_a_table_takes_an_exclusion_too(tmp_path, capsys, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "set", [f"{i}.png" for i in range(8)])
    paths = sorted(p.relative_to(tmp_path / "set") for p in (tmp_path / "set").rglob("*.png"))
    with (tmp_path / "set/t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient", "split", "label"])
        for i, path in enumerate(paths):
            writer.writerow([path, f"p{i}", path.parts[0], path.parts[1]])
    config = tmp_path / "c.yml"
    model = "model: {proto: SimCLR, cnn: {proto: CNN, backbone: resnet18}}"
    config.write_text(f"dataset: {{proto: Manifest, manifest: set/t.csv}}\n{model}\n")
    words = ["audit", "c.yml"]
    assert main(words) == 4
    (word,) = pasted(capsys.readouterr().err, "leave those of train out with ")
    assert "file:" in word and main([*words, word]) == 0
    assert main([*words, "dataset.exclude=['none*']"]) == 2
    assert "matches no path in set/t.csv" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["patient", "study", "file", "pixels", "near_duplicate"])
def test_every_kind_of_leak_has_a_remedy(kind, tmp_path):
    found = [finding(kind, "m", rows=["train:a.png", "test:b.png"], splits=["train", "test"])]
    for data in ({}, {"exclude": []}):
        for config in ("", "c.yml"):
            told = refusal(found, [], data, AuditSettings(), config=config, folder=tmp_path)
            assert f"'audit.allow=[{kind}]'" in told
            divides = kind in ("patient", "study") and config
            assert ("split c.yml" in told) == bool(divides)
            assert divides or ("exclude=" in told) == bool(data) or "lists out of" in told
    assert not refusal([], [], {}, AuditSettings(), config="", folder=tmp_path)
    assert leaks(found)


def test_a_list_is_read_as_it_is(tmp_path):
    names = ["a/*.png", " a ", "b\udcff.png", "#c"]
    file = write_list(tmp_path, names)
    assert write_list(tmp_path, names) == file and len(list(tmp_path.iterdir())) == 1
    for name in names:
        assert matching(name, [f"file:{file}"]) and not matching(f"{name}x", [f"file:{file}"])
    (tmp_path / "mine.txt").write_bytes("\ufeffa.png\r\n\r\nb.png".encode())
    assert matching("a.png", [f"file:{tmp_path / 'mine.txt'}"])
    assert not matching("", [f"file:{tmp_path / 'mine.txt'}"])
    with pytest.raises(UserError, match=r"dataset\.exclude: none\.txt cannot be read"):
        matching("a", ["file:none.txt"])
