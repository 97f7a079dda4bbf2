"""Stop a run of any model between two steps, go on, and compare with one that was not stopped."""

import os
import shutil
import signal

import torch
from methods import TRANSFORMERS_ONLY, node_of, of_one_encoder

from vilmedic_ssl.config import load
from vilmedic_ssl.executors import checkpoint
from vilmedic_ssl.executors.trainor import Trainor
from vilmedic_ssl.experiment import ensemble, train
from vilmedic_ssl.registry import find

CONFIG = "config/SELFSUP/simclr-phantom.yml"
NEEDS = {"Distillation": "Classifier", "DALLE": "VAE"}  # a model that is trained first


def config_of(name, overrides):
    """simclr-phantom.yml with another model, five steps of it, a checkpoint after each."""
    encoder = "no norm" if of_one_encoder(name) else "batch norm"
    model = find(name, folder="models")
    crops = {"local_views": 2, "local_crop": 16} if "local" in model.may_take else {}
    node = load(CONFIG, overrides)
    node["model"] = node_of(name, encoder)
    if "classes" in node["model"]:
        node["model"]["classes"] = None  # as many as the data has
    if "teacher" in node["model"]:
        node["model"]["teacher"] = f"{node['ckpt_dir']}/Classifier"
    if "vae" in node["model"]:
        node["model"]["vae"] = {"ckpt": f"{node['ckpt_dir']}/VAE"}
        given = {"num_text_tokens": None, "text_seq_len": None, "ff_dropout": 0.1}
        node["model"]["dalle"] = {**node["model"]["dalle"], **given}
        node["dataset"]["text"] = {"sections": ["impression"], "tokenizer_max_len": 12}
    if model.pixels:
        node["dataset"]["transform"] |= {"mean": None, "std": None}
    cnn = node["model"].get("cnn", {})  # with dropout, which draws from the global generator
    if name in TRANSFORMERS_ONLY:
        cnn["options"] = {**cnn["options"], "proj_drop_rate": 0.1}
    elif cnn:
        cnn["dropout_out"] = 0.1
    node["dataset"]["transform"] |= {"views": model.views, **crops}
    node["validator"]["metrics"] = ["effective_rank", "probe"]
    node["trainor"] |= {"max_steps": 5, "epochs": 9, "save_every": 1, "ema": 0.9}
    return node


def stopping_after(number):
    """A `_step` after whose call `number` a SIGTERM arrives."""
    step = Trainor._step

    def stopped(self, *arguments):
        step(self, *arguments)
        if self.progress.step == number:
            os.kill(os.getpid(), signal.SIGTERM)

    return step, stopped


def state(folder):
    """Every tensor of the last checkpoint."""
    content = checkpoint.read(folder / "last_0.pth")
    probe = content["probe"]["linear"]
    groups = {"model": content["model"], "ema": content["ema"], "probe": probe}
    moments = content["optimizer"]["state"]
    found = {f"{g} {n}": t for g, tensors in groups.items() for n, t in tensors.items()}
    return found | {f"moment {i} {n}": t for i, s in moments.items() for n, t in s.items()}


def assert_resumes(name, tiny, *more):
    """A run that was stopped after step 3 and continued equals one that was not, bit for bit."""
    from vilmedic_ssl.errors import Interrupted

    before = NEEDS.get(name)
    first = train(config_of(before, tiny(before))) if before else None
    whole = train(config_of(name, [*tiny("whole"), *more]))
    original, Trainor._step = stopping_after(3)
    try:
        train(config_of(name, [*tiny("stopped"), *more]))
        raise AssertionError("the signal did not stop the run")
    except Interrupted:
        pass
    finally:
        Trainor._step = original
    if first is not None:
        shutil.rmtree(first)  # from here on it is in the second one's checkpoints
    stopped = train(config_of(name, [*tiny("stopped"), *more, "ckpt=last"]))
    expected, found = state(whole), state(stopped)
    assert set(found) == set(expected)
    for tensor in expected:
        assert torch.equal(found[tensor], expected[tensor]), f"{name}: {tensor}"
    found = ensemble(config_of(name, [*tiny("whole"), *more]))
    assert any(key.startswith("test/linear_probe/") for key in found)
