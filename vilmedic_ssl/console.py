"""Everything a person reads in the terminal goes through here; only the main process speaks."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T")


def is_main() -> bool:
    """True in the process that may speak and write shared files (rank 0)."""
    return os.environ.get("RANK", "0") == "0"


def colour(text: str, code: str) -> str:
    """`text` in an ANSI colour when standard error is a terminal and NO_COLOR is unset."""
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        return f"\033[{code}m{text}\033[0m"
    return text


_silent = False
_told: set[str] = set()


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is said or warned of meanwhile, and what is said once is not used up."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def _write(text: str) -> None:
    if not is_main() or _silent:
        return
    if "tqdm" in sys.modules:  # keep a running bar whole; tqdm is only loaded once a bar exists
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Progress and information, on standard error."""
    _write(text)


def warn(text: str) -> None:
    """Something the user should know but that does not stop the run."""
    _write(colour("warning: ", "33") + text)


def say_once(text: str) -> None:
    """`say`, unless it was said before: a split is built several times in a run."""
    if text not in _told and not _silent:
        _told.add(text)
        say(text)


def warn_once(text: str) -> None:
    """`warn`, unless it was said before."""
    if text not in _told and not _silent:
        _told.add(text)
        warn(text)


def fail(text: str) -> None:
    """The last sentence of a run that could not go on."""
    print(colour("error: ", "31") + text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """What a command was asked for, on standard output (so that it can be piped)."""
    if is_main():
        print(text, flush=True)


class Bar:
    """Progress with speed and time left: a live bar on a terminal, a line every ten seconds in a
    log file.
    """

    SILENCE = 10.0  # seconds between lines where nobody watches live

    def __init__(self, total: int | None, *, desc: str, unit: str = "it", initial: int = 0):
        from tqdm import tqdm

        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=desc,
            unit=unit,
            unit_scale=unit == "B",
            initial=initial,
            disable=not is_main(),
            leave=False,
            dynamic_ncols=True,
            mininterval=0.1 if self._live else self.SILENCE,
            file=sys.stderr if self._live else io.StringIO(),
        )
        self._told = time.monotonic()

    def advance(self, n: int = 1) -> None:
        self._bar.update(n)
        if not self._live and time.monotonic() - self._told > self.SILENCE:
            self._told = time.monotonic()
            _write(str(self._bar))

    def note(self, text: str) -> None:
        """The words after the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        self._bar.close()


def progress(
    iterable: Iterable[T], *, desc: str, total: int | None = None, unit: str = "it"
) -> Iterator[T]:
    """Iterate with a bar that shows speed and time left."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    bar = Bar(total, desc=desc, unit=unit)
    try:
        for item in iterable:
            yield item
            bar.advance()
    finally:
        bar.close()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain-text table, columns as wide as their widest cell; on a terminal, or where COLUMNS is
    set, the widest ones are wrapped between words until it fits.
    """
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    words = [
        max((len(w) for cell in column for w in cell.split()), default=0) for column in columns
    ]
    room = shutil.get_terminal_size((sys.maxsize, 0)).columns - 2 * (len(widths) - 1)
    while sum(widths) > room and (wide := [i for i, w in enumerate(widths) if w > words[i]]):
        widths[max(wide, key=widths.__getitem__)] -= 1
    lines = [line for row in cells for line in _wrapped(row, widths)]
    lines.insert(len(_wrapped(cells[0], widths)), "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The lines of one row."""
    cells = [
        [c] if len(c) <= w else textwrap.wrap(c, w, break_long_words=False, break_on_hyphens=False)
        for c, w in zip(row, widths, strict=True)
    ]
    return [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in zip_longest(*cells, fillvalue="")
    ]
