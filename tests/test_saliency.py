"""Grad-CAM, occlusion, overlays and the shares inside outlines, against originals and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from methods import ENCODERS
from sklearn.linear_model import LogisticRegression
from torch import nn

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.nets.saliency import as_map, grad_cam, normalised, occlusion, part_of, upscaled
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.post_processing._heat import coloured, masked

ORACLE = Path(__file__).parent / "oracles/seeds_semisuper_web_prep.npz"
GREY = {"in_chans": 1}
TOKENS = {"img_size": 32, "dynamic_img_size": True}
NETWORKS = {
    **ENCODERS,
    "resnet18": {"backbone": "resnet18", "stem": "small"},
    "convnext": {"backbone": "test_convnext", **GREY},
    "map in the last axis": {"backbone": "test_mambaout", **GREY},
    "class token": {"backbone": "test_vit", "options": {**TOKENS, "global_pool": "token"}},
    "registers": {"backbone": "test_vit4", "options": TOKENS},
    "cut": {"backbone": "test_resnet", "output_layer": "layer3"},
    "frozen": {"backbone": "test_resnet", "freeze": True},
}


def made(name):
    """(encoder, function to two logits, images)."""
    torch.manual_seed(0)
    encoder = VisualEncoder(**NETWORKS[name]).eval()
    head = nn.Linear(encoder.out_dim, 2)
    images = torch.randn(2, encoder.in_chans, 64, 64)
    return encoder, lambda x: head(encoder.vector(x)), images


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_encoder_has_a_map(name):
    encoder, logits, images = made(name)
    before = [p.grad for p in encoder.parameters()]
    maps = grad_cam(encoder, lambda x: logits(x)[:, 1], images)
    assert maps.shape[0] == 2 and maps.shape[1] == maps.shape[2] >= 2
    assert maps.min() >= 0 and set(maps.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert [p.grad for p in encoder.parameters()] == before and not images.requires_grad
    either = torch.stack([maps, grad_cam(encoder, lambda x: -logits(x)[:, 1], images)])
    assert either.amax((0, 2, 3)).tolist() == [1, 1]  # something speaks for it or against it
    alone = grad_cam(encoder, lambda x: logits(x)[:, 1], images[1:])
    torch.testing.assert_close(alone[0], maps[1], atol=1e-3, rtol=0)


def test_grad_cam_is_that_of_the_original():
    """Activations times fixed gradients: a linear score whose gradient is the oracle's."""
    data = np.load(ORACLE)
    for c in range(3):
        key = f"gradcam/class{c}"
        at = torch.from_numpy(data[f"{key}/activations_hwc"]).permute(2, 0, 1)[None]
        slope = torch.from_numpy(data[f"{key}/grads_hwc"]).permute(2, 0, 1)[None]

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.last = nn.Identity()

            def forward(self, x):
                return (self.last(x) * slope).sum((1, 2, 3))  # noqa: B023

        net = Net()
        found = grad_cam(net, net, at, layer="last")
        np.testing.assert_allclose(found[0].numpy(), data[f"{key}/heatmap"], atol=1e-6)


def test_overlays_are_those_of_the_original():
    data = np.load(ORACLE)
    picture, heat = data["gradcam/img_u8"], data["gradcam/class1/heatmap"]
    np.testing.assert_array_equal(masked(picture, heat), data["gradcam/gray_overlay_class1"])
    found = coloured(picture, heat, colours="jet", weights=(0.7, 0.35))
    np.testing.assert_array_equal(found, data["gradcam/color_overlay_class1"])


def test_of_a_constant_kernel_nothing_is_left_over():
    flat = torch.full((1, 3, 5), 0.25)
    assert torch.allclose(upscaled(flat, (7, 4)), torch.full((1, 7, 4), 0.25))
    assert torch.equal(upscaled(flat, (3, 5)), flat)


@pytest.mark.parametrize("name", ["batch norm", "fused norm", "convnext", "resnet18"])
def test_equals_captum(name):
    attr = pytest.importorskip("captum.attr")
    encoder, logits, images = made(name)
    layer = attr.LayerGradCam(logits, part_of(encoder.net, None))
    theirs = layer.attribute(images, target=1, relu_attributions=True)[:, 0]
    ours = grad_cam(encoder, lambda x: logits(x)[:, 1], images)
    torch.testing.assert_close(ours, normalised(theirs.detach()))


@pytest.mark.parametrize(("size", "stride"), [(16, 8), (20, 12), (64, 64)])
def test_occlusion_equals_captum(size, stride):
    attr = pytest.importorskip("captum.attr")
    _, logits, images = made("batch norm")
    grey = images.mean((2, 3), keepdim=True).expand_as(images)
    theirs = attr.Occlusion(logits).attribute(
        images, (1, size, size), strides=(1, stride, stride), baselines=grey, target=1
    )[:, 0]
    ours = occlusion(lambda x: logits(x)[:, 1], images, size=size, stride=stride)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-4)


def test_occlusion_finds_the_only_place_that_counts():
    images = torch.zeros(1, 1, 12, 16)
    images[0, 0, 5, 9] = 1
    drop = occlusion(lambda x: x[:, 0, 5, 9], images, size=4, stride=2)[0]
    assert drop.argmax() in (4 * 16 + 8, 4 * 16 + 9, 5 * 16 + 8, 5 * 16 + 9)
    assert (drop[:, :6] == 0).all() and (drop[8:] == 0).all()


def test_layers_can_be_named():
    encoder, logits, images = made("batch norm")

    def score(x):
        return logits(x)[:, 1]

    assert grad_cam(encoder, score, images, layer="layer2").shape == (2, 8, 8)
    with pytest.raises(UserError, match="no 'layer9'; write one of .*layer4"):
        grad_cam(encoder, score, images, layer="layer9")
    with pytest.raises(UserError, match="not that of a map"):
        as_map(torch.zeros(2, 5), encoder.net, (64, 64))
    other = VisualEncoder(backbone="test_resnet", in_chans=1)
    with pytest.raises(UserError, match="does not depend"):
        grad_cam(nn.ModuleList([encoder, other]), lambda x: (score(x), other(x))[0], images)
    with pytest.raises(UserError, match="does not depend"):
        grad_cam(other, score, images)


def test_energy_and_pointing():
    heat, inside = np.zeros((4, 4)), np.zeros((4, 4), dtype=bool)
    inside[:2, :2] = True
    assert metrics.energy_inside(heat, inside) == metrics.pointing_game(heat, inside) == 0.25
    heat[0, 0], heat[3, 3] = 3, 1
    assert metrics.energy_inside(heat, inside) == 0.75
    assert metrics.energy_inside(heat, inside * 0.5) == 0.375
    assert metrics.pointing_game(heat, inside) == 1
    heat[3, 3] = 3
    assert metrics.pointing_game(heat, inside) == 0.5
    heat[3, 3] = np.nan
    assert metrics.energy_inside(heat, inside) == 1
    with pytest.raises(UserError, match="negative"):
        metrics.energy_inside(heat - 1, inside)
    with pytest.raises(UserError, match="differ in shape"):
        metrics.pointing_game(heat, inside[:2])


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_head_is_logistic_regression(classes):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 5, (60, 4)), np.arange(60) % classes
    weight, bias = metrics.linear_head(x, y, classes=4)
    fit = LogisticRegression(C=1e-2, max_iter=500).fit((x - x.mean(0)) / x.std(0), y)
    score = np.exp(x @ weight.T + bias)
    found = score / score.sum(1, keepdims=True)
    expected = fit.predict_proba((x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(found[:, :classes], expected, atol=1e-6)
    assert (found[:, classes:] == 0).all()
    with pytest.raises(UserError, match="one class"):
        metrics.linear_head(x, np.zeros(60, int), classes=2)


def test_linear_head_of_findings_leaves_out_what_is_unknown():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = np.stack([x[:, 0] > 0, x[:, 1] > 0, np.ones(60)], axis=1).astype(float)
    y[::5, 1] = np.nan
    weight, bias = metrics.linear_head(x, y, classes=3)
    keep = ~np.isnan(y[:, 1])
    fit = LogisticRegression(C=1e-2, max_iter=500).fit(
        ((x - x.mean(0)) / x.std(0))[keep], y[keep, 1]
    )
    assert weight[0].argmax() == 0 and weight[1].argmax() == 1
    np.testing.assert_allclose(weight[1], fit.coef_[0] / x.std(0))
    assert (weight[2] == 0).all() and bias[2] == 0
