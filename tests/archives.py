"""Small zips and tars for tests of what reads them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

LINK = 0o120777 << 16  # unix mode of a symbolic link


def zip_of(path: Path, members: dict[str, bytes], attributes: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes
            info.compress_type = zipfile.ZIP_DEFLATED
            pack.writestr(info, content)
    return path


def tgz_of(path: Path, members: dict[str, str | bytes]) -> Path:
    with tarfile.open(path, "w:gz") as pack:
        for name, content in members.items():
            raw = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            pack.addfile(info, io.BytesIO(raw))
    return path
