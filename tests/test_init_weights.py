"""`init_from`: what a model takes over from checkpoints of ours and from files of others."""

from __future__ import annotations

import argparse
import json
import sys

import pytest
import torch
from methods import node_of, of_one_encoder
from torch import nn
from torchvision.models import resnet18

from vilmedic_ssl.config import load
from vilmedic_ssl.errors import ConfigError, Leak, Unobtainable, UserError
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.ensemblor import choose_checkpoints
from vilmedic_ssl.executors.init_weights import _look_at_the_image_encoder, start_from
from vilmedic_ssl.executors.init_weights_map import KeyMap
from vilmedic_ssl.executors.init_weights_read import Weights, read_weights
from vilmedic_ssl.experiment import ensemble, train
from vilmedic_ssl.experiment.data import dataset_of
from vilmedic_ssl.experiment.settings import check, typed
from vilmedic_ssl.registry import protos
from vilmedic_ssl.schema import build

CONFIG = "config/SELFSUP/simclr-phantom.yml"
METHODS = protos("models")


def model_of(name="SimCLR", encoder=None, **more):
    """A small model and its node; `encoder`: keys of another one."""
    node = node_of(name, "no norm" if of_one_encoder(name) else "batch norm", **more)
    if encoder:
        node["cnn"] = {"proto": "CNN", **encoder}
    return build(node, where="model"), node


def stirred(model):
    """With weights and statistics that no fresh model has."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
            else:
                tensor.add_(3)
    return model


def saved(model, node, path, trained_on=(5, 7), ema=None):
    """A checkpoint as training writes it, as far as `init_from` looks at it."""
    content = dict.fromkeys(checkpoint.OF_A_RUN)
    content |= {"model": model.state_dict(), "ema": ema, "config": {"model": node}}
    checkpoint.write(content | {"trained_on": torch.tensor(trained_on)}, path)
    return path


def written(tensors, path, **more):
    torch.save({"state_dict": tensors, **more} if more else tensors, path)
    return path


@pytest.fixture(scope="module")
def foreign():
    """A ResNet-18 of torchvision with statistics of its own, and a batch it has seen."""
    torch.manual_seed(0)
    net = resnet18(num_classes=3)
    net(torch.rand(4, 3, 64, 64))
    return net.eval(), torch.rand(2, 3, 64, 64)


def vectors(net, images):
    """(B, 512) of torchvision's network before its last layer."""
    with torch.no_grad():
        stem = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer4(net.layer3(net.layer2(net.layer1(stem)))).mean((2, 3))


def assert_encodes_like(model, foreign, images=None, **tolerance):
    net, theirs = foreign
    with torch.no_grad():
        found = model.eval().encode(theirs if images is None else images)["encoder"]
    torch.testing.assert_close(found, vectors(net, theirs), **tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_model_takes_everything(name, tmp_path):
    (old, node), (new, _) = model_of(name), model_of(name)
    start = start_from(new, saved(stirred(old), node, tmp_path / "a.pth"))
    for key, tensor in old.state_dict().items():
        assert torch.equal(new.state_dict()[key], tensor) or key.startswith(new.fresh), key
    assert all(key.startswith(new.fresh) for key in start.kept)
    assert start.unused == start.kept and not start.changed
    assert f"{len(start.taken)} tensors by name" in start.describe()
    assert start.trained_on.tolist() == [5, 7]


@pytest.mark.parametrize("name", [m for m in METHODS if not of_one_encoder(m)])
def test_another_method_takes_the_judged_encoder(name, tmp_path):
    """Of DINO that is the teacher's; a target network starts as the network it follows."""
    old, node = model_of(name)
    new, _ = model_of("BYOL" if name != "BYOL" else "DINO")
    start = start_from(new, saved(stirred(old), node, tmp_path / "a.pth"))
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = old.eval().encode(images)["encoder"]
        assert torch.equal(new.eval().cnn.vector(images), expected)
        assert torch.equal(new.target_cnn.vector(images), expected)
    assert start.parts["cnn."] == start.parts["target_cnn."] == f"{old.judged}net."
    assert not any(kept.startswith("cnn.") for kept in start.kept)


def test_heads_come_whole_or_not_at_all(tmp_path):
    """One thing under two names, where all its tensors fit."""
    linear = {"widths": [8], "last_bias": True, "last_norm": "none"}
    old, node = model_of("BarlowTwins", projector=linear)
    path = saved(stirred(old), node, tmp_path / "a.pth")
    same, _ = model_of("SimSiam", projector=linear)
    renamed, _ = model_of("SimCLR", projection={"layers": 1, "projection_dim": 8})
    narrower, _ = model_of("VICReg", projector={**linear, "widths": [4]})
    deeper, _ = model_of("VICReg", projector={**linear, "widths": [8, 8]})
    assert start_from(same, path).parts["projector."] == "projector."
    assert start_from(renamed, path).parts["projection."] == "projector."
    assert torch.equal(renamed.projection[0].weight, old.projector[0].weight)
    for model in (narrower, deeper):
        start = start_from(model, path)
        assert list(start.parts) == ["cnn."]
        assert all(name.startswith("projector.") for name in start.kept)


def test_a_moving_average_is_what_is_taken(tmp_path):
    (old, node), (new, _) = model_of(), model_of()
    average = {k: t.clone() for k, t in old.state_dict().items()}
    path = saved(stirred(old), node, tmp_path / "a.pth", ema=average)
    start_from(new, path)
    assert all(torch.equal(t, average[k]) for k, t in new.state_dict().items())


def test_torchvision(foreign, tmp_path):
    net, _ = foreign
    model, _ = model_of(encoder={"backbone": "resnet18"})
    path = written(net.state_dict(), tmp_path / "resnet18.pth")
    start = start_from(model, path)
    assert_encodes_like(model, foreign)
    told = start.describe()
    assert '120 of 120 tensors of cnn. <- "*"' in told and "not used: fc.weight, fc.bias" in told
    assert "stay as initialised: projection.0.weight" in told
    start.write(tmp_path / "init_0.json")
    kept = json.loads((tmp_path / "init_0.json").read_text())
    assert kept["tensors"]["cnn.net.conv1.weight"] == "conv1.weight"
    assert kept["not_used"] == ["fc.weight", "fc.bias"]


def test_data_parallel_and_half_precision(foreign, tmp_path):
    net, _ = foreign
    model, _ = model_of(encoder={"backbone": "resnet18"})
    halves = {f"module.{k}": t.half() if t.dim() > 3 else t for k, t in net.state_dict().items()}
    start_from(model, written(halves, tmp_path / "a.bin"))
    assert_encodes_like(model, foreign, rtol=0.02, atol=0.02)


def test_lightning_with_a_perceptron_for_fc(foreign, tmp_path):
    net, _ = foreign
    tensors = {f"convnet.{k}": t for k, t in net.state_dict().items() if not k.startswith("fc.")}
    head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    tensors |= {f"convnet.fc.{k}": t for k, t in head.state_dict().items()}
    path = written(tensors, tmp_path / "a.ckpt", epoch=3, hyper_parameters={"lr": 5e-4})
    model, _ = model_of(
        encoder={"backbone": "resnet18"}, projection={"hidden_dim": 512, "projection_dim": 128}
    )
    start = start_from(model, path)
    assert_encodes_like(model, foreign)
    assert start.parts == {"cnn.": "convnet.", "projection.": "convnet.fc."}
    assert torch.equal(model.projection[2].weight, head[2].weight) and not start.unused


def test_a_twin_model_with_numbered_children(foreign, tmp_path):
    """The encoder as an nn.Sequential under a prefix; also into one of ours that is cut."""
    net, _ = foreign
    cut = nn.Sequential(*list(net.children())[:-1])
    tensors = {f"wrapped.net.{k}": t for k, t in cut.state_dict().items()}
    path = written(tensors | {"projector.0.weight": torch.rand(512, 512)}, tmp_path / "a.pt")
    model, _ = model_of(encoder={"backbone": "resnet18"})
    start = start_from(model, path)
    assert_encodes_like(model, foreign)
    assert start.parts == {"cnn.": "wrapped.net."}
    ours, _ = model_of(encoder={"backbone": "resnet18", "output_layer": "layer4"})
    start_from(ours, path)
    assert_encodes_like(ours, foreign)
    start_from(ours, written(net.state_dict(), tmp_path / "b.pt"))
    assert_encodes_like(ours, foreign)


def test_byol_of_another_library(foreign, tmp_path):
    net, _ = foreign
    other = {k: torch.rand_like(t, dtype=torch.float32) for k, t in net.state_dict().items()}
    tensors = {f"target_encoder.net.{k}": t for k, t in other.items()}
    tensors |= {f"online_encoder.net.{k}": t for k, t in net.state_dict().items()}
    model, _ = model_of("BYOL", encoder={"backbone": "resnet18"})
    assert start_from(model, written(tensors, tmp_path / "a.pt")).parts == {
        "cnn.": "online_encoder.net.",
        "target_cnn.": "online_encoder.net.",
    }
    assert_encodes_like(model, foreign)


def test_colour_and_grey(foreign, tmp_path):
    net, images = foreign
    grey = images[:, :1]
    path = written(net.state_dict(), tmp_path / "a.pth")
    model, _ = model_of(encoder={"backbone": "resnet18", "in_chans": 1})
    start = start_from(model, path)
    seen = (net, grey.expand(-1, 3, -1, -1))
    assert_encodes_like(model, seen, grey, rtol=1e-4, atol=1e-5)
    assert start.changed == {"cnn.net.conv1.weight": "summed over 3 channels"}
    back, _ = model_of(encoder={"backbone": "resnet18", "in_chans": 3})
    path = written({k: t for k, t in model.state_dict().items()}, tmp_path / "b.pth")
    assert "a third for each of 3 channels" in start_from(back, path).describe()
    assert_encodes_like(back, seen, grey, rtol=1e-4, atol=1e-5)


def test_positions_of_another_size(tmp_path):
    def transformer(size):
        options = {"img_size": size, "patch_size": 8}
        return model_of(encoder={"backbone": "test_vit", "in_chans": 1, "options": options})

    (old, node), (new, _) = transformer(64), transformer([32, 48])
    start = start_from(new, saved(stirred(old), node, tmp_path / "a.pth"))
    assert start.changed == {"cnn.net.pos_embed": "from 8 x 8 to 4 x 6 positions"}
    first = old.cnn.net.num_prefix_tokens
    assert torch.equal(new.cnn.net.pos_embed[:, :first], old.cnn.net.pos_embed[:, :first])
    path = saved(new, node, tmp_path / "b.pth")
    with pytest.raises(UserError, match="position embeddings there"):
        start_from(old, path)


def test_safetensors(foreign, tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    net, _ = foreign
    path = tmp_path / "a.safetensors"
    safetensors.save_file(net.state_dict(), path)
    model, _ = model_of(encoder={"backbone": "resnet18"})
    start_from(model, path)
    assert_encodes_like(model, foreign)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(Unobtainable, match="needs the package safetensors"):
        start_from(model, path)


def test_the_first_layers_of_a_projection_stay_under_a_classifier(tmp_path, capsys):
    """And what a model wants to start afresh, does."""
    head = {"projection_dim": 8, "layers": 3, "batch_norm": True}
    old, node = model_of("SimCLR", projection=head)
    path = saved(stirred(old), node, tmp_path / "a.pth")
    new, node = model_of("Classifier", projection=head, selector=1, zero_head=True)
    start = start_from(new, path)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = old.eval().projection[:3](old.cnn.vector(images))
        assert torch.equal(new.eval().encode(images)["encoder"], expected)
    assert start.kept == ["head.weight", "head.bias"]
    start = start_from(new, saved(stirred(new), node, tmp_path / "b.pth"))
    assert start.kept == ["head.weight", "head.bias"]
    assert "no place" not in capsys.readouterr().err  # what is cut on purpose


def test_an_encoder_is_filled_whole_or_it_is_said(tmp_path, capsys):
    old, node = model_of(encoder={"backbone": "resnet18"})
    new, _ = model_of(encoder={"backbone": "resnet34"})
    before = {k: t.clone() for k, t in new.state_dict().items()}
    with pytest.raises(UserError) as refused:
        start_from(new, saved(old, node, tmp_path / "a.pth"))
    told = str(refused.value)
    assert "is of a resnet18, this encoder is a resnet34, and 96 of the 216" in told
    assert "cnn.net.layer1.2.conv1.weight" in told and "{backbone: resnet18}" in told
    assert all(torch.equal(t, before[k]) for k, t in new.state_dict().items())
    capsys.readouterr()
    start = start_from(new, written(old.state_dict(), tmp_path / "b.pth"))
    assert len(start.taken) >= 120
    told = capsys.readouterr().err
    assert "96 of the 216 tensors of this encoder are not in" in told and "start afresh" in told
    ours = Weights(tmp_path, {}, "cnn.", torch.empty(0), torch.empty(0), node["cnn"])
    tables = ["cnn.net.attn.relative_position_bias_table"]
    _look_at_the_image_encoder(new, ours, tables, KeyMap({}, {}))
    assert "1 of the 1 tensors" in capsys.readouterr().err


def test_of_several_seeds_the_own_one(tmp_path):
    def write(name, value, lower=False):
        model, node = model_of()
        content = dict.fromkeys(checkpoint.OF_A_RUN) | {"progress": {"lower_is_better": lower}}
        tensors = {k: torch.full_like(t, value) for k, t in model.state_dict().items()}
        content |= {"model": tensors, "config": {"model": node}, "trained_on": torch.tensor([1])}
        checkpoint.write(content, tmp_path / name)

    def taken(seed):
        return int(next(iter(read_weights(tmp_path, seed).tensors.values())).flatten()[0])

    write("0.9_3_1.pth", 1)
    assert [taken(seed) for seed in (None, 0, 1)] == [1, 1, 1]  # one seed is not several
    write("0.5_3_0.pth", 2)
    write("last_2.pth", 3)
    assert [taken(seed) for seed in (None, 0, 1, 2)] == [1, 2, 1, 3]
    with pytest.raises(UserError, match=r"the seeds 0, 1, 2, and none is the 7 .*0\.9_3_1\.pth"):
        read_weights(tmp_path, 7)
    assert choose_checkpoints(tmp_path, "best-2", None, 0) == [tmp_path / "0.5_3_0.pth"]
    assert choose_checkpoints(tmp_path, "last", None, 2) == [tmp_path / "last_2.pth"]
    with pytest.raises(UserError, match="with a score of seed 2 in"):
        choose_checkpoints(tmp_path, "best-1", None, 2)


class Module(nn.Module):
    """Stands for whatever a program pickles."""


def test_refusals(foreign, tmp_path):
    net, _ = foreign
    model, _ = model_of(encoder={"backbone": "resnet18"})
    (tmp_path / "damaged.pth").write_bytes(b"hello" * 50)
    (tmp_path / "empty").mkdir()
    wide = {
        k: t
        for k, t in model_of(encoder={"backbone": "resnet18", "width": 2})[0].state_dict().items()
    }
    files = {
        tmp_path / "nowhere.pth": "there is no",
        tmp_path / "empty": "holds no checkpoint",
        tmp_path / "damaged.pth": "not a readable file of weights",
        written(net, tmp_path / "whole.pt"): r"object of torchvision\S+ResNet.*runs code",
        written({}, tmp_path / "n.ckpt", hyper_parameters=argparse.Namespace(lr=1)): (
            r"argparse\.Namespace.*write its weights alone"
        ),
        written({"epoch": 3}, tmp_path / "none.pth"): "no tensors with names .*epoch",
        written({"encoder.weight": torch.rand(3, 4)}, tmp_path / "other.pth"): (
            r"holds 0 of the 120 tensors .*cnn\.net\.conv1\.weight \(64, 3, 7, 7\).*"
            r"encoder\.weight \(3, 4\)"
        ),
        written(wide, tmp_path / "wide.pth"): r"holds \d+ of the 120 .*\(128, 3, 7, 7\)",
    }
    before = {k: t.clone() for k, t in model.state_dict().items()}
    for path, told in files.items():
        with pytest.raises(UserError, match=told) as refused:
            start_from(model, path)
        assert (refused.type is Unobtainable) == (told == "there is no")
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_published_weights_and_ours_exclude_each_other(tiny):
    with pytest.raises(ConfigError, match=r"write model\.cnn\.pretrained=false"):
        check(load(CONFIG, [*tiny(), "init_from=x", "model.cnn.pretrained=true"]))


def test_images_the_source_has_seen_are_remembered(tiny, tmp_path, capsys):
    """Through `init_from`, and through a resume of what started from it, which reads no source."""
    first = train(load(CONFIG, tiny("first")))
    node = check(load(CONFIG, tiny("second")))
    scored = dataset_of(typed(node), node, "test").members()
    path = sorted(first.glob("last_*.pth"))[0]
    content = checkpoint.read(path)
    checkpoint.write(content | {"trained_on": scored}, tmp_path / "source.pth")
    overrides = [*tiny("second"), f"init_from={tmp_path / 'source.pth'}"]
    folder = train(load(CONFIG, [*overrides, "trainor.max_steps=2"]))
    assert "init_from" in capsys.readouterr().err and (folder / "init_0.json").is_file()
    weights = checkpoint.read(folder / "last_0.pth")
    assert torch.isin(scored, weights["trained_on"]).all()
    assert torch.isin(content["trained_on"], weights["trained_on"]).all()
    (tmp_path / "source.pth").unlink()
    train(load(CONFIG, [*overrides, "trainor.max_steps=3", "ckpt=last"]))
    assert "init_from" not in capsys.readouterr().err
    resumed = checkpoint.read(folder / "last_0.pth")
    assert torch.equal(resumed["trained_on"], weights["trained_on"])
    with pytest.raises(Leak, match="was trained on"):
        ensemble(load(CONFIG, [*overrides, "ckpt=last"]))
    train(load(CONFIG, [*tiny("second"), "overwrite=true"]))
    assert not (folder / "init_0.json").exists()
