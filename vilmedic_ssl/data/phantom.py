"""The built-in image-report cohort: chest-like drawings with true reports, labels, boxes and masks.

What it is NOT: these are not medical images. Nothing here was seen by a scanner or a radiologist,
the anatomy is a cartoon, the diseases are ellipses, the reports are templates, and frequencies are
chosen for balance. A number measured on it says that software works; it is never evidence of
clinical performance, nor of how a method ranks on real films.

What it is: the same kinds of files, columns and traps as a hospital export. Patients have several
studies, studies have several views; files are 16-bit PNG, 8-bit JPEG or MONOCHROME1 DICOM by a coin
that knows nothing else; position, zoom, rotation, exposure, gamma, bias, noise, blur and
collimation change from film to film. Everything follows from the seed, patient by patient, so a
larger cohort begins with the patients of a smaller one.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from .phantom_draw import LATERAL, MM_PER_UNIT, Anatomy, Finding, draw_film
from .phantom_text import LABELS, OPACITIES, Labels, write_report

VERSION = 1  # raise it when any byte of the cohort changes
STAMP = "phantom.json"
SPLITS = ("train", "validate", "test")
# What `dominant` can be; drawn about equally often.
DOMINANT = (
    "No Finding",
    "Pleural Effusion",
    "Consolidation",
    "Pneumothorax",
    "Cardiomegaly",
    "Lung Lesion",
)
DRAWN = (*DOMINANT[1:], "Atelectasis")
# finding -> extent in mm at severity 0 and what severity 1 adds
EXTENT = {
    "Pleural Effusion": (44, 80),
    "Consolidation": (60, 60),
    "Pneumothorax": (22, 48),
    "Lung Lesion": (18, 26),
    "Atelectasis": (50, 30),
}
VIEW_SETS = (("PA",), ("PA", LATERAL), ("AP",), ("AP", "PA"), ("PA", "AP", LATERAL))
VIEW_ODDS = (0.30, 0.28, 0.14, 0.22, 0.06)  # about a fifth of the films is lateral
FORMATS, FORMAT_ODDS = ("png", "jpg", "dcm"), (0.6, 0.3, 0.1)
DEVICES = ("pacemaker", "central line", "endotracheal tube")


@dataclass(frozen=True)
class Study:
    patient: str
    name: str
    findings: tuple[Finding, ...]
    device: str
    report: str
    labels: Labels

    @property
    def dominant(self) -> str:
        return self.findings[0].name if self.findings else "No Finding"


def make_phantom(root: Path, *, patients: int = 600, size: int = 128, seed: int = 0) -> Path:
    """Makes the cohort in `root` unless it is there already, and returns `root`.

    Args:
        root: folder to fill; it must be absent, empty or an older cohort, which is replaced.
        patients: number of patients, about 2.8 films each.
        size: height and width of every film in pixels, at least 48.
        seed: everything is drawn from (seed, patient).

    Raises:
        UserError: a number is out of range, or `root` holds something else.
    """
    root = Path(root)
    if patients < 1 or size < 48 or seed < 0:
        raise UserError(
            f"phantom: patients={patients}, size={size}, seed={seed} is out of range; "
            "use patients >= 1, size >= 48 and seed >= 0"
        )
    stamp = {"version": VERSION, "patients": patients, "size": size, "seed": seed}
    if read_stamp(root) == stamp:
        return root
    if root.exists() and read_stamp(root) is None and (not root.is_dir() or any(root.iterdir())):
        raise UserError(
            f"phantom: {root} exists and is not a built-in cohort; "
            "name another folder or move it away"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        built = scratch / "cohort"
        write_cohort(built, patients, size, seed)
        (built / STAMP).write_text(json.dumps(stamp) + "\n")
        put_in_place(built, root, scratch / "old", stamp)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def put_in_place(fresh: Path, root: Path, old: Path, stamp: dict[str, int]) -> None:
    """Moves a finished cohort to its name, unless another process was faster with the same one.

    Raises:
        UserError: a cohort of other numbers is there, and something beside it.
    """
    try:
        if read_stamp(root) != stamp:
            if root.exists():
                names = sorted({p.name for p in root.iterdir()} - {p.name for p in fresh.iterdir()})
                if names:
                    raise UserError(
                        f"phantom: {root} holds another cohort, and beside it {names[0]}, which "
                        "would be lost; move that away, or name another folder"
                    )
                root.rename(old)
            fresh.rename(root)
    except OSError:
        if read_stamp(root) != stamp:
            raise


def read_stamp(root: Path) -> dict[str, int] | None:
    try:
        return json.loads((root / STAMP).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None


def write_cohort(root: Path, patients: int, size: int, seed: int) -> None:
    manifest: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for index in range(patients):
        rng = np.random.default_rng([seed, index])
        split = split_of(seed, index)
        anatomy = Anatomy.draw(rng)
        for study in plan_patient(f"p{index:04d}", anatomy, rng):
            views = VIEW_SETS[rng.choice(len(VIEW_SETS), p=VIEW_ODDS)]
            for number, view in enumerate(views):
                path, kind, found = write_film(root, study, number, view, anatomy, size, rng)
                boxes += found
                key = {
                    "patient": study.patient,
                    "study": f"{study.patient}_{study.name}",
                    "view": view,
                    "path": path,
                }
                text = {"report": study.report, "split": split, "dominant": study.dominant}
                manifest.append(
                    key | text | {n: "" if v is None else v for n, v in study.labels.items()}
                )
                truth.append(key | {"format": kind} | true_row(study))
    write_csv(root / "manifest.csv", manifest)
    write_csv(root / "truth.csv", truth)
    write_csv(root / "boxes.csv", boxes)
    write_tok(root, manifest, truth)
    (root / "README.txt").write_text(CARD)


def split_of(seed: int, index: int) -> str:
    """Each ten consecutive patients are shuffled into seven train, one validate, two test."""
    order = np.random.default_rng([seed, index // 10, 1]).permutation(10)
    return SPLITS[int(np.searchsorted((6.5, 7.5), order[index % 10]))]


# ---- what a patient has --------------------------------------------------------------------------


def plan_patient(patient: str, anatomy: Anatomy, rng: np.random.Generator) -> Iterator[Study]:
    """One to three studies; a finding may persist from one to the next and change its severity."""
    words = rng.spawn(1)[0]  # apart, so that another wording draws the same pictures
    implant = DEVICES[0] if rng.random() < 0.12 else ""
    before: tuple[Finding, ...] | None = None
    for number in range(1 + int(rng.choice(3, p=(0.5, 0.3, 0.2)))):
        findings = (
            follow_up(before, anatomy, rng)
            if before and rng.random() < 0.4
            else fresh(anatomy, rng)
        )
        device = implant or (DEVICES[int(rng.integers(1, 3))] if rng.random() < 0.2 else "")
        report, labels = write_report(
            findings, before, device, 2 * anatomy.cage * MM_PER_UNIT, words
        )
        yield Study(patient, f"s{number + 1}", findings, device, report, labels)
        before = findings


def fresh(anatomy: Anatomy, rng: np.random.Generator) -> tuple[Finding, ...]:
    """Nothing, or a dominant finding, sometimes with an effusion opposite or a minor finding."""
    main = DOMINANT[int(rng.integers(len(DOMINANT)))]
    if main == "No Finding":
        return ()
    out = [place(main, anatomy, rng.uniform(0.15, 1.0), rng)]
    chance = rng.random()
    if main == "Pleural Effusion" and chance < 0.15:
        twin = resize(out[0], rng.uniform(0.0, 0.8), anatomy)
        out.append(replace(twin, side="right" if twin.side == "left" else "left"))
    elif chance > 0.84:
        minor = DRAWN[(DRAWN.index(main) + int(rng.integers(1, len(DRAWN)))) % len(DRAWN)]
        out.append(place(minor, anatomy, rng.uniform(0.0, 0.4), rng))
    return tuple(out)


def follow_up(
    before: Sequence[Finding], anatomy: Anatomy, rng: np.random.Generator
) -> tuple[Finding, ...]:
    return tuple(
        resize(f, float(np.clip(f.severity + rng.uniform(-0.35, 0.35), 0.05, 1)), anatomy)
        for f in before
    )


def place(name: str, anatomy: Anatomy, severity: float, rng: np.random.Generator) -> Finding:
    side = "" if name == "Cardiomegaly" else ("left", "right")[int(rng.integers(2))]
    y = rng.uniform(0.1, 0.3) if name == "Atelectasis" else rng.uniform(-0.55, 0.28)
    t = rng.uniform(0.3, 0.5) + (
        0.1 if y > 0 and side == "left" else 0.0
    )  # keeps clear of the heart
    spot = {"t": float(t), "y": float(y), "z": float(rng.uniform(-0.25, 0.3))}
    return resize(Finding(name, side, 0.0, **spot), severity, anatomy)


def resize(finding: Finding, severity: float, anatomy: Anatomy) -> Finding:
    if finding.name == "Cardiomegaly":  # beyond half of the chest, the usual limit
        size = 2 * anatomy.cage * MM_PER_UNIT * (0.55 + 0.16 * severity)
    else:
        least, growth = EXTENT[finding.name]
        size = least + growth * severity
    return replace(finding, severity=round(severity, 3), size_mm=round(size, 1))


def true_row(study: Study) -> dict[str, Any]:
    """What the picture shows, whatever the report says of it."""
    row: dict[str, Any] = {"dominant": study.dominant, "device": study.device}
    for name in DRAWN:
        here = [f for f in study.findings if f.name == name]
        row[name] = int(bool(here))
        row[f"{name} side"] = "both" if len(here) == 2 else here[0].side if here else ""
        row[f"{name} severity"] = max(f.severity for f in here) if here else ""
        row[f"{name} mm"] = max(f.size_mm for f in here) if here else ""
    return row


def true_names(row: dict[str, Any]) -> list[str]:
    """Names for a .label.tok line, in the order of LABELS."""
    names = {name for name in DRAWN if row[name]}
    if names & set(OPACITIES):
        names.add("Lung Opacity")
    if not names:
        names.add("No Finding")
    if row["device"]:
        names.add("Support Devices")
    return [name for name in LABELS if name in names]


# ---- files ---------------------------------------------------------------------------------------


def write_film(
    root: Path,
    study: Study,
    number: int,
    view: str,
    anatomy: Anatomy,
    size: int,
    rng: np.random.Generator,
) -> tuple[str, str, list[dict[str, Any]]]:
    """Draws one film and its masks; returns its relative path, its format and a row per box."""
    film, masks = draw_film(
        anatomy, study.findings, view=view, device=study.device, size=size, rng=rng
    )
    kind = FORMATS[rng.choice(len(FORMATS), p=FORMAT_ODDS)]
    stem = f"{study.patient}/{study.name}/{study.patient}_{study.name}_{number}"
    path = f"images/{stem}.{kind}"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "masks" / stem).parent.mkdir(parents=True, exist_ok=True)
    {"png": write_png, "jpg": write_jpeg, "dcm": write_dicom}[kind](root / path, film)
    rows = []
    for f, mask in zip(study.findings, masks, strict=True):
        name = "_".join(filter(None, (stem, f.name.lower().replace(" ", "-"), f.side)))
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"{name}.png")
        (ys, xs), extent = np.nonzero(mask), {"severity": f.severity, "size_mm": f.size_mm}
        box = {"x0": xs.min(), "y0": ys.min(), "x1": xs.max() + 1, "y1": ys.max() + 1}
        rows.append(
            {"path": path, "finding": f.name, "side": f.side}
            | box
            | extent
            | {"mask": f"masks/{name}.png"}
        )
    return path, kind, rows


def write_png(path: Path, film: np.ndarray) -> None:
    Image.fromarray(np.round(film * 65535).astype(np.uint16)).save(path, compress_level=3)


def write_jpeg(path: Path, film: np.ndarray) -> None:
    Image.fromarray(np.round(film * 255).astype(np.uint8)).save(path, quality=95)


def write_dicom(path: Path, film: np.ndarray) -> None:
    """A 12-bit MONOCHROME1 file (0 is white), not compressed, nobody's name in it."""
    import pydicom
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")  # DX, for presentation
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{int.from_bytes(path.stem.encode(), 'big')}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    data.Modality, data.PatientID, data.PatientName = "DX", path.stem.split("_")[0], ""
    data.PatientIdentityRemoved, data.ImageComments = (
        "YES",
        "Synthetic drawing, not a medical image",
    )
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME1"
    data.Rows, data.Columns = film.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.WindowCenter, data.WindowWidth = 2048, 4096  # the whole range
    data.PixelData = (4095 - np.round(film * 4095)).astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_tok(root: Path, manifest: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    for split in SPLITS:
        pairs = [(m, t) for m, t in zip(manifest, truth, strict=True) if m["split"] == split]
        for file, lines in {
            "image": [m["path"] for m, _ in pairs],
            "report": [m["report"] for m, _ in pairs],
            "label": [",".join(true_names(t)) for _, t in pairs],
            "dominant": [m["dominant"] for m, _ in pairs],
        }.items():
            (root / f"{split}.{file}.tok").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )


CARD = """\
Built-in image-report cohort of vilmedic_ssl.
Drawings, not medical images; never evidence of clinical performance.

manifest.csv   one row per film: patient, study, view, path, report, split, dominant, then 14 label
               columns as a reader of the report would set them: 1 present, 0 absent,
               -1 uncertain, blank not mentioned
truth.csv      one row per film: what the drawing shows, also where the report is silent or hedges
boxes.csv      one row per finding and film: pixel box [x0, x1) x [y0, y1), severity from 0 to 1,
               extent in mm, mask
images/        16-bit grey PNG, 8-bit JPEG and 12-bit MONOCHROME1 DICOM, drawn at random
masks/         8-bit PNG, 255 inside the finding
*.image.tok, *.report.tok, *.label.tok, *.dominant.tok
               the same films per split, one per line; label lines follow truth.csv
The patient's left is on the right of a PA or AP film.
"""
