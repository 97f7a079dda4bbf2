"""One report of the Indiana collection from its XML file."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from vilmedic_ssl.errors import UserError

# What may follow "<!" in a file without DTD: comments and literal text. Entities can only be
# declared in a DTD, so none can be expanded or fetched.
DECLARATION = re.compile(r"<!(?!--|\[CDATA\[)")
IMAGE_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Report:
    """Texts with single spaces, "" where the report has no such section.

    Attributes:
        name: `CXR1`, the only name of patient and study in the data.
        mesh: major terms; normal: the only one is `normal`.
        images: names without suffix.
    """

    name: str
    findings: str
    impression: str
    indication: str
    comparison: str
    mesh: tuple[str, ...]
    normal: bool
    images: tuple[str, ...]

    @property
    def text(self) -> str:
        """Findings, then impression."""
        return " ".join(part for part in (self.findings, self.impression) if part)


def parse(content: bytes, *, where: str) -> Report:
    """A report from the bytes of its file.

    Raises:
        UserError: not UTF-8, a document type or entity declaration, broken XML, no report number.
    """
    try:
        text = content.decode("utf-8-sig")
        if "\0" in text or DECLARATION.search(text):
            raise ValueError("it declares a document type or entities")
        root = ET.fromstring(text)  # from a str: no other encoding can be declared
    except (ValueError, ET.ParseError) as error:
        raise UserError(
            f"{where}: refused as a report ({error}): fetch the archive again"
        ) from error
    sections = {
        str(node.get("Label")): " ".join((node.text or "").split())
        for node in root.iter("AbstractText")
    }
    number = root.find("uId")
    images = tuple(str(node.get("id")) for node in root.iter("parentImage"))
    if number is None or not all(IMAGE_NAME.fullmatch(image) for image in images):
        raise UserError(f"{where}: no report of this collection: fetch the archive again")
    mesh = tuple((node.text or "").strip() for node in root.iter("major"))
    return Report(
        name=str(number.get("id")),
        findings=sections.get("FINDINGS", ""),
        impression=sections.get("IMPRESSION", ""),
        indication=sections.get("INDICATION", ""),
        comparison=sections.get("COMPARISON", ""),
        mesh=mesh,
        normal=mesh == ("normal",),
        images=images,
    )
