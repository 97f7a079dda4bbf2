"""Losses against the numbers of the original codes, and their behaviour at the edges."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vilmedic_ssl.losses import nt_xent

ORACLES = Path(__file__).parent / "oracles"


def pairs(labels):
    """Row numbers of the first and second view of each image."""
    first = [i for i, label in enumerate(labels) if label not in labels[:i]]
    second = [next(j for j in range(i + 1, len(labels)) if labels[j] == labels[i]) for i in first]
    return first, second


@pytest.mark.parametrize("name", ["ntxent_a", "ntxent_b", "ntxent_single_pair"])
def test_nt_xent_equals_the_metric_learning_library(name):
    oracle = np.load(ORACLES / f"{name}.npz")
    z = torch.tensor(oracle["z"], requires_grad=True)
    first, second = pairs(oracle["labels"].tolist())
    loss = nt_xent(z[first], z[second], tau=float(oracle["tau"]))
    assert float(loss.detach()) == pytest.approx(float(oracle["loss"]), abs=1e-9)
    if "grad_z" in oracle:
        loss.backward()
        np.testing.assert_allclose(z.grad.numpy(), oracle["grad_z"], atol=1e-9)


@pytest.mark.parametrize("case", ["a", "b", "c"])
@pytest.mark.parametrize("tau", [0.07, 0.1, 0.5])
def test_nt_xent_equals_the_simclr_of_the_medmnist_thesis(case, tau):
    oracle = np.load(ORACLES / "seeds_ntxent_torch.npz")
    v1, v2 = (torch.tensor(oracle[f"{case}/v{i}"], requires_grad=True) for i in (1, 2))
    loss = nt_xent(v1, v2, tau=tau)
    loss.backward()
    key = f"{case}/tau{tau}"
    assert float(loss.detach()) == pytest.approx(float(oracle[f"{key}/loss"]), abs=1e-9)
    np.testing.assert_allclose(v1.grad.numpy(), oracle[f"{key}/grad_v1"], atol=1e-9)
    np.testing.assert_allclose(v2.grad.numpy(), oracle[f"{key}/grad_v2"], atol=1e-9)


@pytest.mark.parametrize("case", ["a", "b", "c"])
@pytest.mark.parametrize("tau", [0.07, 0.1, 0.5])
def test_the_tensorflow_loss_is_twice_ours(case, tau):
    """google-research/simclr adds two directions where the paper takes the mean of 2N anchors."""
    oracle = np.load(ORACLES / "seeds_ntxent_simclr_tf.npz")
    v1, v2 = (torch.tensor(oracle[f"{case}/v{i}"], dtype=torch.float64) for i in (1, 2))
    theirs = float(oracle[f"{case}/tau{tau}/norm1/loss"])
    assert 2 * float(nt_xent(v1, v2, tau=tau)) == pytest.approx(theirs, rel=1e-5)


def test_one_pair_has_nothing_to_repel():
    z = torch.randn(1, 4)
    assert float(nt_xent(z, torch.randn(1, 4), tau=0.5)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z1, z2 = torch.randn(16, 32).to(dtype), torch.randn(16, 32).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z1, z2, tau=0.05)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z1.float(), z2.float(), tau=0.05))


def test_small_temperatures_stay_finite():
    z = torch.nn.functional.normalize(torch.randn(8, 4))
    assert torch.isfinite(nt_xent(z, z, tau=1e-4))
