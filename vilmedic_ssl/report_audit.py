"""The page of an audit: what was found, and near-duplicates side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl.files import write_text
from vilmedic_ssl.report_html import (
    _count,
    _folded,
    _grid,
    _list,
    _page,
    _section,
    _table,
)

if TYPE_CHECKING:
    from vilmedic_ssl.data.auditing.findings import Finding

SHOWN = 50  # rows or patients of a finding on a page; audit.json has all of them
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
    write_text(path, page, errors="backslashreplace")  # names that are not UTF-8
    return path


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    """One line per finding, its cases folded below; the first rows and patients by name."""
    rows = []
    for item in findings:
        head = f"<b>{escape(item['kind'])}</b><small>{escape(item['severity'])}</small>"
        words = f"<div>{escape(item['message'])}</div>"
        for name in ("examples", "patients", "rows"):
            shown = [escape(str(value)) for value in item[name][:SHOWN]]
            shown += [f"and {len(item[name]) - SHOWN:,} more"] if len(item[name]) > SHOWN else []
            words += _folded(_count(item[name], name.removesuffix("s")), _list(shown)) * bool(shown)
        alarm = ' class="alarm"' if item["severity"] == "leak" else ""
        rows.append([f"<div{alarm}>{head}</div>", words])
    return _table(["", ""], rows) if rows else ""


def _png(pair: tuple[bytes, bytes]) -> bytes:
    """Two 32 x 32 uint8 pictures beside each other."""
    from PIL import Image

    both = Image.new("L", (2 * SIDE + GAP, SIDE), 255)
    for i, pixels in enumerate(pair):
        both.paste(Image.frombytes("L", (SIDE, SIDE), pixels), (i * (SIDE + GAP), 0))
    file = BytesIO()
    both.save(file, "PNG")
    return file.getvalue()
