"""The curves of several runs beside each other, in the report of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto


@proto
def compare_runs(features: Features, out: Path, *, runs: list[str]) -> Iterator[tuple[str, Value]]:
    """Write what `vilmedic-ssl compare` writes into `compare_runs_<tag>/`: `compare.csv` and
    `compare.json` with what differs between runs, their best validation scores and the numbers of
    their results.json, and their curves as a picture.

    Args:
        runs: run folders, or folders of sweeps.

    Raises:
        UserError: no runs named, or a folder without one.
    """
    from vilmedic_ssl.executors.compare import groups_of, rows_of
    from vilmedic_ssl.executors.compare_view import plot_curves
    from vilmedic_ssl.executors.sweep_table import as_csv, as_json
    from vilmedic_ssl.files import write_text

    if not runs:
        raise UserError("runs: name one run folder at least")
    groups = groups_of(runs)
    rows, folder = rows_of(groups), out / f"compare_runs_{features.tag}"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "compare.csv", as_csv(rows))
    write_text(folder / "compare.json", as_json({"format": 1, "rows": rows}))
    if plot_curves(groups, folder / "compare.png"):
        yield f"Validation scores of {len(groups)} settings", folder / "compare.png"
