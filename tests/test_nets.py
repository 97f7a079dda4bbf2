"""Encoders and heads against the numbers of the original codes, and at the edges."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vilmedic_ssl.errors import ConfigError, Unobtainable
from vilmedic_ssl.losses import barlow_twins
from vilmedic_ssl.nets.heads import DINOHead, Predictor, Projection, Projector, up_to, widths_of
from vilmedic_ssl.nets.resnet import SelectiveKernel
from vilmedic_ssl.nets.vision import VisualEncoder
from vilmedic_ssl.schema import build

ORACLES = Path(__file__).parent / "oracles"


def numbered(oracle, prefix=""):
    """The weights `w00|name`, `w01|name` ... of a TensorFlow oracle, in order."""
    keys = sorted(key for key in oracle if key.startswith(f"{prefix}w"))
    return [torch.tensor(oracle[key]) for key in keys]


def load(module, **tensors):
    """Set the named weights and buffers of a module, and no others."""
    state = module.state_dict()
    assert tensors.keys() <= state.keys()
    module.load_state_dict(state | tensors)


def close(found, expected, tolerance=1e-5):
    expected = torch.tensor(expected)
    torch.testing.assert_close(found.detach(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def simclr_v2():
    oracle = np.load(ORACLES / "seeds_simclr_projection_head.npz")
    w = numbered(oracle)
    head = Projection(projection_dim=4, layers=3, hidden_dim="encoder", batch_norm=True).head(8)
    names = [
        *("1.weight", "1.bias", "0.weight", "4.weight", "4.bias", "3.weight", "7.weight"),
        *("6.weight", "1.running_mean", "1.running_var", "4.running_mean", "4.running_var"),
        *("7.running_mean", "7.running_var"),
    ]
    kernels = {"0.weight", "3.weight", "6.weight"}
    given = {n: v.T if n in kernels else v for n, v in zip(names, w, strict=True)}
    counters = {f"{i}.num_batches_tracked" for i in (1, 4, 7)}
    assert given.keys() | counters == head.state_dict().keys()  # nothing more, the last shift
    load(head, **given)
    return head, oracle


@pytest.mark.parametrize("selector", [0, 1, 2, 3])
def test_the_simclr_v2_head_equals_the_original(simclr_v2, selector):
    head, oracle = simclr_v2
    x = torch.tensor(oracle["x"])
    with torch.no_grad():
        close(head.eval()(x), oracle[f"eval/sel{selector}/proj_out"])
        tapped = up_to(head, selector)(x)
    close(tapped, oracle[f"eval/sel{selector}/sup_head_input"])
    assert tapped.shape[1] == widths_of(head)[selector]


def test_a_training_step_of_the_simclr_v2_head_equals_the_original(simclr_v2):
    """TensorFlow averages the biased variance of a batch, torch the unbiased one: n / (n - 1)."""
    head, oracle = simclr_v2
    x, norms = torch.tensor(oracle["x"]), [head[i] for i in (1, 4, 7)]
    before = [norm.running_var.clone() for norm in norms]
    close(head(x), oracle["train/sel1/proj_out"], 1e-4)
    after = [oracle[key] for key in sorted(oracle) if key.startswith("after_train/")]
    for norm, var, mean_then, var_then in zip(norms, before, after[::2], after[1::2], strict=True):
        close(norm.running_mean, mean_then)
        step = norm.running_var - 0.9 * var
        close(0.9 * var + step * (len(x) - 1) / len(x), var_then)
    close(up_to(head, 1)(x), oracle["train/sel1/sup_head_input"], 1e-4)


def test_the_plain_projection_draws_and_names_as_ever():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4))
    torch.manual_seed(0)
    head = Projection(projection_dim=4).head(6)
    assert list(head.state_dict()) == list(plain.state_dict())
    assert all(map(torch.equal, head.state_dict().values(), plain.state_dict().values()))
    assert [type(layer) for layer in head] == [type(layer) for layer in plain]


def test_a_head_is_cut_behind_any_layer_and_shares_its_weights():
    head = Projection(projection_dim=3, layers=3, hidden_dim=5).head(4)
    assert widths_of(head) == [4, 5, 5, 3]
    assert [len(up_to(head, k)) for k in (0, 1, 2, 3, -1)] == [0, 2, 4, 5, 5]
    assert up_to(head, 1)[0].weight is head[0].weight
    assert up_to(head, 2)(torch.randn(9, 4)).min() >= 0
    for wrong in (-2, 4):
        with pytest.raises(ConfigError, match=rf"^model.selector: {wrong}, but the head has 3"):
            up_to(head, wrong)


def test_projector_equals_barlow_twins():
    oracle = np.load(ORACLES / "seeds_barlow.npz")
    prefix = "projector_8_16_16_12/"
    projector = Projector(widths=(16, 16, 12)).head(8).double()
    start = f"{prefix}state0/projector."
    state = {k.removeprefix(start): torch.tensor(oracle[k]) for k in oracle if k.startswith(start)}
    projector.load_state_dict(state)  # strict: the layers have the same names
    z1, z2 = (projector(torch.tensor(oracle[prefix + x])) for x in ("x1", "x2"))
    for weight, name in ((0.005, "loss"), (0.0, "on_diag")):
        loss = barlow_twins(z1, z2, lambda_=weight)
        assert float(loss.detach()) == pytest.approx(float(oracle[prefix + name]), abs=1e-9)
    start = f"{prefix}state1/projector."
    for key in (k for k in oracle if k.startswith(start)):
        close(projector.state_dict()[key.removeprefix(start)], oracle[key], 1e-9)


def kinds(head):
    return [type(layer).__name__.removesuffix("1d") for layer in head]


def test_projectors_of_the_other_methods():
    byol = Predictor(widths=(16, 4), bias=True).head(8)
    assert kinds(byol) == ["Linear", "BatchNorm", "ReLU", "Linear"]
    assert byol[0].bias is not None and byol[3].bias is None
    siam = Projector(widths=(8, 8, 8), last_norm="plain").head(6)
    assert kinds(siam)[-2:] == ["Linear", "BatchNorm"] and siam[-1].weight is None
    assert all(layer.bias is None for layer in siam if isinstance(layer, nn.Linear))
    assert Projector(widths=(8,), last_norm="batch").head(6)[1].bias is not None
    assert Predictor(widths=(4, 6), last_bias=True).head(6)[-1].bias is not None
    assert kinds(Projector(widths=(3,)).head(6)) == ["Linear"]  # one layer, as 512,512 in others
    assert Projector(widths=(8, 3)).out_dim == Projection(projection_dim=3).out_dim == 3


@pytest.mark.parametrize(
    ("keys", "cls", "where", "message"),
    [
        ({"widths": []}, Projector, "model.projector", r"model.projector.widths: \[\]"),
        ({"widths": [8, 0]}, Predictor, "model.predictor", r"model.predictor.widths: 0; write 1"),
        ({"widths": 8}, Projector, "model.projector", r"model.projector.widths: expected a list"),
        ({"last_norm": "layer"}, Projector, "model.projector", r"model.projector.last_norm"),
        ({"layers": 0}, Projection, "model.projection", r"model.projection.layers: 0"),
        (
            {"hidden_dim": "wide"},
            Projection,
            "model.projection",
            r"expected an integer or 'encoder'",
        ),
        ({"hidden_dim": -1}, Projection, "model.projection", r"model.projection.hidden_dim: -1"),
        ({"prototypes": 0}, DINOHead, "model.head", r"model.head.prototypes: 0"),
    ],
)
def test_wrong_heads_are_refused(keys, cls, where, message):
    with pytest.raises(ConfigError, match=message):
        build(keys, cls=cls, where=where)


def test_heads_are_made_from_yaml():
    assert widths_of(build({"widths": [8, 3]}, cls=Projector).head(5)) == [5, 8, 3]
    keys = {"layers": 3, "hidden_dim": "encoder", "batch_norm": True}
    assert widths_of(build(keys, cls=Projection).head(16)) == [16, 16, 16, 128]


@pytest.fixture
def dino():
    torch.manual_seed(0)
    return DINOHead(hidden_dim=16, bottleneck_dim=6, prototypes=10).head(8)


def test_dino_gives_cosines_with_prototypes(dino):
    x = torch.randn(5, 8)
    weight = dino.prototypes.weight
    narrow = nn.functional.normalize(dino.mlp(x), dim=1)
    expected = narrow @ (weight / weight.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(dino(x), expected)
    torch.testing.assert_close(dino.bottleneck(x).norm(dim=1), torch.ones(5))
    assert kinds(dino.mlp) == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    with torch.no_grad():  # the length of a prototype is worth nothing
        weight *= 3
    torch.testing.assert_close(dino(x), expected)
    assert 0.01 < weight.std() / 3 < 0.03 and not dino.mlp[0].bias.any()


def test_dino_freezes_its_prototypes_but_keeps_them_in_the_graph(dino):
    x = torch.randn(5, 8, requires_grad=True)
    assert torch.equal(dino(x), dino(x, frozen=True))
    dino(x, frozen=True).square().sum().backward()
    assert dino.prototypes.weight.grad is not None and not dino.prototypes.weight.grad.any()
    assert dino.mlp[0].weight.grad.any() and x.grad.any()
    dino(x).square().sum().backward()
    assert dino.prototypes.weight.grad.any()


def test_dino_is_float32_in_mixed_precision(dino):
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert dino.mlp(x).dtype == torch.bfloat16
        assert dino(x).dtype == dino.bottleneck(x).dtype == torch.float32


@pytest.mark.parametrize("stride", [1, 2])
def test_selective_kernels_equal_the_original(stride):
    oracle = np.load(ORACLES / "seeds_simclr_sk_conv.npz")
    x = torch.tensor(oracle["x_nhwc"]).permute(0, 3, 1, 2)
    w = numbered(oracle, f"s{stride}/")
    names = [
        *("streams.0.weight", "streams.1.weight", "streams.1.bias", "mixing.0.weight"),
        *("mixing.1.weight", "mixing.1.bias", "mixing.3.weight", "streams.1.running_mean"),
        *("streams.1.running_var", "mixing.1.running_mean", "mixing.1.running_var"),
    ]
    given = {n: v.permute(3, 2, 0, 1) if v.dim() == 4 else v for n, v in zip(names, w, strict=True)}
    module = SelectiveKernel(5, 4, stride)
    load(module, **given)
    with torch.no_grad():
        close(module.eval()(x).permute(0, 2, 3, 1), oracle[f"s{stride}/eval_out"])
        close(module.train()(x).permute(0, 2, 3, 1), oracle[f"s{stride}/train_out"], 1e-4)


@pytest.mark.parametrize("stem", ["standard", "small", "cifar"])
def test_encoders_of_before_draw_as_ever(stem):
    torch.manual_seed(0)
    plain: nn.Module = timm.create_model("resnet18", num_classes=0, in_chans=1)
    if stem != "standard":
        plain.conv1 = nn.Conv2d(1, 64, 3, 2 if stem == "small" else 1, 1, bias=False)
        nn.init.kaiming_normal_(plain.conv1.weight, mode="fan_out", nonlinearity="relu")
    torch.manual_seed(0)
    found = VisualEncoder(backbone="resnet18", stem=stem, in_chans=1).net.state_dict()
    assert list(found) == list(plain.state_dict())
    assert all(map(torch.equal, found.values(), plain.state_dict().values()))


def millions(**keys):
    with torch.device("meta"):
        return sum(p.numel() for p in VisualEncoder(**keys).parameters()) / 1e6


@pytest.mark.parametrize(
    ("depth", "width", "selective", "published"),  # Chen et al. 2020b, table 1
    [
        *((50, 1, False, 24), (50, 1, True, 35), (50, 2, False, 94), (50, 2, True, 140)),
        *((101, 1, False, 43), (101, 2, True, 257), (152, 1, True, 89), (152, 3, True, 795)),
    ],
)
def test_parameter_counts_are_those_of_the_paper(depth, width, selective, published):
    keys = {"backbone": f"resnet{depth}", "width": width, "selective_kernels": selective}
    assert round(millions(**keys)) == published


FORMS = [
    {"backbone": "resnet18", "width": 2},
    {"backbone": "resnet18", "width": 3, "in_chans": 1},
    {"backbone": "resnet18", "stem": "deep"},
    {"backbone": "resnet18", "stem": "deep", "width": 2, "in_chans": 1},
    {"backbone": "resnet18", "stem": "small", "width": 2},
    {"backbone": "resnet18", "stem": "cifar", "width": 2},
    {"backbone": "resnet50", "selective_kernels": True},
    {"backbone": "resnet50", "selective_kernels": True, "stem": "small", "in_chans": 1},
    {"backbone": "resnet50", "selective_kernels": True, "stem": "cifar"},
]
STRIDE = {"standard": 4, "deep": 4, "small": 2, "cifar": 1}  # of the map that layer1 gets


@pytest.mark.parametrize("keys", FORMS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_every_form_of_a_resnet_has_the_shapes_it_tells(keys):
    size, width = 32, keys.get("width", 1)
    x = torch.randn(2, keys.get("in_chans", 3), size, size)
    expansion = 4 if keys["backbone"] == "resnet50" else 1
    encoder = VisualEncoder(permute="no_permute", **keys)
    stages = {}
    for i in range(1, 5):
        encoder.net.get_submodule(f"layer{i}").register_forward_hook(
            lambda module, given, out, i=i: stages.update({i: out.shape})
        )
    with torch.no_grad():
        vector = encoder.vector(x)
    assert vector.shape == (2, encoder.out_dim) and encoder.out_dim == 512 * width * expansion
    for i, shape in stages.items():
        side = max(size // (STRIDE[keys.get("stem", "standard")] * 2 ** (i - 1)), 1)
        assert shape == (2, 64 * 2 ** (i - 1) * width * expansion, side, side)


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4", "features", "avgpool"])
@pytest.mark.parametrize("form", [FORMS[3], FORMS[7]], ids=["wide", "selective"])
def test_every_output_layer_can_be_had(form, layer):
    encoder = VisualEncoder(output_layer=layer, **form)
    found = encoder.vector(torch.randn(2, 1, 32, 32))
    assert found.shape == (2, encoder.out_dim)
    found.sum().backward()
    grads = [p.grad is not None for name, p in encoder.named_parameters()]
    assert all(grads)  # what stands behind the layer is gone


def test_the_deep_stem_is_half_half_full_and_shortcuts_average():
    net = VisualEncoder(backbone="resnet50", selective_kernels=True).net
    convs = [layer for layer in net.conv1 if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.stride[0]) for c in convs] == [(32, 2), (32, 1), (64, 1)]
    assert isinstance(net.layer2[0].downsample[0], nn.AvgPool2d)
    assert isinstance(net.maxpool, nn.MaxPool2d)
    assert net.layer2[0].downsample[1].kernel_size == (1, 1)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)  # stride 1: the border averages what there is
    found = net.layer1[0].downsample[0](x)
    assert found.shape == x.shape
    assert found[0, 0, 0, 0] == x[0, 0, :2, :2].mean() and found[0, 0, 3, 3] == x[0, 0, 3, 3]
    assert found[0, 0, 0, 3] == x[0, 0, :2, 3].mean()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backbone": "resnet18", "width": 0}, "cnn.width: 0; write 1"),
        ({"backbone": "test_vit", "width": 2}, "cnn.width: test_vit is no plain ResNet"),
        ({"backbone": "resnet50d", "stem": "deep"}, "cnn.stem: resnet50d is no plain ResNet"),
        ({"backbone": "test_vit", "selective_kernels": True}, "cnn.selective_kernels: test_vit"),
        ({"backbone": "resnet18", "selective_kernels": True}, "resnet18 has no bottleneck blocks"),
        ({"backbone": "test_vit", "stem": "small"}, "cnn.stem: test_vit has no ResNet stem"),
        ({"backbone": "resnet18", "width": 2, "pretrained": True}, "cnn.width: the published"),
        ({"backbone": "resnet18", "width": 2, "options": {"channels": [1]}}, "cnn.options"),
        ({"backbone": "test_vit", "options": {"depth": -1}}, "cnn.options: test_vit cannot"),
        ({"backbone": "test_vit", "options": {"depth": -1}, "pretrained": True}, "cnn.options"),
        (
            {"backbone": "resnet50", "selective_kernels": True, "options": {"cardinality": 2}},
            "cnn.selective_kernels: .* leave cardinality",
        ),
    ],
)
def test_encoders_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        VisualEncoder(**keys)


TINY = {
    "test_resnet": {},
    "test_vit": {"img_size": 32},
    "test_efficientnet": {},
    "test_convnext": {},
    "swin_tiny_patch4_window7_224": {
        **{"img_size": 32, "window_size": 4, "embed_dim": 12},
        **{"depths": (1, 1), "num_heads": (1, 2)},
    },
    "mobilenetv3_small_050": {},  # widens behind the pooling
}


@pytest.mark.parametrize("output_layer", ["avgpool", "features"])
@pytest.mark.parametrize("backbone", TINY)
def test_out_dim_of_every_kind_of_encoder(backbone, output_layer):
    encoder = VisualEncoder(backbone=backbone, options=TINY[backbone], output_layer=output_layer)
    with torch.no_grad():
        found = encoder.eval().vector(torch.randn(2, 3, 32, 32))
    assert found.shape == (2, encoder.out_dim)


@pytest.mark.parametrize(
    ("backbone", "layer", "shape"),
    [
        ("test_vit", "blocks.2", (2, 17, 64)),
        ("test_efficientnet", "blocks.1", (2, 256, 24)),
        ("test_convnext", "stages.1", (2, 64, 32)),
        ("test_resnet", "layer3", (2, 16, 192)),
    ],
)
def test_any_part_of_a_network_can_be_the_last(backbone, layer, shape):
    options = {"img_size": 64} if "vit" in backbone else {}
    net = VisualEncoder(backbone=backbone, output_layer=layer, in_chans=1, options=options)
    found = net(torch.rand(2, 1, 64, 64))
    assert found.shape == shape and net.out_dim == shape[-1]
    found.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())  # nothing behind it is left over


@pytest.mark.parametrize("output_layer", ["layer3", "features", "avgpool"])
def test_the_vector_is_the_same_however_positions_are_arranged(output_layer):
    made, images = [], torch.randn(3, 3, 64, 64)
    for permute in ("batch_first", "spatial_first", "no_permute"):
        torch.manual_seed(0)
        net = VisualEncoder(backbone="test_resnet", output_layer=output_layer, permute=permute)
        made.append(net.eval().vector(images))
    assert made[0].shape == (3, net.out_dim)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_a_part_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match=r"no 'layer9'; write one of avgpool.*blocks\.0"):
        VisualEncoder(backbone="test_vit", output_layer="layer9", options={"img_size": 64})


def test_published_weights_that_cannot_be_had(monkeypatch):
    import timm

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(Unobtainable, match=r"weights of resnet18 cannot be had here \(OSError\)"):
        VisualEncoder(backbone="resnet18", pretrained=True)
