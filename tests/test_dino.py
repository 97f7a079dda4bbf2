"""DINO: the loss by hand, the centre, the teacher, schedules; the whole equals its chunks."""

import contextlib
import math

import pytest
import torch
from torch import nn

from vilmedic_ssl import build
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import gradient_cache

PLAIN = {"backbone": "test_vit", "in_chans": 1, "options": {"img_size": 32}}
HEAD = {"hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 12}


def dino(cnn=PLAIN, **keys):
    torch.manual_seed(0)
    model = build({"proto": "DINO", "cnn": cnn, "head": HEAD, **keys}).double().train()
    with torch.no_grad():  # teacher and student differ after the first step
        for p in model.target_head.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.center.normal_(generator=torch.Generator().manual_seed(5)).mul_(0.1)
    return model


def batch(n=7, local=2):
    generator = torch.Generator().manual_seed(1)
    data = {"images": torch.rand(n, 2, 1, 32, 32, generator=generator, dtype=torch.float64)}
    if local:
        size = (n, local, 1, 16, 16)
        data["local"] = torch.rand(size, generator=generator, dtype=torch.float64)
    return data


def gradients(model, data, chunk=None):
    model.zero_grad()
    out = gradient_cache.backward(
        model, data, chunk=chunk, cast=contextlib.nullcontext, scale=lambda x: x
    )
    return out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("local", [0, 1, 3])
def test_loss_by_hand(local):
    model, data = dino(student_temp=0.2), batch(local=local)
    model.at_step(5, 10)
    views, small = data["images"].unbind(1), data.get("local", torch.empty(7, 0)).unbind(1)
    student = [model.head(model.cnn(x)) for x in (*views, *small)]
    teacher = [model.target_head(model.target_cnn(x)) for x in views]
    terms = []
    for i, t in enumerate(teacher):
        p = ((t - model.center) / 0.07).softmax(-1)
        for j, s in enumerate(student):
            if i != j:
                terms.append(-(p * (s / 0.2).log_softmax(-1)).sum(-1).mean())
    out = model(**data)
    assert out["loss"].item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-12)
    assert out["chance"] == math.log(12)
    assert torch.allclose(out["visual"], model.cnn(views[0]).detach(), atol=1e-12)


def test_chunks_equal_the_whole():
    model, data = dino(), batch()
    whole, expected = gradients(model, data)
    total = model._sum
    model.at_step(0, 1)
    parts, found = gradients(model, data, chunk=3)
    assert parts["loss"].item() == pytest.approx(whole["loss"].item(), abs=1e-12)
    assert parts["chance"] == pytest.approx(math.log(12))
    assert set(found) == set(expected)
    for name, grad in expected.items():
        assert torch.allclose(found[name], grad, atol=1e-12), name
    assert torch.allclose(model._sum, total, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 2])
def test_centre_moves_to_the_mean_of_the_whole_batch(chunk):
    model, data = dino(center_momentum=0.8), batch()
    before = model.center.clone()
    with torch.no_grad():
        logits = [model.target_head(model.target_cnn(x)) for x in data["images"].unbind(1)]
    gradients(model, data, chunk)
    assert torch.equal(model.center, before)  # not before the step
    model.after_step()
    expected = 0.8 * before + 0.2 * torch.cat(logits).mean(0)
    assert torch.allclose(model.center, expected, atol=1e-12)
    model.after_step()
    assert torch.allclose(model.center, expected, atol=1e-12)  # each batch counts once


def test_evaluation_leaves_the_centre():
    model = dino().eval()
    before = model.center.clone()
    with torch.no_grad():
        model(**batch())
    model.after_step()
    assert torch.equal(model.center, before)


def test_teacher_follows_and_gets_no_gradient():
    model, data = dino(tau=0.9), batch()
    model.at_step(0, 10)
    _, found = gradients(model, data)
    assert not any(name.startswith("target") for name in found)
    assert {n.split(".")[0] for n in found} == {"cnn", "head"}
    before = model.target_head.prototypes.weight.clone()
    model.after_step()
    expected = 0.9 * before + 0.1 * model.head.prototypes.weight
    assert torch.allclose(model.target_head.prototypes.weight, expected, atol=1e-12)
    model.at_step(10, 10)
    assert model.tau == 1


def test_schedules_follow_the_step_alone():
    model = dino(warmup=0.5, freeze_last_layer=0.1, teacher_temp=0.06)
    found = []
    for step in (0, 25, 50, 99):
        model.at_step(step, 100)
        found.append((round(model.teacher_temp, 6), model.frozen))
    assert found == [(0.04, True), (0.05, False), (0.06, False), (0.06, False)]
    model = dino(warmup=0.0, freeze_last_layer=0.0)
    model.at_step(0, 100)
    assert model.teacher_temp == 0.07 and not model.frozen


def test_prototypes_are_frozen_first():
    model, data = dino(freeze_last_layer=0.1), batch()
    _, found = gradients(model, data)
    assert (found["head.prototypes.weight"] == 0).all()
    model.at_step(1, 2)
    _, found = gradients(model, data)
    assert found["head.prototypes.weight"].abs().sum() > 0


def test_teacher_has_no_dropout_and_no_stochastic_depth():
    noisy = {**PLAIN, "dropout_out": 0.5}
    noisy["options"] = {"img_size": 32, "drop_path_rate": 0.5, "proj_drop_rate": 0.5}
    noisy["options"]["patch_drop_rate"] = 0.25
    model, images = dino(noisy), batch()["images"][:, 0]
    assert torch.equal(model.target_cnn(images), model.target_cnn(images))
    assert not torch.equal(model.cnn(images), model.cnn(images))
    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in model.cnn.modules())


def test_local_crops_need_a_network_that_takes_them():
    fixed = {**PLAIN, "options": {"img_size": 32, "dynamic_img_size": False}}
    assert "loss" in dino(fixed)(**batch(local=0))
    with pytest.raises(UserError, match="model.cnn"):
        dino(fixed)(**batch())


def test_batch_norm_network_and_state():
    cnn = {"backbone": "test_resnet", "in_chans": 1}
    model = dino(cnn)
    gradients(model, batch())
    model.after_step()
    assert {"center", "target_head.prototypes.weight"} <= set(model.state_dict())
    again = dino(cnn)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.center, model.center)
    out = model.eval()(batch()["images"][:, 0])
    assert out["visual"].shape == (7, 8) and out["encoder"].shape[0] == 7
    assert torch.allclose(out["visual"].norm(dim=1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize(
    "keys",
    [{"tau": 1.0}, {"student_temp": 0.0}, {"warmup": 1.5}, {"center_momentum": -0.1}],
)
def test_wrong_keys(keys):
    with pytest.raises(ConfigError, match=f"model.{next(iter(keys))}"):
        dino(**keys)
