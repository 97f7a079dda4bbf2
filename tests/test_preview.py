"""`vilmedic-ssl preview`: one picture of what training will see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vilmedic_ssl import load_config
from vilmedic_ssl.cli import main
from vilmedic_ssl.experiment.data import dataset_of
from vilmedic_ssl.experiment.preview import SAMPLES, row_of, sheet
from vilmedic_ssl.experiment.settings import check, typed
from vilmedic_ssl.schema import plain

CONFIG = "config/SELFSUP/simclr-phantom.yml"


def drawn(overrides):
    node = check(plain(load_config(CONFIG, overrides)))
    return row_of(dataset_of(typed(node), node, "train", augment=True), 3, node["seed"])


def test_the_sheet_is_written_and_repeatable(tiny, tmp_path, capsys):
    files = [tmp_path / "one.png", tmp_path / "two.png", tmp_path / "other.png"]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        arguments = [*tiny(), f"seed={seed}", "--images", "3", "--out", str(file)]
        assert main(["preview", CONFIG, *arguments]) == 0
        assert capsys.readouterr().out == f"{file}\n"
    one, two, other = (np.asarray(Image.open(file)) for file in files)
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert not (tmp_path / "ckpt").exists()


def test_views_are_those_of_training(tiny):
    overrides = [*tiny(), "dataset.transform.train=[]", "dataset.transform.local_views=2"]
    row = drawn([*overrides, "dataset.transform.local_crop=16"])
    assert len(row["samples"]) == SAMPLES and row["name"].endswith(("png", "dcm"))
    for sample in row["samples"]:
        assert [v.shape for v in sample["local"]] == [(1, 16, 16)] * 2
        for view in sample["images"]:  # nothing was done to them, and the normalisation is undone
            assert torch.allclose(view, row["original"], atol=1e-5)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("local", [0, 5])
def test_any_number_of_views_has_room(tiny, views, local):
    keys = f"dataset.transform.views={views}", f"dataset.transform.local_views={local}"
    row = drawn([*tiny(), *keys, "dataset.transform.train=mae"])
    page = np.asarray(sheet([row, {**row, "name": "a/long/path/" * 200}]))
    assert (page[-4:] == 255).all() and (page[:, -4:] == 255).all()
    assert (page < 255).any(axis=(1, 2)).mean() > 0.6


def test_reports_and_no_training_section(phantom, tmp_path):
    file = tmp_path / "config.yml"
    file.write_text(
        "dataset:\n  proto: ImSeq\n"
        f"  image: {{root: {phantom}, file: image.tok, image_path: {phantom}, views: 2}}\n"
        f"  seq: {{root: {phantom}, file: report.tok}}\n"
        "model: {proto: SimCLR, cnn: {proto: CNN, backbone: test_resnet, in_chans: 1}}\n",
        encoding="utf-8",
    )
    out = tmp_path / "sheet.png"
    assert main(["preview", str(file), "--images", "1", "--out", str(out)]) == 0 and out.is_file()


REFUSED = {
    "no folder": (["--out", "nowhere/there/a.png"], "there is no folder nowhere/there"),
    "no png": (["--out", "a.jpg"], "write the name of a .png file"),
    "no images": (["--images", "0"], "write 1 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_words_are_one_sentence(tiny, capsys, case):
    arguments, words = REFUSED[case]
    assert main(["preview", CONFIG, *tiny(), *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_data_without_images(phantom, tmp_path, capsys):
    file = tmp_path / "config.yml"
    file.write_text(
        f"dataset: {{proto: TextDataset, root: {phantom}, file: report.tok}}\n"
        "model: {proto: SimCLR, cnn: {proto: CNN, backbone: test_resnet, in_chans: 1}}\n",
        encoding="utf-8",
    )
    out = str(tmp_path / "sheet.png")
    assert main(["preview", str(file), "--out", out]) == 2
    assert "TextDataset holds no images" in capsys.readouterr().err
