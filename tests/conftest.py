"""What several test files share: the small cohort, and a config that trains in three steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vilmedic_ssl import metrics
from vilmedic_ssl.data.phantom import make_phantom
from vilmedic_ssl.post_processing import plot_representation

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "config/SELFSUP/simclr-phantom.yml"

os.environ.pop("COLUMNS", None)  # parallel runs set it, and tables would be wrapped
os.environ["HF_HUB_OFFLINE"] = "1"  # published weights are out of reach, and that at once
torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing a test does touches the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["VILMEDIC_SSL_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in cohort with 40 patients and films of 64 x 64 pixels; read only."""
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", patients=40, size=64)


@pytest.fixture
def quick_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstraps of a few draws, pictures of one kind."""
    whole = metrics.resample

    def few(*args: Any, **keys: Any) -> Any:
        return whole(*args, **{**keys, "draws": min(keys["draws"], 20)})

    monkeypatch.setattr(plot_representation, "methods", lambda: ["PCA"])
    monkeypatch.setattr(metrics, "resample", few)


def tiny_overrides(phantom: Path, ckpt_dir: Path, name: str = "tiny") -> list[str]:
    """Overrides with which config/SELFSUP/simclr-phantom.yml runs three steps of 16 images."""
    return [
        f"name={name}",
        f"ckpt_dir={ckpt_dir}",
        "num_workers=0",
        "device=cpu",
        f"dataset.manifest={phantom / 'manifest.csv'}",
        "dataset.transform.resize=32",
        "dataset.transform.crop=32",
        "trainor.batch_size=16",
        "trainor.max_steps=3",
        "trainor.epochs=1",
        "trainor.lr_decay_params={warmup_steps: 1}",
        "ensemblor.splits=[train,test]",
    ]


@pytest.fixture
def tiny(phantom: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """`tiny("a-name")`: `tiny_overrides` for a run folder below this test's `tmp_path`."""
    return lambda name="tiny": tiny_overrides(phantom, tmp_path / "ckpt", name)
