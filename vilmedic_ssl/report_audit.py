"""The page of an audit: what was found, and near-duplicates side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vilmedic_ssl.report import _findings, _grid, _page, _section, _table

if TYPE_CHECKING:
    from vilmedic_ssl.data.auditing.findings import Finding

SIDE, GAP = 32, 4  # pixels of a thumbnail and between two
CARE = (
    "This page names files and patients and may show small pictures: share it only as you may "
    "share the images."
)


def write_audit(
    folder: Path,
    *,
    title: str,
    verdict: str,
    findings: Sequence[Finding],
    sizes: Mapping[str, int],
) -> Path:
    """Write `folder/audit.html`.

    Args:
        verdict: one line. findings: worst first. sizes: split -> samples.
    """
    splits = _table(["split", "samples"], [[escape(k), f"{n:,}"] for k, n in sizes.items()])
    pairs = [pair for item in findings for pair in zip(item.examples, item.thumbs, strict=False)]
    sections = [
        f"<p><b>{escape(verdict)}</b></p>\n<p>{CARE}</p>\n",
        _section("Splits", splits),
        _section("Findings", _findings([item.as_dict() for item in findings])),
        _section("Near-duplicates side by side", _grid((n, _png(p), "png") for n, p in pairs)),
    ]
    path = folder / "audit.html"
    page = _page(title, sections)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")  # names that are not UTF-8
    return path


def _png(pair: tuple[bytes, bytes]) -> bytes:
    """Two 32 x 32 uint8 pictures beside each other."""
    from PIL import Image

    both = Image.new("L", (2 * SIDE + GAP, SIDE), 255)
    for i, pixels in enumerate(pair):
        both.paste(Image.frombytes("L", (SIDE, SIDE), pixels), (i * (SIDE + GAP), 0))
    file = BytesIO()
    both.save(file, "PNG")
    return file.getvalue()
