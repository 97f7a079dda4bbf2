"""Where verbs write: nothing is replaced but what the same verb made from the same things."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl.config import digest
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.files import atomic

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = "made_from"


def output_place(
    out: str | Path | None,
    default: str | Path,
    sources: Any,
    *,
    files: Sequence[str] = (),
    overwrite: bool = False,
) -> tuple[Path, str]:
    """Where to write, and the mark that is to be written there.

    Args:
        out: what the user asked for; None = `default`, or where that holds something else the
            first of `default-2`, `default-3` ... that does not.
        sources: plain data that says which verb writes, and from what.
        files: what is written into the folder `out`, the JSON file with the mark first; () = `out`
            is a PNG file with the mark inside.
        overwrite: take the place whatever it holds.

    Raises:
        UserError: `out` was named and holds something else.
    """
    mark = digest(sources)
    path = Path(default if out is None else out)
    if overwrite or not _holds_another(path, files, mark):
        return path, mark
    if out is not None:
        raise UserError(
            f"--out {path} is there already and holds something else; choose another --out, or "
            "replace it with --overwrite"
        )
    names = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(name for name in names if not _holds_another(name, files, mark)), mark


def _holds_another(path: Path, files: Sequence[str], mark: str) -> bool:
    if not files:
        return path.exists() and _in_picture(path) != mark
    if path.is_dir():
        return any((path / name).exists() for name in files) and _in_json(path / files[0]) != mark
    return path.exists()


def _in_json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get(MARK) if isinstance(content, dict) else None


def _in_picture(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.info.get(MARK)
    except (OSError, ValueError, SyntaxError):  # no picture
        return None


def write_picture(picture: Image, path: Path, mark: str) -> None:
    """A PNG with its mark, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text(MARK, mark)
    try:
        with atomic(path) as file:
            picture.save(file, "PNG", pnginfo=note)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror or error})") from error
