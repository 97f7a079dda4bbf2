"""Paths that come from a manifest or an archive are someone else's words: they must stay under a
root.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path, PureWindowsPath

from vilmedic_ssl.errors import UserError


def cache_folder() -> Path:
    """Where derived files live: $VILMEDIC_SSL_CACHE, else vilmedic_ssl in the user's cache folder;
    where the user has no home, as in some containers, a private folder among the temporary files.
    """
    if own := os.environ.get("VILMEDIC_SSL_CACHE"):
        return Path(own)
    try:
        users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return _temporary()
    return users / "vilmedic_ssl"


def _temporary() -> Path:
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"vilmedic_ssl-{owner}"
    with suppress(OSError):  # whoever writes into it will tell
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def digest_of(path: Path, kind: str = "sha256") -> str:
    """Hexadecimal `kind` ("sha256" or "md5") of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def locate(root: str | Path, relative: str | Path) -> Path:
    """Where an image of a table or list lies: `root / relative`, or an absolute path below `root`.

    What a path says may not lead out of `root`. Links that lie below it do not count as its words:
    they were put there by whoever holds the data, and are followed wherever they lead, as in a
    folder without a table.

    Raises:
        UserError: `relative` leads out of `root`, by itself or by `..`.
    """
    base, text = os.path.abspath(root), str(relative)
    target = os.path.abspath(os.path.join(base, text))
    inside = Path(target).is_relative_to(base) and "\0" not in text
    foreign = PureWindowsPath(text).anchor and not Path(text).is_absolute()  # C:\x
    return Path(target) if inside and not foreign else safe_join(root, relative)


def safe_join(root: str | Path, relative: str | Path) -> Path:
    """`root / relative` with links followed; the file need not exist.

    An absolute path is taken where it lies below `root`.

    Raises:
        UserError: `relative` leads out of `root`, by itself, by `..` or through a symbolic link.
    """
    text = str(relative)
    try:
        base = Path(root).resolve()
        target = (base / text).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # link loop, name too long, NUL byte
        raise UserError(
            f"path {text!r} under {root} cannot be followed ({error}): correct it"
        ) from error
    elsewhere = PureWindowsPath(text).anchor and not Path(text).is_absolute()  # C:\x
    if elsewhere or not target.is_relative_to(base):
        raise UserError(
            f"path {text!r} leads out of {root} ({'of Windows' if elsewhere else f'to {target}'}): "
            "keep the files under the root, or set the root to a folder that holds them all"
        )
    return target
