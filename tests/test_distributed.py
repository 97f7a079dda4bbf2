"""One process = N processes = chunks: the same global batch gives the same gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vilmedic_ssl.registry import protos

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import ranks  # noqa: E402


@pytest.fixture(scope="module")
def single():
    return ranks.everything()


@pytest.fixture(scope="module", params=[2, 4])
def several(request, tmp_path_factory):
    """Rank 0's results of one launch, which covers every model."""
    path = tmp_path_factory.mktemp("ranks") / "found.pth"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={request.param}"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, str(HERE / "ranks.py"), str(path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True)


def close(found, expected, tolerance=1e-9):
    largest = max(t.abs().max() for n, t in expected.items() if not n.startswith("buffer"))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max() / largest
        assert error < tolerance, f"{name}: off by {error:.1e} of the largest gradient"


def test_every_model_has_a_case():
    assert set(ranks.MODELS) == set(ranks.FUSED) == set(ranks.NO_NORM) == set(protos("models"))


def test_ranks_equal_one_process(single, several):
    for case in single:
        close(several[case], single[case])


@pytest.mark.parametrize("name", protos("models"))
def test_chunks_equal_the_whole_batch(single, name):
    close(single[f"{name}, chunks"], single[f"{name}, no norm"])


def test_the_comparison_can_fail(single):
    wrong = {n: t * 0.5 for n, t in single["nt_xent"].items()}
    with pytest.raises(AssertionError):
        close(wrong, single["nt_xent"])


def test_two_processes_train_what_one_does(tiny, phantom, tmp_path):
    """The command line under torchrun: one run folder, the same weights up to float32 rounding;
    images from a cache that the first process makes, or from memory.
    """
    from vilmedic_ssl import load_config, train
    from vilmedic_ssl.executors import checkpoint

    config = HERE.parent / "config/SELFSUP/simclr-phantom.yml"
    # Small steps: after large ones a rounding error decides between equal pixels in max pooling.
    # The tolerance hides nothing: with batch norm per process the difference is 4e-1 of a step.
    sgd = ["trainor.optimizer=SGD", "trainor.optim_params={lr: 0.005}"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    cached = ["dataset.transform.load_memory=false", "dataset.transform.cache=true"]
    command = [sys.executable, *launch, "bin/train.py", str(config), *tiny("two"), *sgd, *cached]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stderr and done.stderr.count("done:") == 1
    two = checkpoint.read(tmp_path / "ckpt" / "two" / "last_0.pth")
    one = checkpoint.read(train(load_config(config, [*tiny("one"), *sgd])) / "last_0.pth")
    assert len(two["random"]) == 2 and two["progress"]["step"] == one["progress"]["step"] == 3
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-4, atol=1e-5)
