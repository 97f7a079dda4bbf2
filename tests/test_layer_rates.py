"""Learning rates by depth and by name."""

import pytest
from methods import node_of

from vilmedic_ssl import build
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.executors.optim import Pace, optimizer_of, parameter_groups
from vilmedic_ssl.executors.settings import TrainorSettings

KEYS = {"optimizer": "AdamW", "optim_params": {"lr": 0.1}, "batch_size": 8, "epochs": 1}


def paced(model, **keys):
    settings = TrainorSettings(**{**KEYS, **keys})
    return Pace(optimizer_of(model, settings), settings)


def rates_of(model, pace):
    """Learning rate by parameter name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = pace.optimizer.param_groups
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    ("encoder", "depth"),
    [
        ("batch norm", {"conv1": 5, "bn1": 5, "layer1": 4, "layer2": 3, "layer3": 2, "layer4": 1}),
        ("no norm", {"cls_token": 7, "pos_embed": 7, "patch_embed": 7, "norm": 1}),
    ],
)
def test_rates_fall_from_the_head_to_the_stem(encoder, depth):
    model = build(node_of("Classifier", encoder))
    if encoder == "no norm":
        depth = {**depth, **{f"blocks.{i}": 6 - i for i in range(6)}}
    found = rates_of(model, paced(model, layer_decay=0.5))
    assert len(found) == len(list(model.parameters()))
    for name, rate in found.items():
        words = name.removeprefix("cnn.net.").split(".")
        at = depth.get(words[0], depth.get(".".join(words[:2]), 0))
        assert rate == 0.1 * 0.5**at, name
        assert (at == 0) == name.startswith("head."), name


def test_factors_by_name_multiply():
    model = build(node_of("Classifier", "batch norm"))
    scales = {"head.*": 10.0, "*.bias": 0.5}
    pace = paced(model, lr_scales=scales, lr_biases=0.02)
    found = rates_of(model, pace)
    assert found["head.weight"] == 1.0 and found["head.bias"] == pytest.approx(0.02 * 10 * 0.5)
    assert found["cnn.net.layer1.0.conv1.weight"] == 0.1 and found["cnn.net.bn1.bias"] == 0.01
    told = pace.describe().splitlines()
    assert told[1].startswith("  weights: ") and told[2].startswith("  weights x 10: 1 tensors")
    pace.set(0.1, 1, 2)
    assert pace.optimizer.param_groups[0]["lr"] == pytest.approx(0.01) and pace.base == 0.1


def test_the_first_rate_is_told_without_its_factor():
    model = build(node_of("Classifier", "batch norm", freeze={"names": ["head.*"]}))
    assert paced(model, layer_decay=0.5).base == 0.1
    assert paced(model, layer_decay=0.5).rates[0] == 0.05


def test_without_these_keys_groups_are_as_they_were():
    model = build(node_of("Classifier", "batch norm"))
    groups = parameter_groups(model, 0.1)
    plain = [p for p in model.parameters() if p.ndim <= 1]
    assert [g["name"] for g in groups] == ["weights", "biases and norms"]
    keys = ["name", "params", "weight_decay", "adapt", "decays", "fixed_rate"]
    assert all(list(group) == keys for group in groups)
    assert all(a is b for a, b in zip(groups[1]["params"], plain, strict=True))
    with_one = parameter_groups(model, 0.1, layer_decay=1.0)
    for group, same in zip(groups, with_one, strict=True):
        assert {**group, "factor": 1.0} == same


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"layer_decay": 0.0}, r"layer_decay: 0\.0; write a factor above 0"),
        ({"layer_decay": 1.5}, r"layer_decay: 1\.5"),
        ({"lr_scales": {"head.*": 0.0}}, r"lr_scales\.head\.\*: 0\.0; write a factor above 0"),
        ({"lr_scales": {"haed.weight": 2.0}}, "called 'haed.weight'.*did you mean 'head.weight'"),
    ],
)
def test_mistakes_are_one_sentence(keys, sentence):
    model = build(node_of("Classifier", "batch norm"))
    with pytest.raises(ConfigError, match=sentence):
        paced(model, **keys)


def test_an_encoder_of_unknown_blocks_is_one_sentence(monkeypatch):
    model = build(node_of("Classifier", "batch norm"))
    monkeypatch.setattr(type(model.cnn.net), "group_matcher", lambda self, coarse: {})
    with pytest.raises(ConfigError, match="blocks of this encoder are not known"):
        paced(model, layer_decay=0.5)
    with pytest.raises(ConfigError, match=r"freeze\.blocks: the blocks of this encoder are not"):
        build(node_of("Classifier", "batch norm", freeze={"blocks": 0}))
