"""`vilmedic-ssl compare`: many runs in one table and one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError


def compare(runs: Sequence[str | Path], *, out: str | Path = "compare") -> list[dict[str, Any]]:
    """Read run folders, write `compare.csv`, `compare.json` and `compare.png` into `out`, and
    return the rows of the table.

    Raises:
        UserError: a folder without a run; nowhere to write.
    """
    from vilmedic_ssl.executors.compare import groups_of, rows_of
    from vilmedic_ssl.executors.compare_view import plot_curves, printed
    from vilmedic_ssl.executors.sweep_table import as_csv, as_json
    from vilmedic_ssl.files import write_text

    groups = groups_of(runs)
    rows, folder = rows_of(groups), Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "compare.csv", as_csv(rows))
        write_text(folder / "compare.json", as_json({"format": 1, "rows": rows}))
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from error
    plot_curves(groups, folder / "compare.png")
    console.result(printed(groups, rows))
    console.say(f"table and picture in {folder}")
    return rows
