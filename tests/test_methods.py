"""What holds for every registered model."""

import pytest
import resume
import torch
from methods import cases, node_of, reports

from vilmedic_ssl import build
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment import train
from vilmedic_ssl.models.dino import DINO
from vilmedic_ssl.registry import protos


@pytest.mark.parametrize("name", protos("models"))
def test_stop_and_resume_is_bit_equal(name, tiny):
    resume.assert_resumes(name, tiny)


@pytest.mark.parametrize(("name", "encoder"), cases())
def test_every_learnable_parameter_gets_a_gradient_and_no_other(name, encoder):
    model = build(node_of(name, encoder)).train()
    batch = {
        "images": torch.rand(4, model.views, 1, 32, 32),
        "local": torch.rand(4, 2, 1, 16, 16),
        "labels": torch.arange(4) % 3,
        "seeds": torch.arange(4),
        **reports(4),
    }
    model.at_step(0, 10)
    model(**batch)["loss"].backward()
    for parameter, tensor in model.named_parameters():
        assert (tensor.grad is not None) == tensor.requires_grad, parameter


@pytest.mark.parametrize("name", protos("models"))
def test_another_number_of_views_is_one_sentence(name):
    model = build(node_of(name, "no norm"))
    with pytest.raises(UserError, match=f"views: {model.views} where the transform stands"):
        batch = {"labels": torch.zeros(2).long(), "seeds": torch.arange(2), **reports(2)}
        model(torch.rand(2, 3, 1, 32, 32), **batch)


def test_a_single_image_and_batch_norm_is_one_sentence(tiny):
    config = resume.config_of("BYOL", [*tiny("one"), "trainor.batch_size=1"])
    with pytest.raises(UserError, match=r"raise trainor\.batch_size"):
        train(config)


def test_the_average_of_a_model_knows_the_time_too(tiny, monkeypatch):
    seen = []
    told = DINO.at_step
    monkeypatch.setattr(DINO, "at_step", lambda self, *at: (seen.append(self), told(self, *at)))
    train(resume.config_of("DINO", tiny("average")))
    model, average = seen[-2:]
    assert model is not average and model.teacher_temp == average.teacher_temp > 0.04
