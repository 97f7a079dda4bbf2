"""Every image-only method trains along lightly's loss curve, once definitions are made equal."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightly", reason="lightly is not installed: pip install 'vilmedic_ssl[bench]'")
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import curves  # noqa: E402


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("method", curves.METHODS)
def test_twenty_steps_give_the_losses_of_lightly(method):
    account = curves.ACCOUNTS.get(method, curves.Account())
    assert curves.difference(method, account) < curves.GOAL


@pytest.mark.slow
@pytest.mark.parametrize("method", curves.ACCOUNTS)
def test_every_difference_that_is_told_is_there(method):
    assert curves.difference(method, curves.Account()) > 1e-3
