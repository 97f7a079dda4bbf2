"""From checkpoints to results: which files count, how they are joined, what a bad plug-in costs."""

import csv
import json
import sys

import numpy as np
import pytest
import torch

from vilmedic_ssl import ensemble, load_config, train
from vilmedic_ssl.cli import main
from vilmedic_ssl.data.datasets.manifest import read_table
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.ensemblor import choose_checkpoints

CONFIG = "config/SELFSUP/simclr-phantom.yml"
SAVE = "ensemblor.post_processing=[{save_representation: {keys: [encoder, visual]}}]"


def touch(folder, score, seed, *, lower):
    path = folder / checkpoint.name_of(score, 1, seed)
    whole = dict.fromkeys(checkpoint.OF_A_RUN) | {"progress": {"lower_is_better": lower}}
    whole |= {"model": {}, "config": {"model": {"proto": "SimCLR"}}}
    checkpoint.write(whole, path)
    return path


@pytest.mark.parametrize("lower", [True, False])
def test_best_is_a_matter_of_numbers_and_direction(tmp_path, lower):
    """File names sorted as strings would put 9.5 above 10.2, and any loss upside down."""
    files = [touch(tmp_path, s, i, lower=lower) for i, s in enumerate([10.2, 9.5, 5.3e-05, -1.0])]
    (tmp_path / "last_0.pth").touch()
    best = choose_checkpoints(tmp_path, "all", None)
    assert best == (files[::-1] if lower else files)
    assert choose_checkpoints(tmp_path, "best-2", None) == best[:2]
    assert choose_checkpoints(tmp_path, "best", None) == best[:1]
    assert choose_checkpoints(tmp_path, files[2].name, None) == [files[2]]
    assert choose_checkpoints(tmp_path, "best-1", files[3].name) == [files[3]]


@pytest.fixture(scope="module")
def two_seeds(phantom, tmp_path_factory):
    """Overrides of a run folder that holds seeds 0 and 1."""
    from conftest import tiny_overrides

    overrides = tiny_overrides(phantom, tmp_path_factory.mktemp("two"), "two")
    for seed in (0, 1):
        train(load_config(CONFIG, [*overrides, f"seed={seed}"]))
    return [*overrides, "ensemblor.splits=[test]"]


def saved(overrides, *more):
    """Embeddings of the test split that ensembling wrote."""
    config = load_config(CONFIG, [*overrides, SAVE, "ensemblor.name=s", "overwrite=true", *more])
    ensemble(config)
    (out,) = (config_folder(config) / "evaluations/s/post_processing").glob("save_*")
    return np.load(out / "test_encoder_embeddings.npy")


def config_folder(config):
    from pathlib import Path

    return Path(config.ckpt_dir) / config.name


def test_several_checkpoints_are_normalised_and_put_side_by_side(two_seeds):
    one = [saved(two_seeds, f"ckpt={path.name}") for path in best(two_seeds)]
    both = saved(two_seeds, "ensemblor.mode=all")
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in one]
    np.testing.assert_allclose(both, np.concatenate(unit, axis=1), atol=1e-6)


def best(overrides):
    return checkpoint.ranked(config_folder(load_config(CONFIG, overrides)))


PLUGIN = """
from vilmedic_ssl.registry import proto

@proto
def broken(features, out, *, depth: int = 1):
    yield "test/broken/before", 1.0
    raise ZeroDivisionError("a bug in somebody's plug-in")
"""


def test_a_broken_plugin_is_reported_and_loses_nothing(two_seeds, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    chosen = ["plugins=[broken_plugin]", "ensemblor.post_processing=[broken, knn]"]
    config = load_config(CONFIG, [*two_seeds, *chosen, "ensemblor.name=broken"])
    results = ensemble(config)
    folder = config_folder(config) / "evaluations/broken"
    assert results["test/broken/before"] == 1.0 and "test/knn/accuracy" in results
    assert json.loads((folder / "results.json").read_text()) == results
    assert "broken failed (ZeroDivisionError" in capsys.readouterr().err
    assert "ZeroDivisionError" in (folder / "report.html").read_text()
    assert "Traceback" in (folder / "post_processing" / "broken_error.txt").read_text()
    sys.modules.pop("broken_plugin")


def test_results_name_intervals_and_reference_rows(two_seeds):
    results = ensemble(
        load_config(CONFIG, [*two_seeds, "ensemblor.post_processing=[linear_probe]"])
    )
    for row in ("", "random_init/", "pixels/", "minus_random_init/"):
        name = f"test/linear_probe/{row}accuracy"
        if f"{name}/interval" in results:  # withheld, and said why
            assert results[f"{name}/interval"].startswith("no interval: ")
            assert f"{name}/low" not in results
        else:
            assert results[f"{name}/low"] <= results[name] <= results[f"{name}/high"]
    assert not any(name.startswith("train/") for name in results)


def test_evaluation_is_deterministic_and_leaves_the_model_alone(two_seeds):
    before = torch.load(best(two_seeds)[0], weights_only=True)["model"]
    assert np.array_equal(saved(two_seeds), saved(two_seeds))
    after = torch.load(best(two_seeds)[0], weights_only=True)["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_images_in_a_scored_split_are_refused(two_seeds, phantom, tmp_path, capsys):
    """Nothing tells a leak apart once the numbers are printed, so it ends before (exit code 4)."""
    rows = read_table(phantom / "manifest.csv")
    moved = {"train": "test", "test": "validate", "validate": "train"}
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "split": moved[row["split"]]} for row in rows)
    changed = [f"dataset.manifest={tmp_path / 'm.csv'}", f"dataset.root={phantom}"]
    assert main(["ensemble", CONFIG, *two_seeds, *changed]) == 4
    n = sum(row["split"] == "train" for row in rows)
    assert f"{n} of {n} images of split 'test' are among those" in (err := capsys.readouterr().err)
    assert "config_0.yml as the config" in err or "config_1.yml as the config" in err
