"""`vilmedic-ssl sweep`: a config trained again and again while some of its keys vary, or measured
beforehand.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.executors.sweep_settings import SweepSettings
from vilmedic_ssl.executors.sweep_space import examples, words_of
from vilmedic_ssl.experiment.settings import Experiment, check, read_config, settled, typed

NAMES = {"train": "sweep", "lr_range": "lr_range", "resources": "resources"}  # of the table
TABLE = (".csv", ".json", ".png")
ELSEWHERE = ("device", "num_workers", "overwrite", "ckpt_dir")  # where a sweep runs, not what it is


@dataclass(frozen=True)
class Plan:
    """A sweep as the command line gave it.

    Attributes:
        path: of the config; overrides: on top of it, as given.
        experiment: checked, with its `sweep` section.
        key: hash of what the trials have in common.
    """

    path: str
    overrides: tuple[str, ...]
    experiment: Experiment
    key: str

    @property
    def settings(self) -> SweepSettings:
        assert self.experiment.sweep is not None
        return self.experiment.sweep

    @property
    def folder(self) -> Path:
        return self.experiment.folder

    @property
    def mark(self) -> str:
        """Hash of what is in a table that is measured anew each time."""
        return yaml_config.digest([self.key, self.settings.trials])

    def config(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The config with some keys set, and without its sweep.

        Raises:
            ConfigError: it does not take them; the file is not what it was when the sweep began.
        """
        words = with_space(self.overrides)
        if key_of(settled(read_config(self.path, words))) != self.key:
            raise ConfigError(f"{self.path} was changed while the sweep ran; restore it")
        return check(read_config(self.path, [*words, *words_of(parameters), "sweep=null"]))

    def command(self, parameters: Mapping[str, Any]) -> str:
        """The line that trains with these parameters, outside the sweep."""
        own = ("space=", "sweep.", "sweep=", "name=")
        given = [text for text in self.overrides if not text.startswith(own)]
        words = [*given, "sweep=null", *words_of(parameters), f"name={self.experiment.name}-best"]
        return shlex.join(["python", "bin/train.py", str(self.path), *words])


def sweep(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Run the `sweep` section of a config; returns the folder with its table and picture.

    Started several times at once, all work on the same trials; killed, the next start goes on.

    Raises:
        UserError: wrong config or data; Optuna is missing; no trial has a value.
        Interrupted: a signal arrived; a checkpoint was written.
    """
    from vilmedic_ssl.experiment.sweep_measures import learning_rates, resources
    from vilmedic_ssl.experiment.sweep_trials import trials

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a sweep is no job for torchrun; start it once per GPU instead, with python, the same "
            "words, and CUDA_VISIBLE_DEVICES"
        )
    plan = plan_of(str(path), overrides)
    measures = {"train": trials, "lr_range": learning_rates, "resources": resources}
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {plan.folder} ({error.strerror}); change ckpt_dir or name"
        ) from error
    _refuse_others(plan)
    measures[plan.settings.measure](plan)
    console.say(f"table and picture in {plan.folder}")
    return plan.folder


def _refuse_others(plan: Plan) -> None:
    """A sweep replaces no table but its own. (Trials are guarded by the journal, once it is there.)

    Raises:
        UserError: another one lies in its folder.
    """
    name, trial = NAMES[plan.settings.measure], plan.settings.measure == "train"
    if plan.experiment.overwrite or (trial and any(plan.folder.glob("sweep.journal*"))):
        return
    if trial and plan.settings.storage is not None:
        return
    there = [path for path in plan.folder.glob(f"{name}.*") if path.suffix in TABLE]
    there += list(plan.folder.glob("trial-[0-9]*")) if trial else []
    try:
        content = json.loads((plan.folder / f"{name}.json").read_text(encoding="utf-8"))
        own = content.get("mark") == plan.mark
    except (OSError, ValueError, AttributeError):
        own = False
    if there and not own:
        raise UserError(
            f"{plan.folder} already holds {there[0].name}, of another sweep; choose another name=, "
            "or replace it with overwrite=true"
        )


def plan_of(path: str, overrides: Sequence[str]) -> Plan:
    """Read and check a sweep: its own keys, and every value of its space.

    Raises:
        ConfigError: whatever is wrong, before the first trial.
    """
    loaded = settled(read_config(path, with_space(overrides)))
    experiment = typed(check(loaded))
    if experiment.sweep is None:
        raise ConfigError(
            f"sweep: {path} has no such section; add one, or write "
            "'space={trainor.optim_params.lr: {low: 1e-4, high: 1e-1, log: true}}'"
        )
    if experiment.trainor is None:
        raise ConfigError("trainor: this section is required for training")
    plan = Plan(path, tuple(overrides), experiment, key_of(loaded))
    first = {key: examples(axis)[0] for key, axis in plan.settings.space.items()}
    plan.config(first)
    for key, axis in plan.settings.space.items():
        for value in examples(axis)[1:]:
            plan.config({**first, key: value})
    return plan


def with_space(overrides: Sequence[str]) -> list[str]:
    """`space=` written out; a space on the command line replaces that of the file."""
    words: list[str] = []
    for text in overrides:
        full = f"sweep.{text}" if text.startswith("space=") else text
        words += ["sweep.space=null", full] if full.startswith("sweep.space=") else [full]
    return words


def key_of(loaded: Mapping[str, Any]) -> str:
    """Hash of a config as it was read; more trials, or another device, make no other sweep."""
    kept = {key: value for key, value in loaded.items() if key not in ELSEWHERE}
    own = dict(kept.get("sweep") or {})
    own.pop("trials", None)
    return yaml_config.digest({**kept, "sweep": own})
