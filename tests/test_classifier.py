"""The classifier: what it learns from, what it keeps frozen, and what it answers."""

import math

import numpy as np
import pytest
import resume
import torch
import yaml
from methods import node_of

from vilmedic_ssl import build
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.run import read_log
from vilmedic_ssl.experiment import train
from vilmedic_ssl.experiment.data import balanced_weights, pin_classes, take_classes
from vilmedic_ssl.nets.freezing import describe

RESNET = {"backbone": "resnet18", "in_chans": 1}


def made(encoder="batch norm", **keys):
    torch.manual_seed(0)
    return build(node_of("Classifier", encoder, **keys))


def learned(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# Parameters of resnet18 with one input channel: stem 3,264, layer1 147,968, layer2 525,568,
# layer3 2,099,712, layer4 8,393,728; a head of four classes 2,052.
RESNET_COUNTS = [
    ({"last_n_layers": 0}, 2_052),
    ({"last_n_layers": 1}, 8_395_780),
    ({"last_n_layers": 2}, 10_495_492),
    ({"last_n_layers": 3}, 11_021_060),
    ({"last_n_layers": 4}, 11_169_028),
    ({"blocks": 4}, 2_052),
    ({"blocks": 3}, 8_395_780),
    ({"blocks": 1}, 11_021_060),
    ({"blocks": 0}, 11_169_028),
    ({}, 11_172_292),
    ({"names": ["cnn.net.layer?.*"]}, 3_264 + 2_052),
    ({"blocks": 0, "names": ["head.bias"]}, 11_169_024),
]


@pytest.fixture(scope="module")
def resnet():
    return made(classes=4, cnn={"proto": "CNN", **RESNET})


@pytest.mark.parametrize(("freeze", "count"), RESNET_COUNTS, ids=lambda x: str(x))
def test_as_many_parameters_learn_as_were_asked_for(resnet, freeze, count):
    """Off by one block is the defect of a published comparison: its "layer4 + head" was the head
    alone, 2,052 parameters.
    """
    from vilmedic_ssl.nets.freezing import Freeze

    resnet.requires_grad_(True)
    Freeze(**freeze).apply(resnet, resnet.parts())
    assert learned(resnet) == count


@pytest.mark.parametrize(
    ("backbone", "options", "names"),
    [
        ("resnet18", {}, ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("vit_tiny_patch16_224", {"depth": 3}, ["stem", "blocks.0", "blocks.1", "blocks.2"]),
        ("test_efficientnet", {}, ["stem", *(f"blocks.{i}" for i in range(5))]),
        ("convnext_atto", {}, ["stem", *(f"stages.{i}" for i in range(4))]),
    ],
)
def test_every_parameter_of_an_encoder_is_in_one_part(backbone, options, names):
    model = made(cnn={"proto": "CNN", "backbone": backbone, "options": options})
    parts = model.parts()
    assert [part.name for part in parts] == names
    owned = [name for part in parts for name in part.parameters]
    assert sorted(owned) == sorted(n for n, _ in model.named_parameters() if "head." not in n[:5])
    if "vit" in backbone:
        assert {"cnn.net.cls_token", "cnn.net.pos_embed"} < set(parts[0].parameters)
        assert "cnn.net.norm.weight" in parts[-1].parameters


@pytest.mark.parametrize(("layer", "blocks"), [("layer2", 2), ("layer1", 1)])
@pytest.mark.parametrize("stem", ["standard", "deep"])
def test_a_cut_resnet_has_the_blocks_that_are_left(layer, blocks, stem):
    whole = made(cnn={"proto": "CNN", **RESNET, "stem": stem}).parts()
    cut = made(cnn={"proto": "CNN", **RESNET, "stem": stem, "output_layer": layer}).parts()
    sizes = [len(part.parameters) for part in cut]
    assert sizes == [len(part.parameters) for part in whole[: blocks + 1]]


def test_what_is_frozen_does_not_move_nor_its_batch_norm():
    model = made(freeze={"last_n_layers": 1}).train()
    modules = dict(model.named_modules())
    assert not modules["cnn.net.bn1"].training and not modules["cnn.net.layer3"].training
    assert modules["cnn.net.layer4"].training and modules["head"].training
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.rand(6, 1, 1, 32, 32), labels=torch.arange(6) % 3)["loss"].backward()
    optimizer.step()
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved and all(name.startswith(("cnn.net.layer4.", "head.")) for name in moved)
    assert "cnn.net.layer4.0.bn1.running_mean" in moved
    told = describe(model, model.parts())
    head = sum(p.numel() for p in model.head.parameters())
    assert told.startswith("frozen: stem ") and told.endswith(f"head {head:,}")
    assert describe(made(), made().parts()) == ""


@pytest.mark.parametrize(
    ("freeze", "sentence"),
    [
        ({"blocks": 5}, "model.freeze.blocks: 5, but this encoder has 4 blocks; write 0 to 4"),
        ({"last_n_layers": -1}, "model.freeze.last_n_layers: -1"),
        ({"blocks": 1, "last_n_layers": 1}, "keep one"),
        ({"names": ["cnn.net.layr1.*"]}, r"no parameter is called 'cnn.net.layr1.\*'.*did you"),
    ],
)
def test_what_cannot_be_frozen_is_one_sentence(freeze, sentence):
    with pytest.raises(ConfigError, match=sentence):
        made(freeze=freeze)


def test_layers_of_a_projection_stay_under_the_head():
    """SimCLRv2: the first projection layer belongs to the encoder, with the names it had there."""
    projection = {"projection_dim": 8, "layers": 3, "hidden_dim": "encoder", "batch_norm": True}
    pretrained = build(node_of("SimCLR", "batch norm", projection=projection))
    model = made(projection=projection, selector=1)
    of_layer = {n: p.shape for n, p in model.named_parameters() if n.startswith("projection.")}
    theirs = {n: p.shape for n, p in pretrained.named_parameters()}
    assert len(of_layer) == 3 and of_layer.items() <= theirs.items()
    assert model.parts()[-1].parameters[-3:] == list(of_layer)
    assert learned(made(projection=projection, selector=1, freeze={"last_n_layers": 0})) == sum(
        p.numel() for p in model.head.parameters()
    )
    narrow = made(projection=projection, selector=-1)
    assert narrow.eval().encode(torch.rand(2, 1, 32, 32))["encoder"].shape == (2, 8)
    with pytest.raises(ConfigError, match=r"model\.selector: 1 layers of which projection"):
        made(selector=1)


@pytest.mark.parametrize("task", ["classes", "findings", "ordinal"])
def test_scores_are_probabilities(task):
    model = made("no norm", task=task, classes=4).eval()
    out = model.encode(torch.rand(5, 1, 32, 32))
    assert out["scores"].shape == out["visual"].shape == (5, 4)
    assert ((out["scores"] >= 0) & (out["scores"] <= 1)).all()
    if task != "findings":
        assert torch.allclose(out["scores"].sum(1), torch.ones(5))
        assert torch.allclose(out["visual"].softmax(1), out["scores"])
    level = made("no norm", task=task, classes=4, zero_head=True).eval()
    expected = 0.5 if task == "findings" else 0.25
    assert torch.allclose(level.encode(torch.rand(2, 1, 32, 32))["scores"], torch.tensor(expected))


def test_a_zero_head_starts_at_chance():
    model = made(zero_head=True)
    out = model(torch.rand(6, 1, 1, 32, 32), labels=torch.arange(6) % 3)
    assert float(out["loss"].detach()) == pytest.approx(out["chance"]) == pytest.approx(math.log(3))


class Data:
    label_names = ["a", "b", "c"]

    def __init__(self, labels):
        self.labels = labels


def test_what_the_labels_say_is_written_into_the_config():
    labels = np.array([0, 0, 0, 1, -1, -1, 0, 1])
    node = {"proto": "Classifier", "classes": None, "task": None}
    node["loss"] = {"class_weights": "balanced"}
    opened = {**node, "loss": dict(node["loss"])}
    pin_classes(node, Data(labels))
    assert node["classes"] == 3 and node["task"] == "classes"
    assert node["loss"]["class_weights"] == [6 / 12, 6 / 6, 0.0]  # known images only
    take_classes(opened, node)
    assert opened == node
    findings = np.array([[1, 0, np.nan], [0, 0, 1], [0, 0, 1]], dtype=np.float32)
    assert balanced_weights(findings, 3) == [2.0, 0.0, 0.0]
    with pytest.raises(UserError, match=r"model\.task: classes, but the data has several"):
        pin_classes({**node, "classes": None}, Data(findings))
    with pytest.raises(UserError, match=r"model\.classes: 4, but the data has 3"):
        pin_classes({**node, "classes": 4}, Data(labels))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"loss": {"class_weights": [1.0]}}, "there are 1 numbers for 3 classes; write 3, one per"),
        (
            {"loss": {"class_weights": "balanced"}},
            "balanced for 3 classes is counted from a training split",
        ),
        (
            {"loss": {"class_weights": "balansed"}},
            "list of numbers or 'balanced', .*mean 'balanced'",
        ),
        ({"loss": {"class_weights": [0, 0, 0]}}, "not all of them 0"),
        ({"loss": {"label_smoothing": 1.0}}, r"share in \[0, 1\)"),
        ({"classes": 1, "task": "ordinal"}, "2 or more"),
    ],
)
def test_mistakes_are_one_sentence(keys, sentence):
    with pytest.raises(ConfigError, match=sentence):
        made(**keys)


def test_training_tells_and_keeps_what_it_did(tiny, capsys):
    """One short training with everything on: scores while it trains, rates by depth, ordered
    classes, and the saved config that says all of it.
    """
    config = resume.config_of("Supervised", tiny("all"))  # the name of earlier versions
    config["model"] |= {
        "task": "ordinal",
        "freeze": {"blocks": 0},
        "loss": {"class_weights": "balanced", "label_smoothing": 0.05},
    }
    config["trainor"] |= {"layer_decay": 0.5, "lr_scales": {"head.*": 2.0}, "max_steps": 2}
    config["validator"]["metrics"] = ["accuracy", "balanced_accuracy", "auroc"]
    folder = train(config)
    told = capsys.readouterr().err
    assert "frozen: stem " in told and "; learn: layer1 " in told
    assert "weights x 0.5:" in told and "weights x 0.0625:" in told
    scores = [r for r in read_log(folder / "log_0.jsonl") if r["kind"] == "eval"][-1]["scores"]
    assert {"accuracy", "balanced_accuracy", "auroc"} <= set(scores)
    saved = yaml.safe_load((folder / "config_0.yml").read_text())["model"]
    assert saved["classes"] == len(saved["loss"]["class_weights"]) == 6
    content = checkpoint.read(folder / "last_0.pth")
    assert content["model"]["head.bias"].shape == (5,)
    sampled = {**config, "ckpt": "last", "trainor": {**config["trainor"], "sampling": "balanced"}}
    with pytest.raises(UserError, match=r"with shuffle as trainor\.sampling, which its state"):
        train(sampled)
    config["trainor"]["lr_scales"] = None
    with pytest.raises(UserError, match=r"trainor\.lr_scales, which its state"):
        train({**config, "ckpt": "last"})


def test_ordered_classes_learn_their_order():
    torch.manual_seed(0)
    head = build(node_of("Classifier", "no norm", task="ordinal", classes=4)).head
    value = torch.linspace(-2, 2, 64)[:, None]
    x = value.expand(-1, head.weight.shape[1]).contiguous()
    from vilmedic_ssl.losses import ordinal_entropy
    from vilmedic_ssl.losses.labels import ordinal_logits

    labels = (value[:, 0] > -1).long() + (value[:, 0] > 0).long() + (value[:, 0] > 1).long()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        ordinal_entropy(head(x), labels).backward()
        optimizer.step()
    assert (ordinal_logits(head(x)).argmax(1) == labels).float().mean() > 0.9
    assert (head.bias[1:] < head.bias[:-1]).all()
