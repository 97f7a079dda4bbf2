"""BYOL and SimSiam against complete forward passes of byol-pytorch, the target's schedule and step
against DeepMind's and PyTorch-BYOL's.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vilmedic_ssl.models.byol import BYOL
from vilmedic_ssl.models.moco_v3 import MoCoV3
from vilmedic_ssl.models.sim_siam import SimSiam
from vilmedic_ssl.nets.ema import cosine_tau, follow
from vilmedic_ssl.nets.heads import Predictor, Projector
from vilmedic_ssl.nets.vision import VisualEncoder

ORACLES = Path(__file__).parent / "oracles"
TORCH = np.load(ORACLES / "seeds_byol_torch.npz")
DEEPMIND = np.load(ORACLES / "seeds_byol_deepmind.npz")


def tensor(name):
    return torch.from_numpy(TORCH[name])


class Flat(nn.Sequential):
    """The encoder of the stored passes: one linear layer on the flattened image."""

    out_dim = 10

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(48, 10))

    def vector(self, images):
        return self(images)


def loaded(model, case):
    """A model with the stored weights, our names for theirs."""
    theirs = {"cnn": "online_encoder.net", "projector": "online_encoder.projector"}
    theirs |= {"predictor": "online_predictor", "target_cnn": "target_encoder.net"}
    theirs |= {"target_projector": "target_encoder.projector"}
    state = {}
    for name, value in model.double().state_dict().items():
        part, _, rest = name.partition(".")
        stored = f"{case}/state/{theirs[part]}.{rest}"
        state[name] = tensor(stored) if stored in TORCH.files else value
    model.load_state_dict(state)
    return model.train()


def views(case):
    image = tensor(f"{case}/img")
    return torch.stack([image, image.flip(-1)], dim=1)


def test_byol_is_that_of_byol_pytorch():
    head = {"widths": (14, 6), "bias": True, "last_bias": True}
    model = BYOL(
        cnn=Flat(), projector=Projector(**head), predictor=Predictor(**head), together=True
    )
    loaded(model, "byol_full")
    loss = model(views("byol_full"))["loss"]
    loss.backward()
    torch.testing.assert_close(loss, tensor("byol_full/loss"), rtol=1e-9, atol=0)
    for weight, name in ((model.cnn[1], "net"), (model.predictor[3], "predictor_last")):
        stored = tensor(f"byol_full/grad_{name}_weight")
        torch.testing.assert_close(weight.weight.grad, stored, rtol=1e-9, atol=1e-12)


def test_simsiam_is_that_of_byol_pytorch_which_sums_two_minus_two_cosines():
    model = SimSiam(
        cnn=Flat(),
        projector=Projector(widths=(14, 14, 6), last_norm="plain"),
        predictor=Predictor(widths=(14, 6), bias=True, last_bias=True),
        together=True,
    )
    loaded(model, "simsiam_full")
    loss = 4 + 4 * model(views("simsiam_full"))["loss"]
    loss.backward()
    torch.testing.assert_close(loss, tensor("simsiam_full/loss"), rtol=1e-9, atol=0)
    for weight, name in ((model.cnn[1], "net"), (model.predictor[3], "predictor_last")):
        stored = tensor(f"simsiam_full/grad_{name}_weight")
        torch.testing.assert_close(weight.weight.grad, stored, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("base", [0.97, 0.99, 0.996])
@pytest.mark.parametrize("total", [100, 1000])
def test_tau_is_deepminds(base, total):
    steps, values = (DEEPMIND[f"tau/base{base}_max{total}/{what}"] for what in ("step", "value"))
    found = [cosine_tau(base, int(step), total) for step in steps]
    np.testing.assert_allclose(found, values, rtol=1e-7)  # stored through float32 cosines


def test_the_target_moves_as_in_pytorch_byol():
    target, online = nn.Linear(4, 5, bias=False).double(), nn.Linear(4, 5, bias=False).double()
    target.weight.data, online.weight.data = tensor("ema/target0"), tensor("ema/online")
    for tau, after in ((0.996, "ema/target1_m0.996"), (0.99, "ema/target2_then_m0.99")):
        follow(target, online, tau)
        torch.testing.assert_close(target.weight.data, tensor(after), rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", [BYOL, MoCoV3])
def test_the_target_has_batch_statistics_and_running_ones_of_its_own(method):
    torch.manual_seed(0)
    heads = {"projector": Projector(widths=(8, 8)), "predictor": Predictor(widths=(8, 8))}
    model = method(cnn=VisualEncoder(backbone="test_resnet", in_chans=1), **heads).train()
    norm = next(m for m in model.cnn.modules() if isinstance(m, nn.BatchNorm2d))
    own = next(m for m in model.target_cnn.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean.add_(5.0)  # the online network's statistics do not reach the target
    images = torch.rand(4, 2, 1, 32, 32)
    rows = model.rows(images)
    model.after_step()
    assert own.num_batches_tracked == 2 and own.running_mean.abs().max() < 1
    own.running_mean.add_(100.0)  # nor do running ones matter in training
    again = model.rows(images)
    torch.testing.assert_close(again[2], rows[2])
    assert not any(p.requires_grad for p in model.target_cnn.parameters())


def test_the_predictors_rate_of_simsiam_is_fixed_on_request():
    names = {"predictor.0.weight", "predictor.1.weight", "predictor.1.bias", "predictor.3.weight"}
    heads = {"projector": Projector(widths=(8, 8)), "predictor": Predictor(widths=(8, 8))}
    made = [SimSiam(cnn=Flat(), **heads, fix_predictor_rate=fixed) for fixed in (True, False)]
    assert [model.fixed_rate() for model in made] == [names, set()]
