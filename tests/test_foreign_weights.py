"""Files of weights that other programs write: every tensor of the right network, or a sentence."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import itertools
import pathlib
import random

import numpy as np
import pytest
import timm
import torch
from methods import TEXT, node_of
from tiny_bert import save_bert
from torch import nn

from vilmedic_ssl.cli import main
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.init_weights import start_from
from vilmedic_ssl.executors.init_weights_read import read_weights
from vilmedic_ssl.executors.init_weights_tower import find_tower
from vilmedic_ssl.nets.text import TextEncoder
from vilmedic_ssl.schema import build

RESNET = {"backbone": "test_resnet", "in_chans": 3}
VIT = {"backbone": "test_vit", "in_chans": 3, "options": {"img_size": 32}}


def drawn(name="test_resnet", **keys):
    """The state dict of a network with weights and statistics that no fresh one has."""
    with torch.no_grad():
        state = timm.create_model(name, num_classes=3, **keys).state_dict()
        return {k: torch.rand_like(t) if t.is_floating_point() else t + 3 for k, t in state.items()}


def model_of(encoder=RESNET, name="SimCLR", **more):
    return build({**node_of(name, "batch norm", **more), "cnn": {"proto": "CNN", **encoder}})


def assert_filled(model, weights):
    for key, tensor in model.state_dict().items():
        if key.startswith("cnn.net."):
            torch.testing.assert_close(
                tensor, weights[key.removeprefix("cnn.net.")].to(tensor.dtype)
            )


def pre(prefix, named):
    return {prefix + name: value for name, value in named.items()}


def inside(word, named):
    """A wrapper's word behind the first word of each name: `layer1.module.0.conv1.weight`."""
    return {f"{k.split('.')[0]}.{word}.{k.partition('.')[2]}": v for k, v in named.items()}


class Settings(dict):
    """A mapping of another program."""


class Kind(enum.Enum):
    """A choice of another program."""

    A = 1


class Row(list):
    """A list of another program."""


ONE = drawn()
OTHER = drawn()
ALONE = {
    "plain": ONE,
    "ddp": {"epoch": 3, "state_dict": pre("module.", ONE), "best_acc1": torch.tensor(71.3)},
    "score first": {"best_acc1": torch.tensor(71.3), "state_dict": ONE},
    "scores of many names": {**{f"s{i}": torch.rand(2) for i in range(99)}, "state_dict": ONE},
    "mean and std": {"mean": torch.zeros(3), "model": ONE, "std": torch.ones(3)},
    "mean as an image": {"mean": torch.zeros(1, 3, 1, 1), "model": ONE},
    "optimizer": {
        "optimizer": {"state": {0: {"exp_avg": torch.rand(9, 9)}, 1: {"step": torch.tensor(1.0)}}},
        "opt_state": {"conv1.weight": torch.rand(16, 3, 3, 3)},
        "model": ONE,
    },
    "vissl": {"classy_state_dict": {"base_model": {"model": {"trunk": pre("_blocks.", ONE)}}}},
    "eight entries deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": ONE}}}}}}},
    "lightning": {"state_dict": pre("model.net.encoder.", ONE), "hyper_parameters": {"lr": 1}},
    "compiled in ddp": pre("module._orig_mod.", ONE),
    "compiled parts": inside("_orig_mod", ONE),
    "sharded parts": inside("_fsdp_wrapped_module", ONE),
    "ddp inside": {"state_dict": pre("learner.module.net.", ONE)},
    "swa": {**pre("module.", ONE), "n_averaged": torch.tensor(7)},
    "half": {k: v.half() if v.is_floating_point() else v for k, v in ONE.items()},
    "bfloat": {k: v.bfloat16() if v.is_floating_point() else v for k, v in ONE.items()},
    "settings": {"state_dict": ONE, "config": Settings(a=1)},
    "weights in a mapping of theirs": {"model": Settings(ONE)},
    "default mapping": {"model": collections.defaultdict(int, ONE)},
    "namespace": {"args": argparse.Namespace(lr=0.1, x=argparse.Namespace()), "model": ONE},
    "namespace first": collections.OrderedDict(args=argparse.Namespace(), state_dict=ONE),
    "a kind of theirs": {"kind": Kind.A, "keyed": {Kind.A: 1}, "model": ONE},
    "a row of theirs": {"row": Row([1, Row()]), "queue": collections.deque([1, 2]), "model": ONE},
    "dates": {
        "at": datetime.datetime(2026, 1, 1),
        "path": pathlib.PurePosixPath("x"),
        "model": ONE,
    },
    "a function": {"f": np.mean, "class": Settings, "set": frozenset([1]), "model": ONE},
    "parameters": {k: nn.Parameter(v, requires_grad=False) for k, v in ONE.items()},
    "numbers of numpy": {"best": np.float64(3), "at": np.arange(3), "model": ONE},
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("zipped", [True, False])
def test_one_network_in_any_layout(name, zipped, tmp_path):
    file = tmp_path / "w.pth"
    torch.save(ALONE[name], file, _use_new_zipfile_serialization=zipped)
    model = model_of()
    start_from(model, file)
    expected = ALONE["half"] if name == "half" else ALONE["bfloat"] if name == "bfloat" else ONE
    assert_filled(model, expected)


PAIRS = {  # (taken, left)
    "dino": ("teacher.backbone.", "student.module.backbone."),
    "lightly dino": ("teacher_backbone.", "student_backbone."),
    "teacher and model": ("teacher.", "model."),
    "momentum teacher": ("momentum_teacher.", "student."),
    "moco": ("encoder_q.", "encoder_k."),
    "names for moco": ("query_encoder.", "key_encoder."),
    "short names": ("q_encoder.", "k_encoder."),
    "moco v3": ("base_encoder.", "momentum_encoder."),
    "solo": ("backbone.", "momentum_backbone."),
    "lightly": ("backbone.", "backbone_momentum."),
    "byol": ("online_net.backbone.", "target_net.backbone."),
    "jepa": ("encoder.", "target_encoder."),
    "average": ("model.", "model_ema."),
}


@pytest.mark.parametrize("name", PAIRS)
def test_of_two_towers_the_same_one_in_any_order(name, tmp_path):
    """In one state dict, or in entries; the other one is named, and can be had."""
    taken, left = PAIRS[name]
    entries = [pre(taken, ONE), pre(left, OTHER)]
    layouts = [a | b for a, b in itertools.permutations(entries)]
    one, other = (
        {n.split(".")[0]: pre(n.partition(".")[2], w)} for n, w in ((taken, ONE), (left, OTHER))
    )
    layouts += [] if name == "average" else [one | other, other | one]
    for content in layouts:
        file = tmp_path / "w.pth"
        torch.save({"state_dict": content, "epoch": 1}, file)
        model = model_of()
        start = start_from(model, file)
        assert_filled(model, ONE)
        rival = left.replace("module.", "")
        remedy = f"init_from={file}::{rival}"
        assert remedy in start.describe() and f'not "{rival}*"' in start.describe()
        start_from(model, remedy.removeprefix("init_from="))
        assert_filled(model, OTHER)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "swa_model"])
def test_a_moving_average_in_an_entry_of_its_own_is_taken(key, tmp_path):
    for content in ({"model": OTHER, key: ONE}, {key: pre("module.", ONE), "model": OTHER}):
        torch.save(content, tmp_path / "w.pth")
        model = model_of()
        message = start_from(model, tmp_path / "w.pth").describe()
        assert_filled(model, ONE)
        assert f'the moving average in "{key}" is taken, not "model"' in message
        start_from(model, f"{tmp_path / 'w.pth'}::model.")
        assert_filled(model, OTHER)


def test_networks_that_no_name_tells_apart_are_warned_of(tmp_path, capsys):
    entries = list({**pre("left.", ONE), **pre("right.", OTHER)}.items())
    for _ in range(3):
        random.Random(0).shuffle(entries)
        torch.save(dict(entries), tmp_path / "w.pth")
        model = model_of()
        start_from(model, tmp_path / "w.pth")
        assert_filled(model, ONE)
        message = " ".join(capsys.readouterr().err.split())
        assert "holds this network several times" in message and "::right." in message
    with pytest.raises(UserError, match="begins with 'middle'; they begin with left, right"):
        read_weights(f"{tmp_path / 'w.pth'}::middle")


def test_a_head_or_a_counter_more_does_not_decide_between_towers(tmp_path):
    """The student has them all, the teacher lacks what batch norm counts, and has no head."""
    teacher = {k: v for k, v in ONE.items() if "num_batches" not in k and "fc" not in k}
    torch.save({**pre("student.", OTHER), **pre("teacher.", teacher)}, tmp_path / "w.pth")
    model = model_of()
    start_from(model, tmp_path / "w.pth")
    assert torch.equal(model.cnn.net.layer1[0].conv1.weight, ONE["layer1.0.conv1.weight"])


def test_blocks_of_dinov2_in_chunks(tmp_path):
    weights = drawn("test_vit", img_size=32)
    chunked = {
        f"blocks.{i % 2}.{k.removeprefix('blocks.')}" if k.startswith("blocks.") else k: v
        for i, (k, v) in enumerate(weights.items())
    }
    torch.save({"teacher": pre("backbone.", chunked)}, tmp_path / "w.pth")
    model = model_of(VIT)
    start_from(model, tmp_path / "w.pth")
    filled = model.cnn.net.state_dict()
    blocks = [k for k in filled if k.startswith("blocks.")]
    assert len(blocks) > 10 and all(torch.equal(filled[k], weights[k]) for k in blocks)


DEEPER = {
    "blocks of a ResNet": (
        RESNET,
        lambda w: w | {k.replace("layer1.0", "layer1.1"): v for k, v in w.items()},
    ),
    "scales in blocks": (VIT, lambda w: w | {"blocks.0.ls1.gamma": torch.rand(8)}),
    "blocks of a transformer": (
        VIT,
        lambda w: w | {k.replace("blocks.0", "blocks.77"): v for k, v in w.items()},
    ),
    "a layer of a stem": (RESNET, lambda w: w | {"conv1.extra.weight": torch.rand(3)}),
}


@pytest.mark.parametrize("name", DEEPER)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_what_is_left_over_of_the_network_is_named(name, prefix, tmp_path, capsys):
    encoder, more = DEEPER[name]
    weights = more(drawn(encoder["backbone"], **encoder.get("options", {})))
    torch.save(pre(prefix, weights), tmp_path / "w.pth")
    start_from(model_of(encoder), tmp_path / "w.pth")
    message = " ".join(capsys.readouterr().err.split())
    assert "is of a deeper or another network" in message and "have no place in this one" in message
    known = set(drawn(encoder["backbone"], **encoder.get("options", {})))
    assert prefix + next(k for k in weights if k not in known and "num_b" not in k) in message


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_a_network_of_timm_fits_itself_without_a_warning(name, tmp_path, capsys):
    net = timm.create_model(name)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = model_of({"backbone": name})
    start = start_from(model, tmp_path / "w.pth")
    assert not [key for key in start.kept if key.startswith("cnn.")]
    assert "warning" not in capsys.readouterr().err


def test_a_head_that_is_left_over_is_none_of_the_network(tmp_path, capsys):
    weights = ONE | {"decoder.0.weight": torch.rand(3, 3), "head.layer1.weight": torch.rand(2, 2)}
    torch.save(weights, tmp_path / "w.pth")
    start_from(model_of(), tmp_path / "w.pth")
    assert "warning" not in capsys.readouterr().err


def test_blocks_behind_a_cut_are_no_surplus(tmp_path, capsys):
    torch.save(drawn("test_vit", img_size=32), tmp_path / "w.pth")
    start_from(model_of({**VIT, "output_layer": "blocks.0"}), tmp_path / "w.pth")
    torch.save(ONE, tmp_path / "w.pth")
    start_from(model_of({**RESNET, "output_layer": "layer2"}), tmp_path / "w.pth")
    assert "warning" not in capsys.readouterr().err


def test_a_deeper_network_of_ours_is_refused(tmp_path):
    """Where the smaller one finds all its names, too."""
    deep, small = {"backbone": "resnet34"}, model_of({"backbone": "resnet18"})
    content = dict.fromkeys(checkpoint.OF_A_RUN) | {"trained_on": torch.tensor([1])}
    node = {"proto": "SimCLR", "cnn": deep}
    content |= {"model": model_of(deep).state_dict(), "config": {"model": node}}
    checkpoint.write(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"is of a resnet34, .* would be left over \(cnn\.net\.lay"):
        start_from(small, tmp_path / "a.pth")


def test_another_width_is_refused_with_both_shapes(tmp_path):
    torch.save(
        timm.create_model("resnet18", channels=(32, 64, 128, 256)).state_dict(), tmp_path / "w.pth"
    )
    with pytest.raises(UserError, match=r"here cnn.net.layer1\S+ \(64,.*; there layer1\S+ \(32,"):
        start_from(model_of({"backbone": "resnet18"}), tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused_by_name(value, dtype, tmp_path):
    weights = {k: v.clone().to(dtype) if v.is_floating_point() else v for k, v in ONE.items()}
    weights["layer2.0.conv1.weight"].view(-1)[-1:] = value
    torch.save(weights, tmp_path / "w.pth")
    model = model_of()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(UserError, match=r"1 of the \d+ tensors .*\(layer2\.0\.conv1\.weight\)"):
        start_from(model, tmp_path / "w.pth")
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    own = {k: t.clone() for k, t in before.items()}
    own["cnn.net.conv1.0.weight"].view(-1)[0] = value
    with pytest.raises(UserError, match=r"1 tensors hold .*cnn\.net\.conv1\.0\.weight"):
        checkpoint.load_weights(model, own, tmp_path / "w.pth")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


class Worse(Evil):
    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("kind", [Evil, Worse])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(kind, zipped, tmp_path):
    content = {"model": ONE, "args": kind(str(tmp_path / "executed"))}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    try:
        start_from(model_of(), tmp_path / "w.pth")
    except UserError as error:  # torch refuses names of `os` whatever they stand for
        assert kind is Worse and "posix.system" in str(error)
    else:
        assert kind is Evil
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_inside_objects_are_refused(zipped, tmp_path):
    net = timm.create_model("test_resnet")
    for content, message in (
        (net, r"object of timm\.models\.resnet\.ResNet"),
        ({"model": net}, "an object of timm"),
        ({"model": {k: v.numpy() for k, v in ONE.items()}}, "an object of numpy"),
    ):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=message + ".*write its weights alone"):
            start_from(model_of(), tmp_path / "w.pth")
    torch.save({k: v.to("meta") for k, v in ONE.items()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="not finite"):
        start_from(model_of(), tmp_path / "w.pth")


def test_what_is_left_out_is_said(tmp_path):
    torch.save({"model": ONE, "args": argparse.Namespace(), "c": Settings()}, tmp_path / "w.pth")
    message = start_from(model_of(), tmp_path / "w.pth").describe()
    assert (
        "objects beside the weights left out: argparse.Namespace" in message
        and "Settings" in message
    )


# ---------------------------------------------------------------- text encoders


def bert(layers=2, **sizes):
    from transformers import BertConfig, BertModel

    keys = {"vocab_size": 500, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(
        BertConfig(num_hidden_layers=layers, **keys | {"max_position_embeddings": 96} | sizes)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bert(layers=3), "holds a deeper or another text encoder"),
        (bert(layers=1), "tensors of the text encoder are not in"),
        (bert(vocab_size=400), "1 of the"),
        (bert(hidden_size=16, intermediate_size=64), "tensors of the text encoder are not in"),
    ],
)
def test_another_text_encoder_is_said(text, message, tmp_path, capsys):
    model = model_of(name="ConVIRT")
    assert TEXT["num_hidden_layers"] == 2
    weights = pre("visual.", ONE) | pre("text.bert.", text.state_dict())
    torch.save(weights, tmp_path / "w.pth")
    start_from(model, tmp_path / "w.pth")
    assert_filled(model, ONE)
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def folder(tmp_path):
    """A transformers folder and what changes its weights: (path, weights, write)."""
    from safetensors.torch import load_file, save_file

    path = save_bert(tmp_path / "bert")
    weights = load_file(path / "model.safetensors")

    def write(tensors):
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return path, weights, write


@pytest.mark.parametrize(
    "prefix", ["", "bert.", "module.", "module.bert.", "model.text.encoder.bert."]
)
def test_a_folder_loads_under_any_prefix(prefix, folder):
    path, weights, write = folder
    write(pre(prefix, weights))
    net = TextEncoder(proto=str(path)).pool_by("pooler").net
    assert all(torch.equal(net.state_dict()[k], v) for k, v in weights.items())


def test_a_folder_that_does_not_fit_is_refused_by_name(folder, capsys):
    path, weights, write = folder
    encoder = r"lacks \d+ of the \d+ tensors of this encoder \("
    names = sorted(weights)
    for broken, message in (
        ({f"x{i}": v for i, v in enumerate(weights.values())}, encoder),
        ({k: v for k, v in weights.items() if "layer.3." not in k}, encoder + r"encoder\.layer\.3"),
        ({k: v for k, v in weights.items() if k != names[0]}, encoder + names[0]),
        (weights | {names[0]: weights[names[0]].repeat(2)}, f"{names[0]} is "),
        (weights | {names[0]: weights[names[0]] * float("nan")}, f"not finite \\({names[0]}"),
        (pre("a.", weights) | pre("b.", {k: v + 0 for k, v in weights.items()}), encoder),
    ):
        write({k: v.contiguous() for k, v in broken.items()})
        with pytest.raises(UserError, match=message):
            TextEncoder(proto=str(path))
    capsys.readouterr()
    write({k: v for k, v in weights.items() if not k.startswith("pooler.")})
    TextEncoder(proto=str(path)).pool_by("mean")
    assert "warning" not in capsys.readouterr().err
    TextEncoder(proto=str(path)).pool_by("pooler")
    assert "the pooling layer is not among the weights" in " ".join(capsys.readouterr().err.split())
    (path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read|cannot be fetched"):
        TextEncoder(proto=str(path))


def test_a_folder_with_more_layers_than_the_config_is_said(folder, capsys):
    from vilmedic_ssl.nets.text import architecture

    path, weights, write = folder
    write(weights)
    fewer = architecture({"proto": str(path)}) | {"num_hidden_layers": 2}
    TextEncoder(proto=str(path), config=fewer)
    assert "belong to layers that this encoder does not have" in " ".join(
        capsys.readouterr().err.split()
    )


# ---------------------------------------------------------------- explain


def test_explain_takes_the_same_network_as_init_from(tmp_path):
    """Not the student before it, nor a deeper one."""
    net = timm.create_model("test_resnet", num_classes=3)
    towers = pre("student.", OTHER) | pre("teacher.", ONE)
    own = net.state_dict()
    tower = find_tower(own, {name: name for name in own}, towers)
    assert tower.place == "teacher." and tower.rivals == ["student."]
    weights = tmp_path / "w.pth"
    torch.save(ONE | {"layer1.1.conv1.weight": torch.rand(2, 2)}, weights)
    from PIL import Image

    Image.new("L", (64, 64)).save(tmp_path / "film.png")
    words = ["explain", str(tmp_path / "film.png"), "--weights", str(weights), "--size", "64"]
    words += ["--backbone", "test_resnet", "--out", str(tmp_path / "e.png")]
    assert main(words) == 2
    torch.save({"state_dict": towers, "best": torch.tensor(3.0)}, weights)
    assert main(words) == 0


@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_beyond_a_head_are_named(wrapped, tmp_path, capsys):
    deep = model_of(name="BarlowTwins", projector={"widths": [8, 8, 8]})
    path = tmp_path / "deep.pth"
    torch.save(pre("module." * wrapped, deep.state_dict()), path)
    start_from(model_of(name="BarlowTwins", projector={"widths": [8, 8, 8]}), path)
    assert "warning" not in capsys.readouterr().err
    start_from(model_of(name="BarlowTwins", projector={"widths": [8, 8]}), path)
    said = capsys.readouterr().err
    assert "5 tensors beside its encoder have no place in this one (projector.4.weight" in said
