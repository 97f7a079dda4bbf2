"""The table of a sweep: `sweep.csv`, `sweep.json`, and the best few in words."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vilmedic_ssl import console
from vilmedic_ssl.executors.sweep import Row
from vilmedic_ssl.files import write_text

SHOWN = 5  # of the best trials, in the terminal


def ranked(rows: Sequence[Row], *, lower: bool) -> list[Row]:
    """The finished trials, best first; equal ones by number."""
    done = [row for row in rows if row.value is not None]
    return sorted(done, key=lambda row: (row.value if lower else -row.value, row.trial))  # type: ignore[operator,return-value]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(content: Any) -> str:
    """Readable JSON; of names of files that are not UTF-8 the odd bytes are escaped."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace").decode()


def write_table(rows: Sequence[Row], folder: Path, keys: Sequence[str], about: Any) -> None:
    """`sweep.csv`, one line per trial, and `sweep.json`, the same and `about`.

    Args:
        keys: what varied, the columns in the middle.
    """
    lines = [
        {"trial": row.trial, "state": row.state, "value": row.value, "sd": row.sd}
        | {key: row.names.get(key) for key in keys}
        | {"seconds": row.seconds, "reason": row.reason}
        for row in rows
    ]
    write_text(folder / "sweep.csv", as_csv(lines))
    content = {"format": 1, **about, "trials": [asdict(row) for row in rows]}
    write_text(folder / "sweep.json", as_json(content))


def best_few(rows: Sequence[Row], keys: Sequence[str], metric: str, *, lower: bool) -> str:
    """The best trials as a table; behind it, how many failed."""
    found = ranked(rows, lower=lower)
    cells = []
    for row in found[:SHOWN]:
        spread = "" if row.sd is None else f" +- {row.sd:.2g}"
        cells.append([row.trial, f"{row.value:.5g}{spread}", *(row.names[key] for key in keys)])
    table = console.table(["trial", metric, *short_names(keys)], cells)
    bad = [row for row in rows if row.state == "failed"]
    if not bad:
        return table
    told = f"trial {bad[0].trial}: {bad[0].reason}"
    return f"{table}\n{len(bad)} of {len(rows)} trials have no value, for example {told}"


def short_names(keys: Sequence[str]) -> list[str]:
    """The last words of dotted keys, as many as tell them apart."""
    return [_ending(key, keys) for key in keys]


def _ending(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    for count in range(1, len(parts)):
        ending = ".".join(parts[-count:])
        if sum(other == ending or other.endswith(f".{ending}") for other in keys) == 1:
            return ending
    return key
