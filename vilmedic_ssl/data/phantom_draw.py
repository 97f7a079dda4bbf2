"""Draws one chest-like film of the built-in cohort, with a mask for every finding.

A cartoon made of ellipses and cosines: enough structure to test image-text software, no anatomy and
no radiology to be learned from it. All shapes live in anatomical units: x grows towards the image's
right, which is the patient's LEFT (radiological convention), y grows downwards, and the rib cage is
about 1.6 wide. A film is rendered straight on the shifted, rotated and zoomed grid, so that masks
stay exact. Brightness comes from where there is no air.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

MM_PER_UNIT = 185.0  # puts the widest chest, 1.6 units, at about 30 cm
SIGN = {"left": 1.0, "right": -1.0}  # patient's side -> sign of x on a frontal film
LATERAL = "LATERAL"


@dataclass(frozen=True)
class Anatomy:
    """What all films of one patient share; lengths in anatomical units."""

    cage: float  # half width of the rib cage
    diaphragm: float  # y of the left dome
    heart: float  # transverse half width of the heart
    tilt: float  # of the heart, radians
    hilum: float  # half width of the mediastinum
    fat: float  # soft tissue outside the cage
    bend: float  # of the spine
    rib_gap: float
    rib_phase: float
    vessels: float  # phase of the vessel pattern
    bone: float  # density of bone
    bubble: float  # size of the stomach bubble

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Anatomy:
        low = (0.70, 0.42, 0.37, 0.1, 0.10, 0.12, -0.06, 0.15, 0.0, 0.0, 0.07, 0.07)
        high = (0.84, 0.56, 0.46, 0.6, 0.14, 0.30, 0.06, 0.19, 1.0, 6.28, 0.15, 0.13)
        cage, diaphragm, ratio, *rest = (float(v) for v in rng.uniform(low, high))
        return cls(cage, diaphragm, ratio * cage, *rest)


@dataclass(frozen=True)
class Finding:
    """One abnormality: severity in [0, 1], centre (t outwards, y down, z back), extent in mm."""

    name: str
    side: str  # "left", "right" or "" (heart)
    severity: float
    t: float = 0.0
    y: float = 0.0
    z: float = 0.0
    size_mm: float = 0.0


@dataclass
class Scene:
    """Soft maps, float32 (S, S), from which a film is composed; two of them keyed by side."""

    x: np.ndarray
    y: np.ndarray
    lateral: bool
    body: np.ndarray
    heart: np.ndarray
    bone: np.ndarray
    vessels: np.ndarray
    wall: np.ndarray  # depth below the inner chest wall
    bottom: float  # y of the deepest sinus
    outward: dict[str, np.ndarray] = field(default_factory=dict)
    lung: dict[str, np.ndarray] = field(default_factory=dict)


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """1 where distance >> 0, 0 where << 0, a smooth step of the given half width between."""
    s = np.clip(distance / (2 * width) + 0.5, 0, 1)
    return s * s * (3 - 2 * s)


def ridge(distance: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-np.square(distance / width))


def ellipse(x: np.ndarray, y: np.ndarray, rx: float, ry: float, tilt: float = 0.0) -> np.ndarray:
    """Approximate signed distance to an ellipse round the origin, positive inside."""
    c, s = np.cos(tilt), np.sin(tilt)
    return (1 - np.hypot((x * c + y * s) / rx, (y * c - x * s) / ry)) * min(rx, ry)


def clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of unit variance with about `cells` grains a side, float32 (size, size)."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    noise = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return noise / (noise.std() + 1e-6)


def polyline(x: np.ndarray, y: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Distance of every pixel to a chain of segments."""
    best = np.full_like(x, 9.0)
    for (ax, ay), (bx, by) in zip(points, points[1:], strict=False):
        dx, dy = bx - ax, by - ay
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
        best = np.minimum(best, np.hypot(x - ax - along * dx, y - ay - along * dy))
    return best


def grid(
    size: int, *, shift: tuple[float, float], zoom: float, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Anatomical coordinates of every pixel centre, two float32 (size, size)."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1) * 1.02 / zoom
    u, v = np.meshgrid(line, line)
    c, s = np.cos(angle), np.sin(angle)
    return (u * c - v * s - shift[0]).astype(np.float32), (u * s + v * c - shift[1]).astype(
        np.float32
    )


def frontal(x: np.ndarray, y: np.ndarray, a: Anatomy, heart: float) -> Scene:
    """The scene of a PA or AP film; `heart` multiplies the width of the heart."""
    mid = x - a.bend * y * y
    cage = (
        1 - (np.abs(mid / a.cage) ** 2.2 + np.abs((y + 0.05) / 0.83) ** 2.2) ** (1 / 2.2)
    ) * a.cage
    shoulders = soft(0.25 - np.abs(y + 1.0), 0.3) * 0.35
    body = soft(a.cage + a.fat + shoulders - np.abs(x), 0.04)
    spine = soft(0.085 - np.abs(mid), 0.02) * (0.75 + 0.25 * np.cos(6.28 * y / 0.17))
    slope = 0.55 * np.abs(mid) - 0.5 * mid * mid
    back = np.cos(6.28 * ((y - slope) / a.rib_gap + a.rib_phase))
    front = np.cos(6.28 * ((y + 0.7 * np.abs(mid)) / (1.2 * a.rib_gap) + 2 * a.rib_phase))
    inside = soft(cage + 0.03, 0.02) * soft(0.65 - y, 0.1)
    ribs = inside * (0.6 * soft(back - 0.35, 0.5) + 0.35 * soft(front - 0.5, 0.5))
    collar = soft(0.028 - np.abs(y + 0.66 + 0.16 * np.abs(x)), 0.02) * soft(0.75 - np.abs(x), 0.05)
    left_edge = 0.62 * a.heart + 0.78 * a.heart * (heart - 1)  # grows mostly to the patient's left
    centre = left_edge - 0.42 * a.heart
    heart_map = ellipse(
        x - centre, y - a.diaphragm + 0.22, a.heart * heart, 0.27 * heart**0.6, -a.tilt * 0.6
    )
    aorta = ellipse(x - 0.09, y + 0.34, 0.11, 0.12)
    core = np.maximum(soft(heart_map, 0.03), soft(aorta, 0.02) * 0.7)
    bubble = soft(ellipse(x - 0.42, y - a.diaphragm - 0.17, 1.5 * a.bubble, a.bubble), 0.03)
    trachea = soft(0.035 - np.abs(mid), 0.02) * soft(-0.35 - y, 0.05)
    theta = np.arctan2(y + 0.0, np.abs(mid) - 0.15)
    radius = np.hypot(y, np.abs(mid) - 0.15)
    wave = np.cos(9 * theta + a.vessels * np.sign(mid) + 1.5 * np.sin(7 * radius + a.vessels))
    vessels = np.clip(wave, 0, 1) ** 3 * np.exp(-radius / 0.4) + 0.9 * ridge(radius, 0.11)
    scene = Scene(
        x,
        y,
        False,
        body - 0.45 * bubble - 0.25 * trachea,
        core,
        a.bone * (ribs + 1.2 * spine + 1.1 * collar),
        vessels,
        cage,
        a.diaphragm + 0.11,
    )
    for side, sign in SIGN.items():
        outward = sign * mid
        dome = a.diaphragm - 0.03 * (1 - sign) + 0.95 * np.square(outward - 0.4)
        inner = outward - a.hilum * (0.9 + 0.3 * ridge(y, 0.25))
        scene.outward[side] = outward
        scene.lung[side] = soft(np.minimum(np.minimum(cage, dome - y), inner), 0.02)
    return scene


def lateral(x: np.ndarray, y: np.ndarray, a: Anatomy, heart: float) -> Scene:
    """The scene of a lateral film, chest to the image's left; the lungs cover each other."""
    width = 0.74 * a.cage
    cage = (1 - (np.abs(x / width) ** 2.4 + np.abs((y + 0.05) / 0.85) ** 2.4) ** (1 / 2.4)) * width
    body = soft(width + 0.8 * a.fat - np.abs(x), 0.04)
    track = x - 0.8 * width + 0.15 * y * y
    spine = soft(0.1 - np.abs(track), 0.02) * (0.7 + 0.3 * np.cos(6.28 * y / 0.18))
    sternum = ridge(x + 0.93 * width - 0.12 * y, 0.03)
    ribs = (
        soft(np.cos(6.28 * ((y - 0.45 * x) / a.rib_gap + a.rib_phase)) - 0.4, 0.5)
        * soft(cage, 0.03)
        * 0.5
    )
    heart_map = ellipse(
        x + 0.22, y - a.diaphragm + 0.22, 0.8 * a.heart * heart, 0.25 * heart**0.7, 0.4
    )
    radius = np.hypot(x, y + 0.02)
    wave = np.cos(8 * np.arctan2(y + 0.02, x) + a.vessels + np.sin(8 * radius))
    vessels = np.clip(wave, 0, 1) ** 3 * np.exp(-radius / 0.35) + ridge(radius, 0.1)
    trachea = soft(0.035 - np.abs(x - 0.1 * y), 0.02) * soft(-0.3 - y, 0.05)
    bubble = soft(ellipse(x - 0.05, y - a.diaphragm - 0.2, 1.3 * a.bubble, a.bubble), 0.03)
    scene = Scene(
        x,
        y,
        True,
        body - 0.4 * bubble - 0.2 * trachea,
        soft(heart_map, 0.03),
        a.bone * (ribs + 1.3 * spine + sternum),
        vessels,
        cage,
        a.diaphragm + 0.19,
    )
    lung = soft(np.minimum(cage, a.diaphragm + 0.35 * x + 0.25 * x * x - y), 0.02)
    for side in SIGN:
        scene.outward[side], scene.lung[side] = x, lung
    return scene


def compose(
    scene: Scene, findings: Sequence[Finding], rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Attenuation (S, S), roughly in [0, 1], and one soft mask (S, S) per finding."""
    size = scene.x.shape[0]
    lungs = np.maximum(scene.lung["left"], scene.lung["right"])
    air, vessels, extra = lungs * (1 - 0.9 * scene.heart), scene.vessels, np.zeros_like(scene.x)
    masks = []
    for f in findings:
        mask, filled, line = shape_of(scene, f, rng, size)
        if f.name == "Pneumothorax":
            inside = scene.lung[f.side] * (1 - mask)
            air = air * (1 - (0.15 + 0.25 * f.severity) * inside) + 0.16 * mask * (1 - scene.heart)
            vessels = vessels * (1 - mask)
        air, extra = air * (1 - filled), np.maximum(extra, line)
        masks.append(mask)
    dense = 0.66 * scene.body - 0.5 * air + 0.1 * scene.heart
    return dense + scene.bone + 0.16 * vessels * air + extra, masks


def shape_of(
    scene: Scene, f: Finding, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mask, share of air replaced, brightness added) of one finding, each (S, S)."""
    nothing = np.zeros_like(scene.x)
    if f.name == "Cardiomegaly":  # the scene was built with the large heart
        return scene.heart * soft(scene.y + 0.2, 0.02), nothing, nothing
    lung, outward = scene.lung[f.side], scene.outward[f.side]
    across = scene.x - f.z if scene.lateral else outward - f.t
    if f.name == "Pleural Effusion":
        height = f.size_mm / MM_PER_UNIT
        level = scene.bottom - height * (1 + 0.7 * np.square(np.clip((outward - 0.3) / 0.45, 0, 1)))
        fluid = soft(scene.y - level, 0.03) * soft(lung - 0.05, 0.05)
        return fluid * lung, 0.97 * fluid, nothing
    if f.name == "Pneumothorax":
        gap = f.size_mm / MM_PER_UNIT * (1 - 0.65 * np.clip((scene.y + 0.9) / 1.3, 0, 1))
        region = soft(gap - scene.wall, 0.01) * lung
        return region, nothing, 0.18 * ridge(scene.wall - gap, 0.016) * lung
    radius = f.size_mm / MM_PER_UNIT / 2
    if f.name == "Lung Lesion":
        disc = soft(radius - np.hypot(across, scene.y - f.y), 0.25 * radius)
        return disc, 0.3 * disc, 0.4 * disc
    if f.name == "Atelectasis":
        band = soft(0.018 - np.abs(scene.y - f.y - 0.3 * across), 0.015) * soft(
            radius - np.abs(across), 0.03
        )
        return band * lung, 0.6 * band, nothing
    ragged = ellipse(across, scene.y - f.y, 1.1 * radius, 0.9 * radius) + 0.05 * clouds(
        rng, size, 12
    )
    patch = soft(ragged, 0.06) * lung  # consolidation
    texture = np.clip(0.85 + 0.2 * clouds(rng, size, 24), 0.3, 1)
    return patch, (0.6 + 0.3 * f.severity) * patch * texture, nothing


def draw_device(scene: Scene, device: str, rng: np.random.Generator) -> np.ndarray:
    """Brightness (S, S) added by one of the devices; "" adds nothing."""
    x, y = scene.x, scene.y
    jitter = rng.uniform(-0.05, 0.05, 4)
    if device == "pacemaker":
        cx, cy = (-0.45 if scene.lateral else 0.5) + jitter[0], -0.5 + jitter[1]
        box = soft(0.1 - np.abs(x - cx), 0.02) * soft(0.08 - np.abs(y - cy), 0.02)
        lead = [
            (cx, cy),
            (0.1, -0.45),
            (-0.02, -0.1),
            (0.05 + jitter[2], 0.3),
            (0.2, 0.38 + jitter[3]),
        ]
        return np.maximum(0.5 * box, 0.3 * ridge(polyline(x, y, lead), 0.014))
    if device == "central line":
        path = [
            (-0.42 + jitter[0], -1.1),
            (-0.3, -0.68),
            (-0.1, -0.45 + jitter[1]),
            (-0.09, 0.0 + jitter[2]),
        ]
        return 0.26 * ridge(polyline(x, y, path), 0.013)
    if device == "endotracheal tube":
        path = [(jitter[0], -1.2), (0.0, -0.7), (0.01, -0.32 + jitter[1])]
        return 0.24 * ridge(polyline(x, y, path), 0.02)
    return np.zeros_like(x)


def expose(dense: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Density -> film in [0, 1], float32 (S, S): all that differs between takes of one chest."""
    size = dense.shape[0]
    line = np.linspace(-1, 1, size, dtype=np.float32)
    bias = rng.uniform(-0.07, 0.07, 4)
    field_ = (
        bias[0] * line[None]
        + bias[1] * line[:, None]
        + bias[2] * line[None] ** 2
        + bias[3] * line[:, None] ** 2
    )
    film = dense + field_ + rng.uniform(0.01, 0.035) * clouds(rng, size, 7)
    film = 0.5 + (film - 0.45) * rng.uniform(0.75, 1.25) + rng.uniform(-0.10, 0.10)
    film = np.clip(film, 0.0, 1.0) ** rng.uniform(0.65, 1.6)
    film = film + rng.uniform(0.01, 0.04) * rng.standard_normal(film.shape)
    for _ in range(int(rng.integers(0, 3))):  # a binomial blur, both ways
        film = (np.roll(film, 1, 0) + 2 * film + np.roll(film, -1, 0)) / 4
        film = (np.roll(film, 1, 1) + 2 * film + np.roll(film, -1, 1)) / 4
    film = film * collimation(rng, size)
    return np.clip(film, 0, 1).astype(np.float32)


def collimation(rng: np.random.Generator, size: int) -> np.ndarray:
    """1 inside the beam, nearly 0 in the margins of some films (S, S)."""
    beam = np.ones((size, size), np.float32)
    margins = rng.integers(0, max(size // 16, 1), 4) * (rng.random(4) < 0.35)
    dark = rng.uniform(0.0, 0.15)
    beam[: margins[0]] = dark
    beam[size - margins[1] :] = dark
    beam[:, : margins[2]] = dark
    beam[:, size - margins[3] :] = dark
    return beam


def side_marker(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Burns a lead letter L into the upper corner on the patient's left, the image's right."""
    size = film.shape[0]
    unit = max(size // 42, 1)
    top, left = int(rng.integers(unit, 5 * unit)), size - int(rng.integers(5 * unit, 8 * unit))
    film[top : top + 4 * unit, left : left + unit] = 0.97
    film[top + 3 * unit : top + 4 * unit, left : left + 3 * unit] = 0.97
    return film


def draw_film(
    anatomy: Anatomy,
    findings: Sequence[Finding],
    *,
    view: str,
    device: str,
    size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One film and its masks.

    Returns:
        film float32 (size, size) in [0, 1], dense tissue bright; per finding a bool mask
        (size, size), never empty.
    """
    widths = [f.size_mm / MM_PER_UNIT / 2 for f in findings if f.name == "Cardiomegaly"]
    heart = widths[0] / anatomy.heart if widths else 1.0
    if view == "AP":  # the heart is magnified when the beam comes from the front
        heart *= 1.06
    build = lateral if view == LATERAL else frontal
    strength = 1.0
    while True:
        right, down = (float(v) for v in rng.uniform(-0.18, 0.18, 2) * strength)
        zoom, angle = 1 + rng.uniform(-0.22, 0.22) * strength, rng.uniform(-0.2, 0.2) * strength
        scene = build(*grid(size, shift=(right, down), zoom=zoom, angle=angle), anatomy, heart)
        dense, masks = compose(scene, findings, rng)
        bool_masks = [m > min(0.5, 0.99 * m.max()) for m in masks]
        if all(m.max() > 0.5 and m.sum() >= 8 for m in masks) or strength < 0.1:
            break
        strength /= 2  # a finding fell off the film: place the patient better
    film = expose(dense + draw_device(scene, device, rng), rng)
    return (film if view == LATERAL else side_marker(film, rng)), bool_masks
