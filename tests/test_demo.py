"""The demonstration, interrupted and started again."""

import sys
from pathlib import Path

import pytest
import resume

from vilmedic_ssl.executors.trainor import Trainor

HERE = Path(__file__).resolve().parents[1]
sys.path.append(str(HERE / "bin"))
import demo  # noqa: E402

TINY = ["num_workers=0", "device=cpu", "trainor.max_steps=3", "trainor.batch_size=16"]
TINY += ["ensemblor.post_processing=[knn: {draws: 20}]"]


@pytest.fixture
def place(tmp_path, phantom, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "phantom").symlink_to(phantom)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_interrupted_demonstration_continues_and_a_finished_one_is_not_repeated(
    place, monkeypatch, capfd
):
    step, stopped = resume.stopping_after(2)
    monkeypatch.setattr(Trainor, "_step", stopped)
    assert demo.demonstrate(TINY) == 130
    assert "run it again to continue" in capfd.readouterr().err
    monkeypatch.setattr(Trainor, "_step", step)
    assert demo.demonstrate(TINY) == 0
    printed = capfd.readouterr()
    assert "step 2 of 3" in printed.err and "train" in printed.out
    assert (place / "ckpt/demo/report.html").is_file()
    assert demo.demonstrate(TINY) == 0
    assert "already finished" in capfd.readouterr().err
