"""The part of a file that has arrived, and what the headers of an answer say about the rest."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path


@dataclass
class Partial:
    """The part of a file that has arrived, and beside it (`.json`) where it came from.

    Attributes:
        origin, validator: address and ETag (or date) the bytes belong to; "" when unknown.
        resumed: some of the bytes come from an earlier answer.
    """

    path: Path
    origin: str = ""
    validator: str = ""
    resumed: bool = False
    notes: Path = field(init=False)

    def __post_init__(self) -> None:
        self.notes = self.path.with_name(f"{self.path.name}.json")
        with suppress(OSError, ValueError, AttributeError):
            noted = json.loads(self.notes.read_text(encoding="utf-8-sig"))
            self.origin, self.validator = str(noted.get("url")), str(noted.get("validator"))

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.origin = self.validator = ""
        self.resumed = False

    def wanted(self, url: str) -> dict[str, str]:
        """Headers that ask for what is missing, if it is still the same edition."""
        if not self.size():
            return {}
        known = self.validator if self.origin == url else ""
        return {"Range": f"bytes={self.size()}-", **({"If-Range": known} if known else {})}

    def note(self, url: str, response: HTTPResponse) -> None:
        """Remember which edition of the file the bytes belong to."""
        self.origin, self.validator = url, validator_of(response)
        self.notes.write_text(json.dumps({"url": url, "validator": self.validator}) + "\n")

    def finish(self, target: Path) -> None:
        self.path.replace(target)
        self.notes.unlink(missing_ok=True)


def validator_of(response: HTTPResponse) -> str:
    """The ETag or date that names this edition of the file; a weak ETag does not."""
    etag = response.headers.get("ETag") or "W/"
    return (response.headers.get("Last-Modified") or "") if etag.startswith("W/") else etag


def start_of(response: HTTPResponse) -> int | None:
    """First byte of a part, from `Content-Range: bytes 5-9/10`."""
    span = (response.headers.get("Content-Range") or "").removeprefix("bytes ")
    return number(span.partition("-")[0])


def full_size(response: HTTPResponse) -> int | None:
    """Bytes of the whole file, from `Content-Range: bytes 5-9/10` or `bytes */10`."""
    return number((response.headers.get("Content-Range") or "").rpartition("/")[2])


def number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
