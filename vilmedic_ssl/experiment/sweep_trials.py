"""The trials of a sweep: one run folder each, trained with every seed, worth its best score."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError, Diverged, Interrupted, UserError
from vilmedic_ssl.experiment.sweep_verb import Plan
from vilmedic_ssl.experiment.training import train
from vilmedic_ssl.registry import closest

if TYPE_CHECKING:
    from vilmedic_ssl.executors.sweep import Trial

DATA = ("dataset", "split_file", "train_fraction", "budget", "audit")  # what an audit depends on


def trials(plan: Plan) -> None:
    """Train the trials, and tell which were best.

    Raises:
        UserError: no trial has a value.
    """
    from vilmedic_ssl.executors.sweep import Result, Row, Sweep
    from vilmedic_ssl.executors.sweep_plots import plot_sweep
    from vilmedic_ssl.executors.sweep_table import best_few, ranked, write_table

    metric, lower = metric_of(plan)
    settings, keys = plan.settings, list(plan.settings.space)
    about = {"metric": metric, "lower_is_better": lower, "sampler": settings.sampler}

    def objective(trial: Trial) -> Result:
        values: dict[int, float] = {}
        for seed in settings.seeds:
            value, reason = _train(plan, trial, seed, metric, lower)
            if value is None:
                return Result(values, reason)
            values[seed] = value
        return Result(values)

    def after(rows: list[Row]) -> None:
        write_table(rows, plan.folder, keys, about)

    job = Sweep(plan.folder, settings, lower=lower, seed=plan.experiment.seed, key=plan.key)
    rows = job.run(objective, after=after)
    after(rows)
    found = ranked(rows, lower=lower)
    if not found:
        raise UserError(
            f"none of the {len(rows)} trials in {plan.folder} has a value; the first: "
            f"{rows[0].reason}"
        )
    plot_sweep(rows, settings.space, plan.folder / "sweep.png", metric=metric, lower=lower)
    console.result(best_few(rows, keys, metric, lower=lower))
    console.result(f"best: {plan.folder / name_of(found[0].trial)}; trained again by")
    console.result(plan.command(found[0].parameters))


def metric_of(plan: Plan) -> tuple[str, bool]:
    """What trials are compared by, and whether lower is better.

    Raises:
        ConfigError: it is not computed, or on the test split.
    """
    from vilmedic_ssl.executors.monitors import LOSSES, METRICS, check_metrics

    name, validator = plan.settings.metric, plan.experiment.validator
    known = list(validator.metrics or [])
    for split in validator.splits:
        if split.startswith("test"):
            raise ConfigError(
                f"validator.splits: {split} is what a sweep must not choose by; write [validate]"
            )
    check_metrics(known, "validation_loss")
    if name in LOSSES:
        return LOSSES[name], True
    if name not in known:
        add = f"; add it to validator.metrics, [{', '.join([*known, name])}]"
        told = add if name in METRICS else f"; {closest(name, [*LOSSES, *METRICS])}"
        raise ConfigError(f"sweep.metric: {name!r} is not computed{told}")
    return name, METRICS[name].lower_is_better


def name_of(number: int) -> str:
    """The run folder of a trial, below that of the sweep."""
    return f"trial-{number}"


def _train(
    plan: Plan, trial: Trial, seed: int, metric: str, lower: bool
) -> tuple[float | None, str | None]:
    """The best score of one run, or why it has none. A run that was begun is continued.

    Raises:
        UserError: as `train`.
        Interrupted: a signal arrived; the run is continued by the next start.
    """
    import torch

    from vilmedic_ssl.data.loader import close_all
    from vilmedic_ssl.executors.checkpoint import newest

    folder = plan.folder / name_of(trial.number)
    again = trial.begun and newest(folder, seed) is not None
    place = {"ckpt_dir": str(plan.folder), "name": name_of(trial.number), "seed": seed}
    start = {"ckpt": "last"} if again else {"overwrite": True}
    audit = trial.number == 0 or any(key.startswith(DATA) for key in plan.settings.space)
    try:
        train(plan.config({**trial.parameters, **place, **start}), audit=audit)
    except Diverged as error:
        return None, str(error)
    except torch.OutOfMemoryError as error:
        return None, f"out of memory: {str(error).splitlines()[0]}"
    except Interrupted as error:
        raise Interrupted("interrupted; the same command goes on where this one stopped") from error
    finally:
        close_all()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    value = best_score(folder / f"log_{seed}.jsonl", metric, lower)
    return value, None if value is not None else f"no evaluation gave a {metric}"


def best_score(log: Path, metric: str, lower: bool) -> float | None:
    """The best value of a metric over the evaluations of a run; None without any."""
    from vilmedic_ssl.executors.run import read_log

    scores = [r["scores"].get(metric) for r in read_log(log) if r.get("kind") == "eval"]
    known = [score for score in scores if score is not None]
    return (min if lower else max)(known) if known else None
