"""Text files of one entry per line, as any editor writes them."""

from __future__ import annotations

from pathlib import Path

from vilmedic_ssl.errors import UserError

MARK = "\ufeff"  # byte-order mark, also in the middle where files were put together


def lines_of(path: Path, key: str = "") -> list[str]:
    """The lines of a UTF-8 file without their ends, LF or CRLF, and without byte-order marks; blank
    ones are kept. Other separators (U+2028, vertical tab, form feed ...) are part of a line.

    Args:
        key: what named the file, for the sentences.

    Raises:
        UserError: not UTF-8, or a carriage return that ends no line: whether it ends one differs
            between programs, and the next lines of files that belong together would not fit.
    """
    where = f"{key}: {path}" if key else f"{path}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    lines = [line.removesuffix("\r").lstrip(MARK) for line in text.split("\n")]
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            raise UserError(
                f"{where}, line {number}: a carriage return without a line feed; replace it by a "
                "blank, or save the file with the line ends of Unix or Windows"
            )
    return lines if lines[-1] else lines[:-1]
