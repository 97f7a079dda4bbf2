"""`vilmedic-ssl compare`: many runs in one table and one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.experiment.outputs import MARK, output_place

FILES = ("compare.json", "compare.csv", "compare.png")


def compare(
    runs: Sequence[str | Path], *, out: str | Path | None = None, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Read run folders, write `compare.csv`, `compare.json` and `compare.png` into `out`, and
    return the rows of the table.

    Args:
        out: None = compare, or the next number that is free.
        overwrite: replace something else at `out`, such as a comparison of other runs.

    Raises:
        UserError: a folder without a run; nowhere to write, or something else stands there.
    """
    from vilmedic_ssl.executors.compare import groups_of, rows_of
    from vilmedic_ssl.executors.compare_view import plot_curves, printed
    from vilmedic_ssl.executors.sweep_table import as_csv, as_json
    from vilmedic_ssl.files import write_text

    groups = groups_of(runs)
    rows = rows_of(groups)
    sources = ["compare", sorted(str(Path(run).resolve()) for run in runs)]
    folder, mark = output_place(out, "compare", sources, files=FILES, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "compare.csv", as_csv(rows))
        write_text(folder / "compare.json", as_json({"format": 1, MARK: mark, "rows": rows}))
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from error
    if not plot_curves(groups, folder / "compare.png"):
        (folder / "compare.png").unlink(missing_ok=True)  # that of an earlier state of these runs
    console.result(printed(groups, rows))
    console.say(f"table and picture in {folder}")
    return rows
