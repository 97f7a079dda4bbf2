"""Own transforms against the numbers of the codes they come from; presets; several kinds of views;
what is warned of.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from vilmedic_ssl import load_config, train
from vilmedic_ssl.data.advice import advise, advise_on
from vilmedic_ssl.data.augmentations import (
    AdditiveBrightness,
    CenterCropShare,
    ContrastAroundMean,
    CropToAspect,
    EqualizeLuma,
    RandomSharpness,
    SNRNoise,
)
from vilmedic_ssl.data.compose import compose, is_random, named
from vilmedic_ssl.data.datasets.base import Context
from vilmedic_ssl.data.datasets.image_folder import ImageFolder
from vilmedic_ssl.data.datasets.tok import ImSeq
from vilmedic_ssl.data.kernels import Blur
from vilmedic_ssl.data.presets import preset, presets
from vilmedic_ssl.data.transforms import Pipeline, Transform
from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.schema import build

ORACLES = Path(__file__).parent / "oracles"
AUGMENT = np.load(ORACLES / "seeds_augment.npz")
SIMCLR = np.load(ORACLES / "seeds_simclr_data_util.npz")
ASPECT = np.load(ORACLES / "seeds_semisuper_web_prep.npz")
IMAGE_1HW = torch.from_numpy(AUGMENT["tensor"])
COLOUR_CHW = torch.from_numpy(AUGMENT["img_rgb_uint8"]).permute(2, 0, 1) / 255
TRAINING = [name for name in presets(32) if name not in ("evaluate", "simclr-test-crop")]


def far(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float((ours.double() - torch.from_numpy(theirs.astype(float))).abs().max())


def noise_like(image: torch.Tensor) -> torch.Tensor:
    return torch.rand(image.shape, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------ own transforms


@pytest.mark.parametrize("added", ["-0.2", "-0.05", "0.13", "0.2"])
def test_additive_brightness(added):
    ours = AdditiveBrightness(float(added), float(added))(IMAGE_1HW)
    assert far(ours, AUGMENT[f"brightness/{added}"]) < 1e-5


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 2.0])
def test_contrast_is_theirs_without_the_deviation_in_the_factor(s):
    """Theirs is mean + (x - mean) * s * std, so that no factor leaves an image as it is."""
    factor = s * IMAGE_1HW.std().item()
    ours = ContrastAroundMean(factor, factor)(IMAGE_1HW)
    assert far(ours, AUGMENT[f"contrast/{s}"]) < 1e-5
    assert torch.allclose(ContrastAroundMean(1.0, 1.0)(IMAGE_1HW), IMAGE_1HW)


@pytest.mark.parametrize("share", ["0.06", "0.1"])
def test_noise_of_a_share_of_the_mean(share, monkeypatch):
    drawn = torch.from_numpy(AUGMENT[f"noise/{share}/unit_normal"]).double()
    monkeypatch.setattr(torch, "randn", lambda *_, **__: drawn)
    ours = SNRNoise(float(share), float(share))(IMAGE_1HW)
    assert far(ours, AUGMENT[f"noise/{share}/out"]) < 1e-5


def test_equalised_luma():
    grey = torch.from_numpy(AUGMENT["img_gray_uint8"])[None] / 255
    ours = EqualizeLuma(1.0)(COLOUR_CHW).permute(1, 2, 0)
    assert far(ours, AUGMENT["equalize_ycbcr"] / 255) < 1e-5
    assert far(EqualizeLuma(1.0)(grey)[0], AUGMENT["equalize_ycbcr_gray"][..., 0] / 255) < 1e-5
    assert torch.equal(EqualizeLuma(0.0)(grey), grey)
    assert torch.equal(EqualizeLuma(1.0)(torch.full((1, 4, 4), 0.2)), torch.full((1, 4, 4), 0.2))


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.5, 10.0])
def test_sharpness_is_pillows_without_its_roundings(factor):
    """On 8 bits equal; on float off by their two roundings, of which the factor enlarges one."""
    theirs = AUGMENT[f"sharpness/{factor}"]
    levels = COLOUR_CHW.mul(255).round().to(torch.uint8)
    assert far(functional.adjust_sharpness(levels, factor).permute(1, 2, 0), theirs) == 0
    ours = RandomSharpness(factor, factor)(COLOUR_CHW).permute(1, 2, 0) * 255
    assert far(ours, theirs) <= 0.5 * abs(factor - 1) + 1


def test_solarise_is_torchvisions():
    ours = functional.solarize(COLOUR_CHW, 0.5).permute(1, 2, 0)
    assert far(ours, AUGMENT["solarize"] / 255) < 1e-5


@pytest.mark.parametrize(("sigma", "levels"), [("0.1", 0.01), ("1.05", 12), ("2.0", 9)])
def test_a_true_gaussian_differs_from_pillows_boxes(sigma, levels):
    """Pillow approximates by three boxes, and repeats the border instead of reflecting it."""
    blur = Blur((13, 13), (float(sigma), float(sigma)))
    ours = blur(COLOUR_CHW).permute(1, 2, 0) * 255
    assert far(ours, AUGMENT[f"gaussian_blur_pil/sigma{sigma}"]) < levels


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.5), (4, 1.0), (5, 2.0)])
def test_blur_is_that_of_simclr_away_from_the_border(kernel, sigma):
    """Theirs makes an even kernel odd, and pads with black, which darkens the border."""
    image, reach = torch.from_numpy(SIMCLR["img"]).permute(2, 0, 1), kernel // 2
    ours = Blur((2 * reach + 1,) * 2, (sigma, sigma))(image).permute(1, 2, 0)
    theirs = SIMCLR[f"gaussian_blur/k{kernel}_s{sigma}"]
    inside = slice(reach, -reach)
    assert far(ours[inside, inside], theirs[inside, inside]) < 1e-5
    assert (ours.numpy() - theirs).max() > 0.1


def test_grey_is_that_of_simclr():
    image = torch.from_numpy(SIMCLR["img"]).permute(2, 0, 1)
    grey = compose([{"RandomGrayscale": {"p": 1.0}}], "here")(image).permute(1, 2, 0)
    assert far(grey, SIMCLR["to_grayscale"]) < 1e-5


def test_the_central_share():
    sizes = [CenterCropShare().size(*side) for side in SIMCLR["center_crop/in_hw"].tolist()]
    assert sizes == [tuple(side) for side in SIMCLR["center_crop/crop_hw_aspect1"].tolist()]
    wide = CenterCropShare(0.5, aspect=2.0)(torch.zeros(1, 40, 40))
    assert wide.shape == (1, 10, 20)
    view = compose(preset("simclr-test-crop", [32, 48]), "here")(torch.rand(1, 60, 60))
    assert view.shape == (1, 32, 48)


def test_films_are_cut_to_limits_of_aspect():
    low, high = ASPECT["crop_to_ar/lo_hi"].tolist()
    for side, expected in zip(
        ASPECT["crop_to_ar/in_hw"].tolist(),
        ASPECT["crop_to_ar/out_h_w_top_left"].tolist(),
        strict=True,
    ):
        top, left, height, width = CropToAspect(low, high).box(*side)
        assert [height, width, top, left] == expected
    film = torch.arange(600.0).view(1, 10, 60)
    assert torch.equal(CropToAspect(0.5, 1.0)(film), film[..., 20:40])


def test_films_are_cut_before_they_are_squeezed():
    """`before` sees the whole picture; in `evaluate` it would be square already."""
    film = torch.zeros(1, 20, 100)
    film[..., :20] = film[..., -20:] = 1.0  # what is cut away
    before = [{"CropToAspect": {"low": 0.5, "high": 1.0}}]
    keys = {"resize": [16, 16], "crop": 16, "mean": [0.0], "std": [1.0]}
    cut = Pipeline(Transform(before=before, **keys), channels="gray", random=False)
    late = Pipeline(Transform(evaluate=before, **keys), channels="gray", random=False)
    assert cut(cut.prepare(film), 0).max() == 0 and late(late.prepare(film), 0).max() == 1
    mask = cut.mask(film[0] > 0)
    assert mask.shape == (16, 16) and not mask.any()
    with pytest.raises(ConfigError, match=r"before: what is kept must be deterministic"):
        Pipeline(Transform(before=["RandomHorizontalFlip"]), channels="gray", random=False)


WRONG = {
    "aspect": ({"CropToAspect": {"low": 2, "high": 1}}, "low 2 and high 1"),
    "order": ({"RandomSharpness": {"low": 3, "high": 1}}, "low 3 and high 1"),
    "negative": ({"SNRNoise": {"low": -1, "high": 1}}, "write 0 <= low"),
    "probability": ({"EqualizeLuma": {"p": 1.5}}, "p 1.5"),
    "share": ({"CenterCropShare": {"share": 0}}, "share above 0"),
    "text": ({"AdditiveBrightness": {"low": "a"}}, "AdditiveBrightness"),
    "argument": ({"SNRNoise": {"hgih": 1}}, "did you mean 'high'"),
    "name": ("EqualiseLuma", "did you mean 'EqualizeLuma'"),
    "interpolation": ({"Resize": {"size": 8, "interpolation": "cubic"}}, "bilinear or bicubic"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_one_sentence(case):
    item, words = WRONG[case]
    with pytest.raises(ConfigError, match=words) as error:
        compose(["RandomHorizontalFlip", item], "dataset.transform.train")
    assert str(error.value).startswith("dataset.transform.train.1")


def test_own_transforms_nest_and_interpolation_has_a_name():
    items = [
        {"RandomApply": {"p": 1.0, "transforms": [{"AdditiveBrightness": {"low": 1, "high": 1}}]}},
        {"RandomResizedCrop": {"size": 8, "interpolation": "bicubic"}},
    ]
    white = compose(items, "here")(torch.zeros(1, 16, 16))
    assert torch.allclose(white, torch.ones(1, 8, 8)) and len(list(named(items))) == 3


def test_bicubic_crops_are_torchvisions():
    original = v2.RandomResizedCrop(17, (0.2, 1), interpolation=v2.InterpolationMode.BICUBIC)
    own = compose(
        [{"RandomResizedCrop": dict(size=17, scale=[0.2, 1], interpolation="bicubic")}], ""
    )
    image = noise_like(torch.empty(3, 40, 31))
    for seed in range(20):
        torch.manual_seed(seed)
        theirs = original(image)
        torch.manual_seed(seed)
        assert torch.equal(theirs, own(image))


def test_what_is_random():
    for name in TRAINING:
        assert is_random(preset(name, 32)), name
    for name in ("AdditiveBrightness", "ContrastAroundMean", "SNRNoise", "GaussianNoise"):
        assert is_random([name]), name
    fixed = {"GaussianBlur": {"kernel_size": 3, "sigma": [1.0, 1.0]}}
    assert not is_random([{"EqualizeLuma": {"p": 1.0}}, fixed, "CenterCropShare"])
    assert is_random(["EqualizeLuma"]) and is_random([{"GaussianBlur": {"kernel_size": 3}}])


# ------------------------------------------------------------------ presets and views


@pytest.mark.parametrize("channels", ["gray", "rgb"])
@pytest.mark.parametrize("name", TRAINING)
def test_every_preset_gives_views(name, channels):
    pipeline = Pipeline(
        Transform(resize=40, crop=[32, 28], train=name, views=2), channels=channels, random=True
    )
    image = noise_like(torch.empty(1 if channels == "gray" else 3, 40, 52))
    views = pipeline(image, 3)
    assert views.shape == (2, len(image), 32, 28) and views.isfinite().all()
    assert torch.equal(views, pipeline(image, 3)) and not torch.equal(views[0], views[1])


def test_the_published_numbers():
    blur = {"GaussianBlur": {"kernel_size": 9, "sigma": [0.1, 2.0]}}
    assert all(blur in preset(name, 28) for name in ("natural", "simple", "novel", "greyscale"))
    assert preset("novel", 224)[4] == {"GaussianBlur": {"kernel_size": 71, "sigma": [0.8, 16.0]}}
    assert "Horizontal" not in str(preset("convirt", 224))
    assert dict(named(preset("convirt", 224)))["GaussianBlur"]["sigma"] == [0.1, 3.0]
    first, second = (dict(named(preset(f"byol-{n}", 224))) for n in ("first", "second"))
    assert first["GaussianBlur"]["kernel_size"] == 23 and "RandomSolarize" not in first
    assert second["RandomSolarize"]["p"] == 0.2 and second["RandomApply"]["p"] == 0.1
    assert len(preset("covid-chosen", 224)) == 7 and len(preset("covid", 224)) == 2


def test_what_runs_were_trained_with_stays():
    blur = {"GaussianBlur": {"kernel_size": 7, "sigma": [0.1, 2.0]}}
    jitter = {"ColorJitter": {"brightness": 0.5, "contrast": 0.5}}
    assert preset("simclr", 64) == [
        {"RandomResizedCrop": {"size": [64, 64], "scale": [0.5, 1.0]}},
        "RandomHorizontalFlip",
        {"RandomApply": {"p": 0.8, "transforms": [jitter]}},
        {"RandomApply": {"p": 0.5, "transforms": [blur]}},
    ]
    image = noise_like(torch.empty(1, 40, 40))
    keys = dict(resize=40, crop=32, views=2)
    usual, pair = (
        Pipeline(Transform(**keys, **more), channels="gray", random=True)(image, 9)
        for more in ({}, {"second": "byol-second"})
    )
    assert torch.equal(usual[0], pair[0]) and not torch.equal(usual[1], pair[1])


def test_an_asymmetric_pair():
    white, black = ({"AdditiveBrightness": {"low": x, "high": x}} for x in (1, -1))
    keys = dict(resize=16, crop=16, mean=[0.0], std=[1.0], views=2)
    pair = Pipeline(Transform(**keys, train=[white], second=[black]), channels="gray", random=True)
    views = pair(torch.full((1, 16, 16), 0.5), 0)
    assert views[0].eq(1).all() and views[1].eq(0).all() and pair.views == 2


def test_local_views_come_after_and_change_nothing():
    image = noise_like(torch.empty(1, 40, 40))
    keys = dict(resize=40, crop=32, train="simclr", views=2)
    plain = Pipeline(Transform(**keys), channels="gray", random=True)
    multi = Transform(**keys, local_views=3, local_crop=[16, 12])
    pipeline = Pipeline(multi, channels="gray", random=True)
    sample = pipeline.sample(image, 7)
    assert sample["local"].shape == (3, 1, 16, 12) and pipeline.local_views == 3
    assert torch.equal(sample["images"], plain(image, 7)) and "local" not in plain.sample(image, 7)
    assert torch.equal(sample["local"], pipeline.sample(image, 7)["local"])
    assert not torch.equal(sample["local"][0], sample["local"][1])
    scored = Pipeline(multi, channels="gray", random=False).sample(image, 7)
    assert list(scored) == ["images"] and scored["images"].shape == (1, 32, 32)


VIEWS = {
    "second of one": (dict(second="byol-second"), "second: views is 1"),
    "second of three": (dict(second="byol-second", views=3), "second: views is 3"),
    "local without a number": (dict(local="dino-local"), "local: local_views is 0"),
    "fewer than none": (dict(local_views=-1), "local_views: -1"),
    "no side": (dict(local_views=2, local_crop=0), "local_crop: 0"),
    "unknown": (dict(local_views=2, local="dino-locale"), "did you mean 'dino-local'"),
    "two sizes": (
        dict(views=2, train=["RandomHorizontalFlip"], second=[{"CenterCrop": {"size": 24}}]),
        "transform.train and .*second: views of one image have 40 x 40 and 24 x 24 pixels; end in",
    ),
    "second that fails": (dict(views=2, second=[{"Pad": {"padding": -99}}]), "second.0.Pad"),
}


@pytest.mark.parametrize("case", VIEWS)
def test_views_that_contradict(case):
    keys, words = VIEWS[case]
    with pytest.raises(ConfigError, match=words):
        Pipeline(Transform(resize=40, crop=32, **keys), channels="gray", random=True)


@pytest.mark.parametrize("key", ["train", "local"])
def test_views_of_random_size_are_refused_when_they_differ(key):
    sometimes = [{"RandomApply": {"p": 0.1, "transforms": [{"CenterCrop": {"size": 24}}]}}]
    keys = {"views": 2, "local_views": 2, "train": "evaluate", "local": "evaluate", key: sometimes}
    pipeline = Pipeline(Transform(resize=32, crop=32, **keys), channels="gray", random=True)
    with pytest.raises(ConfigError, match=f"transform.{key}: views of one image have .*24 x 24"):
        for seed in range(100):
            pipeline.sample(torch.rand(1, 32, 32), seed)


def test_images_with_reports_have_local_views_too(phantom):
    image = dict(root=str(phantom), file="image.tok", image_path=str(phantom), resize=40, crop=32)
    image |= dict(views=2, second="simclr", local_views=2, local_crop=16)
    node = {"proto": "ImSeq", "image": image, "seq": dict(root=str(phantom), file="report.tok")}
    dataset = build(node, Context(split="train", augment=True))
    assert isinstance(dataset, ImSeq)
    batch = dataset.collate([dataset[i, 5] for i in range(3)])
    assert batch["images"].shape == (3, 2, 1, 32, 32) and batch["local"].shape == (3, 2, 1, 16, 16)
    assert len(dataset.reports) == len(dataset)


# ------------------------------------------------------------------ advice

CLEAN = {
    "colours": ("simclr-natural", dict(mode="rgb", reports=None)),
    "grey": ("simclr", dict(mode="gray", reports=None)),
    "reports": ("convirt", dict(mode="gray", reports=["opacity in the left lung"])),
    "no side": ("simclr", dict(mode="gray", reports=["leftover contrast", "the heart is bright"])),
    "small": ("novel", dict(mode="rgb", reports=None)),
}


@pytest.mark.parametrize("case", CLEAN)
def test_nothing_to_say(case):
    name, keys = CLEAN[case]
    for crop in (28, 35, 96, 224):
        assert advise(preset(name, crop), crop=crop, **keys) == []


def test_what_is_warned_of():
    colours = advise(preset("byol-first", 64), crop=64, mode="gray", reports=None)
    assert len(colours) == 1
    assert "saturation of ColorJitter, hue of ColorJitter, RandomGrayscale: no" in colours[0]
    blur = {"RandomApply": {"p": 0.5, "transforms": [{"GaussianBlur": {"kernel_size": [3, 23]}}]}}
    wide = advise([blur], crop=64, mode="rgb", reports=None)
    assert len(wide) == 1 and "kernel of 23" in wide[0] and "kernel_size: 7" in wide[0]
    flip = advise(["RandomHorizontalFlip"], crop=64, mode="rgb", reports=["Right-sided mass", ""])
    assert len(flip) == 1 and "1 of 2 reports name a side" in flip[0]
    off = [{"RandomHorizontalFlip": {"p": 0}}]
    assert not advise(off, crop=64, mode="rgb", reports=["left"])


def test_advice_names_its_keys(phantom):
    keys = dict(resize=40, crop=32, views=2, train="byol-first", second="byol-second")
    transform = Transform(**keys, local_views=1, local_crop=32)
    dataset = ImageFolder(
        Context(split="train", augment=True), root=str(phantom / "images"), transform=transform
    )
    told = advise_on(dataset)
    assert [text.split(":")[0] for text in told] == [
        "views drawn by `train`, `second`, `local`",
        "local_crop of 32 is not smaller than crop, 32; local views are meant to show less",
    ]


def test_training_warns_once(tiny, capsys):
    train(
        load_config(
            "config/SELFSUP/simclr-phantom.yml", [*tiny(), "dataset.transform.train=convirt"]
        )
    )
    assert "warning: views" not in capsys.readouterr().err
    overrides = [*tiny("warned"), "dataset.transform.train=simclr-natural"]
    train(load_config("config/SELFSUP/simclr-phantom.yml", overrides))
    assert capsys.readouterr().err.count("no effect on grey images") == 1
