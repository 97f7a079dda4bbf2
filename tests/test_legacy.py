"""ViLMedic's configurations: transform strings, renamed and dead keys, its warm-up schedule."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vilmedic_ssl import AutoModel
from vilmedic_ssl import config as yaml_config
from vilmedic_ssl.cli import main
from vilmedic_ssl.data.compose import compose
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.legacy import parse_transforms
from vilmedic_ssl.data.legacy_keys import modern, parse_size
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.executors.schedules import Clock, find_schedule
from vilmedic_ssl.executors.settings import TrainorSettings
from vilmedic_ssl.schema import build

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NORMALISE = """transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406),
                         (0.229, 0.224, 0.225))"""
# The view of ViLMedic's SimCLR configurations, trailing commas included.
VIEW = f"""transforms.Compose([
    transforms.Resize(256),
    transforms.RandomCrop(224),
    transforms.RandomHorizontalFlip(),
    {NORMALISE},
    ])"""
JITTERED = VIEW.replace(
    "transforms.ToTensor",
    """transforms.RandomApply([
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    ], p=0.8),
    transforms.RandomGrayscale(p=0.2),
    transforms.ToTensor""",
)
TWO_VIEWS = f"lambda x : torch.cat([{VIEW}(x),\n            {VIEW}(x)])\n"
LISTED = f"lambda x : [{JITTERED}(x), {JITTERED}(x)]"
EVALUATE = f"transforms.Compose([\n    transforms.Resize((224, 224)),\n    {NORMALISE}])"
VAE = """transforms.Compose([ transforms.Resize(256), transforms.CenterCrop(256),
    transforms.ToTensor()])"""
CROP_FLIP = [{"Resize": {"size": 256}}, {"RandomCrop": {"size": 224}}, "RandomHorizontalFlip"]


def test_strings_as_vilmedic_ships_them():
    two = parse_transforms(TWO_VIEWS)
    assert (two.items, two.views, two.mean, two.std) == (CROP_FLIP, 2, MEAN, STD)
    listed = parse_transforms(LISTED)
    colour = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    assert listed.views == 2 and listed.items[3:] == [
        {"RandomApply": {"transforms": [{"ColorJitter": colour}], "p": 0.8}},
        {"RandomGrayscale": {"p": 0.2}},
    ]
    assert parse_transforms(EVALUATE).items == [{"Resize": {"size": [224, 224]}}]
    vae = parse_transforms(VAE)
    assert vae.items == [{"Resize": {"size": 256}}, {"CenterCrop": {"size": 256}}]
    assert (vae.views, vae.mean, vae.std) == (1, [0.0], [1.0])


@pytest.mark.parametrize(
    "text",
    [
        f"lambda image: torch.stack(({VIEW}(image), {VIEW}(image)), dim=0)",
        f"lambda x: torch.cat(dim=0, tensors=[{VIEW}(x), {VIEW}(x)])",
        f"lambda x: torch.cat([{VIEW}(x), {VIEW}(x)], 0)",
        TWO_VIEWS.replace("transforms.", "T."),
        TWO_VIEWS.replace("transforms.", "torchvision.transforms."),
    ],
)
def test_other_spellings_of_two_views(text):
    assert parse_transforms(text) == parse_transforms(TWO_VIEWS)


def test_positions_old_names_and_constants():
    found = parse_transforms("""T.Compose([T.Scale(40), T.RandomSizedCrop(32, (0.5, 1.)),
        T.RandomRotation((-5, 5), resample=Image.BILINEAR),
        T.Resize(30, transforms.InterpolationMode.BICUBIC), T.Grayscale(3)])""")
    assert found.items == [
        {"Resize": {"size": 40}},
        {"RandomResizedCrop": {"size": 32, "scale": [0.5, 1.0]}},
        {"RandomRotation": {"degrees": [-5, 5], "interpolation": 2}},
        {"Resize": {"size": 30, "interpolation": 3}},
        {"Grayscale": {"num_output_channels": 3}},
    ]
    assert parse_transforms("transforms.CenterCrop(8)").items == [{"CenterCrop": {"size": 8}}]
    half = parse_transforms("""T.Compose([T.PILToTensor(), T.ConvertImageDtype(torch.float),
        T.Compose([T.RandomVerticalFlip()]), T.Normalize([.5, .5, .5], (.5, .5, .5))])""")
    assert half.items == ["RandomVerticalFlip"] and (half.mean, half.std) == ([0.5], [0.5])


def test_a_string_draws_what_the_list_written_by_hand_draws():
    by_hand = [
        {"Resize": {"size": 40}},
        {"RandomResizedCrop": {"size": [32, 32], "scale": [0.3, 1.0]}},
        {"RandomApply": {"p": 0.8, "transforms": [{"ColorJitter": {"brightness": 0.4}}]}},
        {"RandomAffine": {"degrees": 10, "translate": [0.1, 0.1]}},
    ]
    text = """transforms.Compose([transforms.Resize(40),
        transforms.RandomResizedCrop((32, 32), scale=(0.3, 1.0)),
        transforms.RandomApply([transforms.ColorJitter(0.4)], 0.8),
        transforms.RandomAffine(10, (0.1, 0.1)), transforms.ToTensor()])"""
    image = torch.rand(3, 50, 60)
    for seed in range(5):
        torch.manual_seed(seed)
        theirs = compose(parse_transforms(text).items, "text")(image)
        torch.manual_seed(seed)
        assert torch.equal(theirs, compose(by_hand, "list")(image))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("__import__('os').system('ls')", r"system. at column 1: only transforms\.NAME"),
        ("transforms.Compose.__class__(1)", "only transforms.NAME may be called"),
        ("transforms.__dict__['x']()", "only transforms.NAME may be called"),
        ("transforms.functional.hflip(x)", "only transforms.NAME may be called"),
        ("T.Compose([T.Resize(i) for i in (1, 2)])", r"column 11: expected a list"),
        ("transforms.Resize(f'{1}')", "column 19: only plain numbers"),
        ("transforms.Resize(size)", "'size' at column 19: only plain numbers"),
        ("transforms.Resize((224,) * 2)", "only plain numbers"),
        ("transforms.Resize(*[1, 2])", "only plain numbers"),
        ("transforms.Resize(**{'size': 1})", "unknown or repeated argument"),
        ("transforms.Resize(b'1')", "only plain numbers"),
        ("transforms.Resize(1, size=2)", "repeated"),
        ("transforms.Resize(1, siez=2)", "did you mean 'size'"),
        ("transforms.Resize(1, 2, 3, 4, 5)", "at most 4 arguments"),
        ("transforms.Resiz(1)", "did you mean 'Resize'"),
        ("transforms.Lambda(lambda x: x)", "no such transform"),
        ("Compose([])", "'Compose' at column 1: only transforms.NAME"),
        ("transforms.Compose([transforms.Resize])", "expected a transform, as in"),
        ("lambda x, y: transforms.Resize(1)(x)", "takes one image"),
        ("lambda x=open('f'): transforms.Resize(1)(x)", "takes one image"),
        ("lambda x: transforms.Resize(1)(y)", "applied to x"),
        ("lambda x: x", "applied to x"),
        (f"lambda x: torch.cat([{VIEW}(x).unsqueeze(0)])", r"remove \.unsqueeze\(0\); views are"),
        ("lambda x: []", "draws no view"),
        (f"lambda x: torch.cat([{VIEW}(x), {VIEW}(x)], dim=1)", "along dim 0"),
        (f"lambda x: torch.cat([{VIEW}(x), {EVALUATE}(x)])", "differs from the first view"),
        ("T.Compose([T.Normalize([0], [1]), T.RandomErasing()])", "stands after Normalize"),
        ("T.RandomApply([T.Normalize([0], [1])])", "drawn by chance"),
        ("T.Normalize(0.5, 0.5)", "as many means"),
        ("transforms.Compose([", "no transform string at column"),
        ("(" * 300, "no transform string"),
        ("transforms.Resize(1)" + " " * 3 + "# " + "x" * 20_000, "longer than"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(text, told):
    with pytest.raises(ConfigError, match=told):
        parse_transforms(text)


@given(
    st.sampled_from([TWO_VIEWS, LISTED, EVALUATE, VAE]),
    st.integers(0, 400),
    st.integers(0, 30),
    st.sampled_from(["", "(", "]", "x", "-1", "[]", "**", "lambda x:", "transforms", "None", "\0"]),
)
def test_a_damaged_string_is_read_or_refused_in_one_sentence(text, start, length, put):
    damaged = text[:start] + put + text[start + length :]
    with contextlib.suppress(ConfigError):
        given_keys = {"resize": 256, "crop": 224, "train": damaged}
        assert modern(given_keys)["views"] >= 1


def image_dataset(phantom: Path, **keys):
    node = {"proto": "ImageDataset", "root": str(phantom), "file": "image.tok"}
    return {**node, "image_path": str(phantom), **keys}


def small(text: str) -> str:
    return text.replace("256", "36").replace("224", "32")


def test_the_two_view_lambda_sets_the_keys(phantom):
    keys = {
        "custom_transform_train": small(TWO_VIEWS),
        "custom_transform_val": small(TWO_VIEWS),
        "resize": "(36,36)",
        "crop": "32",
    }
    data = build(image_dataset(phantom, **keys), Context("train", augment=True))
    assert data[0]["images"].shape == (2, 3, 32, 32) and data.files.mode == "rgb"
    one = build(image_dataset(phantom, **keys), Context("test"))
    assert one[0]["images"].shape == (3, 32, 32)
    keys["custom_transform_val"] = small(EVALUATE)
    assert build(image_dataset(phantom, **keys), Context("test"))[0]["images"].shape == (3, 32, 32)
    with pytest.raises(ConfigError, match=r"views: 1, but custom_transform_train draws 2"):
        build(image_dataset(phantom, **keys, views=1), Context("train"))
    for more, told in (
        ({"mean": [0.1]}, r"dataset.mean: \[0.1\], but the transform strings"),
        ({"custom_transform_val": small(VAE)}, "normalise differently"),
        ({"custom_transform_val": small(LISTED)}, "by other steps than"),
        ({"custom_transform_val": small(VIEW)}, "must be deterministic"),
        ({"resize": "big"}, "'big' is no size"),
    ):
        with pytest.raises(ConfigError, match=told):
            build(image_dataset(phantom, **{**keys, **more}), Context("train"))


def test_sizes_in_text():
    assert parse_size("(224,224)", "crop") == [224, 224] and parse_size(" 64", "crop") == 64
    assert parse_size([1, 2], "crop") == [1, 2]
    for text in ("(1,2,3)", "224.0", "__import__('os')", "True", ""):
        with pytest.raises(ConfigError, match="is no size"):
            parse_size(text, "crop")


def test_the_first_resizing_is_the_largest_the_strings_begin_with():
    def resized(train, evaluate):
        given = {"resize": 256, "crop": 224, "channels": "auto", "train": train}
        return modern({**given, "evaluate": evaluate})["resize"]

    assert resized("T.Resize(300)", None) == 300
    assert resized("T.Resize(300)", "T.Resize((320, 200))") == 320
    assert resized("T.Resize((320, 200))", "T.Resize((320, 200))") == [320, 200]
    assert resized("T.RandomCrop(3)", None) == 256


def test_vilmedics_simclr_file_trains_three_steps(phantom, tmp_path, capsys):
    """config/SELFSUP/simclr-mimic.yml as it shipped in 2022, on smaller images and network."""
    node = {
        "name": "simclr_mimic",
        "ckpt_dir": str(tmp_path / "ckpt"),
        "dataset": image_dataset(
            phantom,
            custom_transform_train=small(TWO_VIEWS),
            custom_transform_validate=small(TWO_VIEWS),
            load_memory=False,
            ext=".jpg",
        ),
        "model": {
            "proto": "SimCLR",
            "cnn": {
                "proto": "CNN",
                "backbone": "test_resnet",
                "output_layer": "avgpool",
                "dropout_out": 0.0,
                "permute": "batch_first",
                "freeze": False,
            },
            "projection": {"projection_dim": 16},
            "loss": {"tau": 0.5},
        },
        "trainor": {
            "optimizer": "RAdam",
            "optim_params": {"lr": 0.001},
            "batch_size": 8,
            "lr_decay": "ReduceLROnPlateau",
            "lr_decay_params": {
                "factor": 0.8,
                "patience": 5,
                "min_lr": 0.000001,
                "threshold": 0.01,
                "threshold_mode": "abs",
                "decay_on_training_loss": True,
            },
            "epochs": 999,
            "early_stop": 20,
            "eval_start": 0,
            "early_stop_metric": "loss",
        },
        "validator": {"batch_size": 8, "splits": ["validate"]},
        "ensemblor": {
            "splits": ["train", "test"],
            "post_processing": [{"save_representation": {"keys": ["visual"]}}],
        },
    }
    file = tmp_path / "simclr-mimic.yml"
    OmegaConf.save(OmegaConf.create(node), file)
    more = ["trainor.max_steps=3", "num_workers=0", "device=cpu"]
    assert main(["train", str(file), *more]) == 0, capsys.readouterr().err
    assert main(["ensemble", str(file), *more]) == 0, capsys.readouterr().err
    saved = yaml_config.load(tmp_path / "ckpt/simclr_mimic/config_0.yml")
    assert saved["dataset"]["channels"] == "rgb"
    model, processor = AutoModel.from_pretrained(tmp_path / "ckpt/simclr_mimic")
    image = next((phantom / "images").rglob("*.png"))
    assert model(**processor.inference(image=str(image)))["visual"].shape == (1, 16)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainor.lr_min=1e-6", r"lr_min: no version of ViLMedic ever read this key; .*\.min_lr"),
        ("trainor.lr_decay_factor=0.5", r"ever read this key; write lr_decay_params\.factor"),
        ("trainor.lr_decay_patience=1", r"ever read this key; write lr_decay_params\.patience"),
        ("validator.beam_width=8", "models that write text"),
        ("ensemblor.beam_width=8", "models that write text"),
        ("ensemblor.metrics=[]", "plug-ins; list them under post_processing"),
    ],
)
def test_keys_without_effect_are_refused(override, told, tiny, capsys):
    assert main(["train", str(CONFIG), *tiny(), override]) == 2
    assert re.search(told, " ".join(capsys.readouterr().err.split()))


def test_decay_on_training_loss_inside_the_schedules_keys():
    keys = {"optim_params": {"lr": 1e-3}, "batch_size": 2, "epochs": 1}
    inner = {"factor": 0.5, "decay_on_training_loss": True}
    settings = TrainorSettings(**keys, lr_decay_params=inner)
    assert settings.decay_on_training_loss and settings.lr_decay_params == {"factor": 0.5}


def test_linear_warmup_cosine_annealing():
    """Against the recursion of torch's own schedulers, which the original chains."""
    schedule = find_schedule("LinearWarmupCosineAnnealingLR")
    keys = {"warmup_epochs": 5, "max_epochs": 25, "warmup_start_lr": 0.01, "eta_min": 0.001}
    rates = [
        0.1 * schedule(Clock(step=s, total=40, steps_per_epoch=7, base_lr=0.1), **keys)
        for s in range(40)
    ]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.001)
    chain = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[5])
    for rate in rates[:26]:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        chain.step()
    assert rates[25:] == pytest.approx([0.001] * 15) and math.isclose(rates[4], 0.1)
    with pytest.raises(ConfigError, match="max_epochs: 5; write more than"):
        schedule(Clock(0, 1, 1, 0.1), warmup_epochs=5, max_epochs=5)
