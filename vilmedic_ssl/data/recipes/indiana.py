"""`indiana-reports` and `indiana-images-512`: the Indiana University chest X-ray collection."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vilmedic_ssl import console
from vilmedic_ssl.data.archive import read_members
from vilmedic_ssl.data.recipes.indiana_xml import Report, parse
from vilmedic_ssl.data.recipes.tables import counts, write_tables
from vilmedic_ssl.data.splits import FRACTIONS, assign
from vilmedic_ssl.errors import UserError

MEMBER = "torchxrayvision/data/NLMCXR_reports.tgz"  # of the wheel
UNDER = "ecgen-radiology/"
SHORT_SIDE = 512  # pixels; smaller films are left as they are

REPORTS_CARD = """\
indiana-reports: reports of chest X-rays, Indiana University, in English, no images.
{about}

Text      `report` is findings and impression with single spaces. De-identification wrote XXXX
          over names, dates and some harmless words: {redacted} reports hold it.
Same text {findings}
          {impressions}
          Two texts are the same when they agree in lower case with single spaces. The last number
          is the share of exact pairs the best possible retrieval could put first.
Split     one study per patient as far as the data tells; drawn by patient from a fixed seed,
          70 / 10 / 20 %. There is no official split, and equal texts lie on both sides of it.
Images    named in the column `images`; `vilmedic-ssl download indiana-images-512` fetches them
          (NLMCXR_png.tgz from openi.nlm.nih.gov) and writes a manifest of images and reports.

reports.csv    patient, study, split, report, findings, impression, indication, comparison, mesh
               (major terms, joined by semicolons), normal (1 where `normal` is the major term),
               images (joined by spaces)
"""

IMAGES_CARD = """\
indiana-images-512: chest X-rays of Indiana University with their reports.
{counts}

Images    8-bit grey, short side at most 512 pixels. Whether a film is frontal is not said.
Reports   as in indiana-reports: findings and impression; {blank} images have none, their line is
          blank. All images of a study share one report.
Split     drawn by patient from a fixed seed, 70 / 10 / 20 %, the same as in indiana-reports.

manifest.csv   patient, study, path, report, split, findings, impression, mesh, normal,
               condition (normal | abnormal)
SPLIT.image.tok .report.tok .label.tok and .condition.tok (normal | abnormal)
"""


def build_reports(wheel: Path, folder: Path) -> tuple[int, str]:
    """reports.csv from the wheel; returns (0 images, text of the card)."""
    reports = read_reports(wheel, folder / ".reports.tgz")
    rows = [
        {
            **{"patient": r.name, "study": r.name, "split": split, "report": r.text},
            **{"findings": r.findings, "impression": r.impression},
            **{"indication": r.indication, "comparison": r.comparison},
            **{"mesh": ";".join(r.mesh), "normal": int(r.normal), "images": " ".join(r.images)},
        }
        for r, split in zip(reports, splits_of(reports), strict=True)
    ]
    with (folder / "reports.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    card = REPORTS_CARD.format(
        about=_about(reports),
        redacted=sum("XXXX" in r.text for r in reports),
        findings=_shared("findings and impression", [r.text for r in reports]),
        impressions=_shared("impression", [r.impression for r in reports]),
    )
    return 0, card


def build_images(wheel: Path, pictures: Path, folder: Path) -> tuple[int, str]:
    """Images and manifest from the wheel and NLMCXR_png.tgz; returns (number, text of the card)."""
    reports = read_reports(wheel, folder / ".reports.tgz")
    owner = {
        image: (report, split)
        for report, split in zip(reports, splits_of(reports), strict=True)
        for image in report.images
    }
    rows = []
    members = console.progress(read_members(pictures), desc="indiana", total=len(owner), unit="img")
    for member, content in members:
        name = Path(member).stem
        if name not in owner or Path(member).suffix != ".png":
            continue
        (folder / f"{name}.png").write_bytes(_shrunk(content, member))
        rows.append(_row(name, *owner[name]))
    if not rows:
        raise UserError(f"indiana-images-512: {pictures} holds no image of a report; fetch it anew")
    if missing := len(owner) - len(rows):
        console.warn(f"indiana-images-512: {missing} images of the reports are not in {pictures}")
    rows.sort(key=lambda row: str(row["path"]))
    write_tables(folder, rows, labels=[], classes=["condition"])
    blank = sum(not row["report"] for row in rows)
    return len(rows), IMAGES_CARD.format(counts=counts(rows), blank=blank)


def read_reports(wheel: Path, scratch: Path) -> list[Report]:
    """Every report, by number.

    Args:
        scratch: a file that may be written and is deleted again.
    """
    inner = [content for name, content in read_members(wheel, under=MEMBER) if name == MEMBER]
    if not inner:
        raise UserError(f"{wheel}: holds no {MEMBER}: delete it and fetch it again")
    scratch.write_bytes(inner[0])
    try:
        reports = [
            parse(content, where=member)
            for member, content in read_members(scratch, under=UNDER)
            if member.endswith(".xml")
        ]
    finally:
        scratch.unlink()
    return sorted(reports, key=lambda r: (len(r.name), r.name))


def splits_of(reports: Sequence[Report]) -> list[str]:
    """The split of every report, the same in both data sets."""
    return assign([r.name for r in reports], fractions=FRACTIONS, seed=0)


def duplicates(texts: Sequence[str]) -> tuple[int, int, float, float]:
    """(texts that are not blank, different ones, share of texts that another one equals, highest
    possible share of exact pairs ranked first); equal in lower case with single spaces.
    """
    found = Counter(key for text in texts if (key := " ".join(text.lower().split())))
    total = found.total()
    if not total:
        return 0, 0, 0.0, 0.0
    twins = sum(n for n in found.values() if n > 1)
    return total, len(found), twins / total, len(found) / total


def _shared(what: str, texts: Sequence[str]) -> str:
    total, unique, twins, ceiling = duplicates(texts)
    return f"{what}: {total:,} texts, {unique:,} different, {twins:.1%} with a twin, {ceiling:.1%}"


def _about(reports: Sequence[Report]) -> str:
    both = sum(bool(r.findings and r.impression) for r in reports)
    imageless = sum(not r.images for r in reports)
    return (
        f"{len(reports):,} reports, {both:,} with findings and impression, "
        f"{sum(r.normal for r in reports):,} normal; {sum(len(r.images) for r in reports):,} "
        f"images, {imageless} reports without one."
    )


def _row(image: str, report: Report, split: str) -> dict[str, object]:
    return {
        **{"patient": report.name, "study": report.name, "path": f"{image}.png"},
        **{"report": report.text, "split": split, "findings": report.findings},
        **{"impression": report.impression, "mesh": ";".join(report.mesh)},
        **{"normal": int(report.normal), "condition": "normal" if report.normal else "abnormal"},
    }


def _shrunk(content: bytes, member: str) -> bytes:
    """A PNG as grey PNG whose short side is at most SHORT_SIDE."""
    packed = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            picture = opened.convert("L")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{member}: not a readable PNG ({error}): delete NLMCXR_png.tgz and fetch it again"
        ) from error
    factor = SHORT_SIDE / min(picture.size)
    if factor < 1:
        width, height = (round(side * factor) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    picture.save(packed, "PNG")
    return packed.getvalue()
