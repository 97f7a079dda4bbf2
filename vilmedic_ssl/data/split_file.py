"""A division of data as a file: which sample belongs to which split, with a hash over it all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from vilmedic_ssl.config import digest
from vilmedic_ssl.errors import MissingSplit, UserError
from vilmedic_ssl.files import write_text

FORMAT = 1
Row = tuple[str, str, str, float | None]


@dataclass(frozen=True)
class SplitFile:
    """A division of all samples of some data.

    Attributes:
        rows: (split in the data, id, split, smallest fraction of the training split the sample
            belongs to or None), in any order.
        made_by: how it was made and what came out, for people.
        path: the file.
    """

    rows: list[Row]
    made_by: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path()

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits over the rows; their order does not matter."""
        return digest([list(row) for row in sorted(self.rows, key=_place)])

    @property
    def splits(self) -> list[str]:
        return sorted({row[2] for row in self.rows})

    @property
    def fractions(self) -> list[float]:
        return sorted({row[3] for row in self.rows if row[3] is not None})

    def of_split(self, split: str, fraction: float | None = None) -> list[Row]:
        """The rows of a split; with a fraction, those of its nested part.

        Raises:
            MissingSplit: the file has no such split.
            UserError: the file has no such fraction.
        """
        rows = [row for row in self.rows if row[2] == split]
        if not rows:
            raise MissingSplit(f"{self.path} has no split {split!r}; it has {_list(self.splits)}")
        if fraction in (None, 1.0):
            return rows
        if fraction not in self.fractions:
            there = [str(f) for f in self.fractions]
            hint = f"it has {_list(there)}" if there else "make one with split --nested"
            raise UserError(f"train_fraction: {self.path} has no fraction {fraction}; {hint}")
        return [row for row in rows if row[3] is not None and row[3] <= fraction]


def _place(row: Row) -> tuple[str, str]:
    return row[0], row[1]


def _list(names: list[str]) -> str:
    return ", ".join(names)


def refuse_another(splits: SplitFile) -> None:
    """Refuse to replace what stands at `splits.path`, unless it is the same division.

    Raises:
        UserError: something else stands there.
    """
    if not splits.path.exists():
        return
    try:
        same = read_splits(splits.path).hash == splits.hash
    except UserError:
        same = False
    if not same:
        raise UserError(
            f"{splits.path} is there already and holds something else; choose another --out, or "
            "replace it with --overwrite"
        )


def write_splits(splits: SplitFile) -> None:
    """Write `splits.path`, one row per line, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    rows = [json.dumps(row, ensure_ascii=False) for row in sorted(splits.rows, key=_place)]
    head = {"format": FORMAT, "hash": splits.hash, "made_by": splits.made_by}
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    text += ',\n "rows": [\n' + ",\n".join(rows) + "\n]}\n"
    try:
        splits.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(splits.path, text, errors="backslashreplace")
    except OSError as error:
        raise UserError(f"cannot write {splits.path} ({error.strerror}); change --out") from error


def read_splits(path: str | Path) -> SplitFile:
    """A split file, checked against its hash.

    Raises:
        UserError: there is none, it is no split file of this version, or it was edited.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"split_file: there is no {path}; write it with `vilmedic-ssl split CONFIG --out FILE`"
        )
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)  # a run asks once per split and use
def _read(path: Path, mtime_ns: int, size: int) -> SplitFile:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if content["format"] != FORMAT:
            raise ValueError("another format")
        rows = [_row(*row) for row in content["rows"]]
        splits, told = SplitFile(rows, content["made_by"], path), content["hash"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} is not a split file of format {FORMAT}; write one with `vilmedic-ssl split`"
        ) from error
    if splits.hash != told:
        raise UserError(
            f"{path} was edited: its rows have the hash {splits.hash}, not {told}; restore it, or "
            "write a new one with `vilmedic-ssl split`"
        )
    return splits


def _row(home: str, name: str, split: str, fraction: float | None) -> Row:
    if not all(isinstance(text, str) for text in (home, name, split)):
        raise TypeError("a row holds texts")
    return home, name, split, None if fraction is None else float(fraction)
