"""Named lists of transforms, each of which may as well be written out in YAML.

Two views must still show the same thing. Where a finding is small, a crop from 8 % of the area cuts
it away: medical SimCLR was best from 50 % (`simclr`). The presets for photographs (`byol-*`,
`dino-*`, `simclr-natural`) crop as published; on medical images write their list with a larger
`scale`. Their colour parts do nothing to grey images.
"""

from __future__ import annotations

from typing import Any

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

Size = int | list[int]
FLIP = "RandomHorizontalFlip"
GREY = {"RandomGrayscale": {"p": 0.2}}


def sides(size: Size) -> list[int]:
    """Pixels, or [height, width], as [height, width]."""
    return [size, size] if isinstance(size, int) else list(size)


def _zoom(size: Size, smallest: float, largest: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"RandomResizedCrop": {"size": sides(size), "scale": [smallest, largest], **more}}


def _cubic(size: Size, smallest: float, largest: float = 1.0) -> dict[str, Any]:
    return _zoom(size, smallest, largest, interpolation="bicubic")


def _maybe(p: float, *items: Any) -> dict[str, Any]:
    return {"RandomApply": {"p": p, "transforms": list(items)}}


def _jitter(*strengths: float) -> dict[str, Any]:
    """Strengths of brightness, contrast, saturation and hue."""
    names = ("brightness", "contrast", "saturation", "hue")
    return {"ColorJitter": dict(zip(names, strengths, strict=False))}


def _blur(crop: Size, sigma: float = 2.0) -> dict[str, Any]:
    """Gaussian blur whose kernel is a tenth of the image (SimCLR, Chen et al. 2020, appendix A),
    odd.
    """
    kernel = max(3, min(sides(crop)) // 10 | 1)
    return {"GaussianBlur": {"kernel_size": kernel, "sigma": [0.1, sigma]}}


def _simclr(crop: Size) -> dict[str, list[Any]]:
    """`simclr`: crop area 0.5 to 1, flip, brightness and contrast 0.5, blur. `simclr-natural`: the
    published one (Chen et al. 2020, appendix A). `simclr-test-crop`: the central 87.5 %.
    """
    height, width = sides(crop)
    share = {"CenterCropShare": {"share": 0.875, "aspect": width / height}}
    blur = _maybe(0.5, _blur(crop))
    colour = _maybe(0.8, _jitter(0.8, 0.8, 0.8, 0.2))
    return {
        "simclr": [_zoom(crop, 0.5), FLIP, _maybe(0.8, _jitter(0.5, 0.5)), blur],
        "simclr-natural": [_zoom(crop, 0.08), FLIP, colour, GREY, blur],
        "simclr-test-crop": [share, {"Resize": {"size": sides(crop), "interpolation": "bicubic"}}],
    }


def _medmnist(crop: Size) -> dict[str, list[Any]]:
    """The four sequences of SimCLR on MedMNIST (the code of j-freddy/simclr-medical-imaging).
    Published for crops of 28 pixels with a blur of kernel 9 and sigma 0.1 to 2; both grow with the
    crop, so that as much is blurred away.
    """
    scale = min(sides(crop)) / 28
    kernel = max(3, int(9 * scale + 1) // 2 * 2 - 1)
    blur = {"GaussianBlur": {"kernel_size": kernel, "sigma": [0.1 * scale, 2.0 * scale]}}
    strong = _maybe(0.8, _jitter(0.5, 0.5, 0.5, 0.1))
    weak = _maybe(0.8, _jitter(0.2, 0.2, 0.2, 0.04))
    crisp = [{"EqualizeLuma": {"p": 0.5}}, {"RandomSharpness": {"low": 1.0, "high": 10.0}}]
    zoom = _zoom(crop, 0.08)
    return {
        "natural": [FLIP, zoom, strong, GREY, blur],
        "simple": [zoom, strong, blur],
        "novel": [FLIP, zoom, weak, GREY, blur, *crisp],
        "greyscale": [FLIP, zoom, blur, *crisp],
    }


def _covid(crop: Size) -> dict[str, list[Any]]:
    """A base, the base with one addition each, and `covid-chosen` with those that were kept: Barlow
    Twins on chest films of COVID-19 (PolLM/Self-supervised-learning-for-medical-imaging). A
    contrast factor of 1 changes nothing here; the published one was also multiplied by the
    deviation of the image, and did harm.
    """
    base = [_cubic(crop, 0.08), FLIP]
    blur, noise = _maybe(0.5, _blur(crop)), _maybe(0.5, {"SNRNoise": {"low": 0.06, "high": 0.1}})
    perspective = {"RandomPerspective": {"distortion_scale": 0.15, "p": 0.5}}
    upside, equal = "RandomVerticalFlip", {"RandomEqualize": {"p": 0.5}}
    light = _maybe(0.5, {"AdditiveBrightness": {"low": -0.2, "high": 0.2}})
    contrast = _maybe(0.5, {"ContrastAroundMean": {"low": 0.0, "high": 2.0}})
    return {
        "covid": base,
        "covid-blur-noise": [*base, blur, noise],
        "covid-equalize": [*base, equal],
        "covid-rotation": [*base, {"RandomRotation": {"degrees": 20}}],
        "covid-brightness-contrast": [*base, light, contrast],
        "covid-perspective": [*base, perspective],
        "covid-vertical-flip": [*base, upside],
        "covid-chosen": [*base, upside, equal, blur, perspective, noise],
    }


def _films(crop: Size) -> dict[str, list[Any]]:
    """`convirt`: crop 0.6 to 1, rotation 20 degrees, shift 0.1, scale 0.95 to 1.05, brightness and
    contrast 0.4, blur of sigma 0.1 to 3 (Zhang et al. 2020); without its horizontal
    flip, which would contradict a report that names a side. `moco-cxr`: flip, rotation 10 degrees
    (Sowrirajan et al. 2021), no crop but to the size.
    """
    affine = {"RandomAffine": {"degrees": 20, "translate": [0.1, 0.1], "scale": [0.95, 1.05]}}
    window = {"RandomCrop": {"size": sides(crop), "pad_if_needed": True}}
    blur = _maybe(0.5, _blur(crop, 3.0))
    return {
        "convirt": [_zoom(crop, 0.6), affine, _jitter(0.4, 0.4), blur],
        "moco-cxr": [FLIP, {"RandomRotation": {"degrees": 10}}, window],
    }


def _photographs(crop: Size) -> dict[str, list[Any]]:
    """`byol-first`, `byol-second`: BYOL's pair (Grill et al. 2020, appendix B, table 6).
    `dino-first`, `dino-second`, `dino-local`: DINO's (Caron et al. 2021, its published code).
    `mae`: crop from 0.2 and flip (He et al. 2022, appendix A.1).
    """
    colour = [FLIP, _maybe(0.8, _jitter(0.4, 0.4, 0.2, 0.1)), GREY]
    first = [*colour, _blur(crop)]
    solarise = {"RandomSolarize": {"threshold": 0.5, "p": 0.2}}
    second = [*colour, _maybe(0.1, _blur(crop)), solarise]
    return {
        "byol-first": [_cubic(crop, 0.08), *first],
        "byol-second": [_cubic(crop, 0.08), *second],
        "dino-first": [_cubic(crop, 0.4), *first],
        "dino-second": [_cubic(crop, 0.4), *second],
        "dino-local": [_cubic(crop, 0.05, 0.4), *colour, _maybe(0.5, _blur(crop))],
        "mae": [_cubic(crop, 0.2), FLIP],
    }


def presets(crop: Size) -> dict[str, list[Any]]:
    """All of them by name, for views of `crop` pixels; `evaluate` resizes to it."""
    families = (_simclr, _medmnist, _covid, _films, _photographs)
    found = {name: items for family in families for name, items in family(crop).items()}
    return {**found, "evaluate": [{"Resize": {"size": sides(crop)}}]}


def preset(name: str, crop: Size) -> list[Any]:
    """The list behind a preset name.

    Raises:
        ConfigError: unknown name.
    """
    known = presets(crop)
    if name not in known:
        raise ConfigError(f"there is no transform preset {name!r}; {closest(name, known)}")
    return known[name]
