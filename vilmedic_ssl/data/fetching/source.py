"""What every source of a file offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vilmedic_ssl.data.paths import digest_of
from vilmedic_ssl.locks import only_one


@dataclass(frozen=True)
class Source:
    """One file from elsewhere.

    Attributes:
        archive: the file's name once fetched.
        sha256: hexadecimal; "" where none is known.
        md5: for publishers who give no better; "" where none is known.
    """

    archive: str
    sha256: str = ""
    md5: str = ""

    @property
    def checksum(self) -> str:
        """`sha256 0f…` or `md5 0f…`; "" where the publisher names none."""
        if self.sha256:
            return f"sha256 {self.sha256}"
        return f"md5 {self.md5}" if self.md5 else ""

    def found(self, path: Path) -> str:
        """The same words for a file that is there."""
        kind = self.checksum.partition(" ")[0]
        return f"{kind} {digest_of(path, kind)}" if kind else ""

    def is_at(self, path: Path) -> bool:
        """True when `path` is this file: the checksum fits, or there is none to fit."""
        return path.is_file() and self.found(path) == self.checksum

    def fetch(self, folder: Path, *, name: str) -> Path:
        """The file in `folder`, fetched unless it is there; `name` is the data set's, for messages.

        Processes that want the same file wait for the one that fetches it.

        Raises:
            UserError: it cannot be had, or is not the file that the checksum names.
        """
        target = folder / self.archive
        if self.is_at(target):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(target, f"fetching {target}"):
            if not self.is_at(target):
                self.bring(target, name=name)
        return target

    def bring(self, target: Path, *, name: str) -> None:
        """Fetch the file to `target`, whole or not at all."""
        raise TypeError(f"{type(self).__name__} defines no bring()")
