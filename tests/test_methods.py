"""What holds for every registered model."""

import contextlib

import pytest
import resume
import torch
from methods import cases, node_of, reports

from vilmedic_ssl import build
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import gradient_cache
from vilmedic_ssl.executors.trainor import Trainor
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
    with pytest.raises(UserError, match=f"write views={model.views}"):
        batch = {"labels": torch.zeros(2).long(), "seeds": torch.arange(2), **reports(2)}
        model(torch.rand(2, 3, 1, 32, 32), **batch)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainor.batch_size=1"], r"trainor\.batch_size: 1 makes batches of.*batch_size=2"),
        ([], r"forward_batch_size: 1 .*forward_batch_size=2"),
        (
            ["trainor.batch_size=1", "trainor.grad_accu=8"],
            r"batch_size: 1 makes passes .*batch_size=2 and trainor.grad_accu=4",
        ),
    ],
)
def test_a_single_image_and_batch_norm_is_refused_before_the_first_step(
    overrides, told, tiny, monkeypatch
):
    monkeypatch.setattr(Trainor, "fit", lambda self: pytest.fail("training began"))
    config = resume.config_of("BYOL", [*tiny("one"), *overrides])
    config["model"]["forward_batch_size"] = 1 if "forward" in told else None
    with pytest.raises(UserError, match=told):
        train(config)


@pytest.mark.parametrize(("chunk", "n"), [(2, 3), (2, 5), (3, 4), (8, 9)])
@pytest.mark.parametrize(("name", "encoder"), cases(["BYOL", "VICReg", "Classifier"]))
def test_no_pass_of_a_batch_in_parts_holds_a_single_image(name, encoder, chunk, n, monkeypatch):
    model = build(node_of(name, encoder)).train()
    sizes, rows = [], type(model).rows

    def counted(self, images, **taken):
        sizes.append(len(images))
        return rows(self, images, **taken)

    monkeypatch.setattr(type(model), "rows", counted)
    images = torch.rand(n, model.views, 1, 32, 32)
    batch = {"images": images, "labels": torch.arange(n) % 3}
    gradient_cache.backward(
        model, batch, chunk=chunk, cast=contextlib.nullcontext, scale=lambda loss: loss
    )
    assert max(sizes) <= chunk + 1
    assert min(sizes) > 1 or encoder == "no norm"


def test_chunks_of_several_processes_hold_two_images_together(monkeypatch):
    model = build(node_of("BYOL", "batch norm")).train()
    for counts in ([2, 1], [2, 1, 1], [3, 2], [5, 5, 4], [17, 16]):
        monkeypatch.setattr(gradient_cache.dist, "counts_of", lambda n, device, c=counts: c)
        for chunk in range(1, 7):
            images = torch.empty(counts[0], 2, 1, 8, 8)
            pieces = gradient_cache._pieces(images, chunk, model)
            parts = [[len(x) for x in torch.empty(n).tensor_split(pieces)] for n in counts]
            assert min(map(sum, zip(*parts, strict=True))) > 1
            assert max(map(max, parts)) <= chunk + 1


def test_a_trial_with_one_image_leaves_no_trace():
    torch.manual_seed(0)
    for encoder, fits in (("batch norm", False), ("no norm", True)):
        model = build(node_of("BYOL", encoder)).train()
        batch = {"images": torch.rand(1, 2, 1, 32, 32)}
        before, drawn = {n: x.clone() for n, x in model.state_dict().items()}, torch.get_rng_state()
        assert gradient_cache.takes_one(model, batch, contextlib.nullcontext) == fits
        assert torch.equal(torch.get_rng_state(), drawn) and model.training
        assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_the_average_of_a_model_knows_the_time_too(tiny, monkeypatch):
    seen = []
    told = DINO.at_step
    monkeypatch.setattr(DINO, "at_step", lambda self, *at: (seen.append(self), told(self, *at)))
    train(resume.config_of("DINO", tiny("average")))
    model, average = seen[-2:]
    assert model is not average and model.teacher_temp == average.teacher_temp > 0.04
