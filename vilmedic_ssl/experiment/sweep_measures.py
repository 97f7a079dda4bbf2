"""What a sweep can measure before a training: the loss against the learning rate, and time and
memory of steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import Diverged, UserError
from vilmedic_ssl.executors.sweep_settings import RATE
from vilmedic_ssl.experiment.sweep_verb import Plan
from vilmedic_ssl.experiment.training import train
from vilmedic_ssl.files import write_text

KILLED = -9  # what Linux sends when memory runs out


def learning_rates(plan: Plan) -> None:
    """Raise the rate from low to high over one epoch, or `sweep.trials` steps, and suggest one.

    Raises:
        UserError: as `train`; the first step already diverged.
    """
    from vilmedic_ssl.executors.run import read_log
    from vilmedic_ssl.executors.sweep_plots import plot_rates
    from vilmedic_ssl.executors.sweep_rates import RULE, read_curve
    from vilmedic_ssl.executors.sweep_table import as_csv, as_json

    seed, stopped = plan.settings.seeds[0], None
    with tempfile.TemporaryDirectory(dir=plan.folder, prefix="thrown-away-") as place:
        try:
            where = {"ckpt_dir": place, "name": "range", "seed": seed}
            train(plan.config(rising(plan) | where), results=plan.folder)
        except Diverged as error:
            stopped = str(error)
        log = read_log(Path(place) / "range" / f"log_{seed}.jsonl")
    steps = [r for r in log if r["kind"] == "step" and r["loss"] is not None]
    if not steps:
        raise UserError(f"the loss was not finite at the lowest rate; lower it ({stopped})")
    low = plan.settings.space[RATE].low
    assert low is not None
    rates = [low * r["lr"] / steps[0]["lr"] for r in steps]  # in the unit of the config
    losses = [r["loss"] for r in steps]
    found = read_curve(rates, losses)
    lines = [{"lr": rate, "loss": loss} for rate, loss in zip(rates, losses, strict=True)]
    content = {
        "format": 1,
        "mark": plan.mark,
        "suggestion": found.suggestion,
        "rule": RULE,
        "lowest_at": found.lowest,
        "stopped": stopped,
        "lr": rates,
        "loss": losses,
        "smoothed": found.smoothed,
    }
    write_text(plan.folder / "lr_range.csv", as_csv(lines))
    write_text(plan.folder / "lr_range.json", as_json(content))
    picture = plan.folder / "lr_range.png"
    plot_rates(rates, losses, found.smoothed, found.suggestion, picture)
    console.say(f"{len(steps)} steps; their weights were thrown away")
    if found.suggestion is None:
        console.warn(
            "no rate can be suggested: the loss never falls, or there are too few steps; look at "
            f"{picture}, widen low and high, or write sweep.trials=100 to go over several epochs"
        )
        return
    console.result(f"suggested learning rate {found.suggestion:.2g}: {RULE}")
    console.result(plan.command({RATE: float(f"{found.suggestion:.2g}")}))


def rising(plan: Plan) -> dict[str, Any]:
    """The keys that make a training a range test: one step per rate and nothing else."""
    axis, steps = plan.settings.space[RATE], plan.settings.trials
    assert axis.low is not None and axis.high is not None
    return {
        RATE: axis.low,
        "trainor.lr_decay_params": None,
        "trainor.lr_decay": "exponential",
        "trainor.lr_decay_params.end": axis.high / axis.low,
        "trainor.epochs": 1 if steps is None else steps,
        "trainor.max_steps": steps,
        "trainor.log_every": 1,
        "trainor.drop_last": True,  # the loss of a short batch does not compare
        "trainor.eval_start": 2**31,
        "trainor.eval_every_steps": None,
        "trainor.early_stop": None,
        "trainor.early_stop_metric": "validation_loss",
        "trainor.save_every": None,
        "validator.metrics": [],
    }


def resources(plan: Plan) -> None:
    """Measure every combination in a process of its own; what does not fit is told apart from
    what fails.

    Raises:
        UserError: nothing could be measured.
    """
    from vilmedic_ssl.executors.sweep_space import grid, values_of
    from vilmedic_ssl.executors.sweep_table import as_csv, as_json, short_names

    settings = plan.settings
    combinations = grid(settings.space)[: settings.trials]
    rows: list[dict[str, Any]] = []
    progress = console.progress(combinations, desc="resources", unit="setting")
    for names in progress:
        found = measured(plan.config(values_of(settings.space, names)), settings)
        rows.append({**names, **found})
        write_text(plan.folder / "resources.csv", as_csv(rows))
        content = {
            "format": 1,
            "mark": plan.mark,
            "memory_gb": settings.memory_gb,
            "settings": rows,
        }
        write_text(plan.folder / "resources.json", as_json(content))
    draw(plan, rows)
    header = [*short_names(list(settings.space)), "s/step", "images/s", "GiB", "h/100 epochs"]
    cells = [[*(row[key] for key in settings.space), *told(row)] for row in rows]
    console.result(console.table(header, cells))
    bad = [row for row in rows if row["state"] == "error"]
    if bad and len(bad) == len(rows):
        raise UserError(f"nothing could be measured: {bad[0]['reason']}")


def told(row: Mapping[str, Any]) -> list[str]:
    """The last cells of a row in words."""
    if row["state"] != "measured":
        return [row["state"], "", "", row["reason"] if row["state"] == "error" else ""]
    return [
        f"{row['seconds']:.3g}",
        f"{row['images_per_s']:.3g}",
        f"{row['memory_gib']:.2f}",
        f"{row['hours_per_100_epochs']:.3g}",
    ]


def measured(config: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """What one process found, as the last columns of the table."""
    from vilmedic_ssl import experiment
    from vilmedic_ssl.data.loader import steps_of

    package = str(Path(experiment.__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as place:
        task, answer = Path(place) / "task.json", Path(place) / "answer.json"
        task.write_text(json.dumps([config, settings.memory_gb]), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "vilmedic_ssl.experiment.sweep_child", str(task), str(answer)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if answer.is_file():
            found = json.loads(answer.read_text(encoding="utf-8"))
        elif done.returncode == KILLED:
            found = {"state": "does not fit", "reason": "killed by the system"}
        else:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            found = {"state": "error", "reason": lines[-1]}
    columns = ("state", "seconds", "images_per_s", "memory_gib", "hours_per_100_epochs", "reason")
    if found["state"] == "measured":
        images = settings.images or found["images"]
        trainor, batch = config["trainor"], found["batch"]
        steps = steps_of(images, batch, drop_last=trainor["drop_last"])
        found["images_per_s"] = batch / found["seconds"]
        found["hours_per_100_epochs"] = 100 * steps * found["seconds"] / 3600
    return {name: found.get(name) for name in columns}


def draw(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """The heat map: the last key across, the others down."""
    from vilmedic_ssl.executors.sweep_plots import plot_heat
    from vilmedic_ssl.executors.sweep_space import listed
    from vilmedic_ssl.executors.sweep_table import short_names

    *above, last = plan.settings.space
    columns = list(listed(plan.settings.space[last]))
    lines = list(dict.fromkeys(tuple(row[key] for key in above) for row in rows))
    cells = {(tuple(row[key] for key in above), row[last]): row for row in rows}

    def text(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ""
        if row["state"] != "measured":
            return str(row["state"]).replace(" fit", "\nfit")
        return f"{row['hours_per_100_epochs']:.3g} h\n{row['memory_gib']:.2g} GiB"

    found = [[cells.get((line, column)) for column in columns] for line in lines]
    plot_heat(
        [[row["hours_per_100_epochs"] if row else None for row in line] for line in found],
        [[text(row) for row in line] for line in found],
        [", ".join(line) or "all" for line in lines],
        columns,
        plan.folder / "resources.png",
        title="hours per 100 epochs, and memory",
        across=short_names([*above, last])[-1],
    )
