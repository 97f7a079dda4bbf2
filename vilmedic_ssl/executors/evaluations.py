"""The reports of a run folder: the main one in it, those of further seeds and of other evaluations
below.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EVALUATIONS = "evaluations"
RECORD = "evaluation.json"
SEED = "seed-"  # of the folder of a seed that is not the one of the main report


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the evaluation in a folder was made from; None where that is not known."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and record.get("format") == 1
    return record if whole and {"hash", "config", "data", "checkpoints"} <= set(record) else None


def reports_of(run: Path, seeds: Iterable[int]) -> list[Path]:
    """The folders with results of what the configs of these seeds give: the run folder, and that of
    each further seed; of runs that do not say what was scored, the run folder.
    """
    seeds, folders = set(seeds), []
    record = read_record(run)
    if record is None or len(record["checkpoints"]) > 1 or record.get("seed") in seeds:
        folders.append(run)
    folders += [run / EVALUATIONS / f"{SEED}{seed}" for seed in sorted(seeds)]
    return [folder for folder in folders if (folder / "results.json").is_file()]
