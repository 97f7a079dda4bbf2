"""The keys of the `sweep` section: what is varied, how it is chosen, what is measured (no torch
needed to read them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vilmedic_ssl.errors import ConfigError

RATE = "trainor.optim_params.lr"
DOTTED = re.compile(r"[\w-]+(\.[\w-]+)*")
NOT_VARIED = {
    "seed": "list the seeds under sweep.seeds",
    "sweep": "a sweep does not vary itself",
    "budget.seed": "list the seeds under sweep.seeds",
    **dict.fromkeys(("name", "ckpt_dir", "ckpt", "overwrite"), "the sweep sets it for each trial"),
    **dict.fromkeys(("validator", "ensemblor"), "trials scored in different ways do not compare"),
}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One key that a sweep varies: a range of numbers, or choices.

    Attributes:
        low, high: the ends of a range, both included; only whole numbers are drawn where both are
            written without a point.
        log: evenly on a logarithmic scale.
        points: so many values, evenly from low to high, instead of any in between; a grid needs it.
        choices: a list of values, or names with values. A value of several keys is laid over those
            in the config, so that keys which belong together vary together.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    points: int | None = None
    choices: list[Any] | dict[str, Any] | None = None

    @property
    def whole(self) -> bool:
        """True when only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def finite(self) -> bool:
        """True when the values can be listed."""
        return self.choices is not None or self.points is not None

    def refuse(self, where: str) -> None:
        """Raises:
        ConfigError: neither a range nor choices, or both, or an empty one.
        """
        ends = (self.low, self.high)
        if self.choices is not None:
            if ends != (None, None) or self.log or self.points is not None:
                raise ConfigError(f"{where}: choices stand alone; leave low, high, log, points out")
            if not self.choices:
                raise ConfigError(f"{where}.choices: name one at least")
            return
        if self.low is None or self.high is None:
            raise ConfigError(
                f"{where}: write {{low: ..., high: ...}} or {{choices: [...]}}; a key of several "
                "words is one text with dots, such as trainor.optim_params.lr"
            )
        if not self.low < self.high:
            raise ConfigError(f"{where}: low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ConfigError(f"{where}.low: {self.low}; a logarithmic range starts above 0")
        if self.points is not None and self.points < 2:
            raise ConfigError(f"{where}.points: {self.points}; write 2 or more")


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Many trainings of one config, of which some keys vary.

    Attributes:
        space: what varies, by its dotted key, for example {trainor.optim_params.lr: {low: 1e-5,
            high: 1e-1, log: true}, model.projector.widths: {choices: [[512], [512, 512]]}}.
        measure: train = the best `metric` of each training; lr_range = the loss while the learning
            rate rises from low to high, one step per rate; resources = time and memory of a
            training step.
        sampler: random; tpe = each trial near the better ones before it (Bergstra et al. 2011);
            grid = every combination once.
        trials: how many, over all processes and restarts; null = 20, all of a grid or of resources,
            or, for lr_range, the steps of one epoch.
        metric: validation_loss (or loss), training_loss, or one of validator.metrics; its best over
            the run counts.
        seeds: a trial is trained with each, and its value is their mean; `seed` draws the
            parameters.
        storage: URL of an Optuna storage, for example sqlite:///sweep.db; null = a journal in the
            sweep's folder.
        memory_gb: resources: what a step may take, where that is less than there is.
        images: resources: number of training images the hours are told for; null = those of train.
    """

    space: dict[str, Axis]
    measure: Literal["train", "lr_range", "resources"] = "train"
    sampler: Literal["random", "tpe", "grid"] = "random"
    trials: int | None = None
    metric: str = "validation_loss"
    seeds: list[int] = (0,)  # type: ignore[assignment]
    storage: str | None = None
    memory_gb: float | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        made = {k: Axis(**v) if isinstance(v, Mapping) else v for k, v in self.space.items()}
        object.__setattr__(self, "space", made)
        if not made:
            raise ConfigError("sweep.space: name one key that varies at least")
        for name, axis in made.items():
            _refuse_name(name)
            axis.refuse(f"sweep.space.{name}")
        for key in ("trials", "memory_gb", "images"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"sweep.{key}: {value}; write a number above 0")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"sweep.seeds: {list(self.seeds)}; list whole numbers, each once")
        if self.metric.startswith("test"):
            raise ConfigError(
                f"sweep.metric: {self.metric!r} is a number of the test split, by which nothing "
                "may be chosen; write validation_loss or one of validator.metrics"
            )
        self._refuse_combination()

    def _refuse_combination(self) -> None:
        """Keys that this `measure` would not look at, and ranges that cannot be listed."""
        listed = self.measure == "resources" or (self.measure, self.sampler) == ("train", "grid")
        for name, axis in self.space.items():
            if listed and not axis.finite:
                raise ConfigError(
                    f"sweep.space.{name}: every value is taken once, so a range also needs points, "
                    "for example points: 5"
                )
        for key in ("memory_gb", "images"):
            if getattr(self, key) is not None and self.measure != "resources":
                raise ConfigError(f"sweep.{key}: only measure: resources looks at it; leave it out")
        if self.measure == "train":
            return
        if self.storage is not None:
            raise ConfigError("sweep.storage: only measure: train keeps one; leave it out")
        if len(self.seeds) > 1:
            raise ConfigError(f"sweep.seeds: measure: {self.measure} runs with one; leave one")
        if self.measure == "lr_range":
            rate = self.space.get(RATE)
            if rate is None or rate.finite or len(self.space) > 1:
                raise ConfigError(
                    f"sweep.space: measure: lr_range takes one range, {RATE}: {{low: 1e-7, high: "
                    "1, log: true}"
                )
            if not rate.log:
                raise ConfigError(f"sweep.space.{RATE}.log: rates rise evenly on a log scale; true")


def _refuse_name(name: str) -> None:
    """Raises:
    ConfigError: no dotted key, or one that must be the same in all trials.
    """
    if not DOTTED.fullmatch(str(name)):
        raise ConfigError(f"sweep.space: {name!r} is no key; write it with dots, such as {RATE}")
    for fixed, told in NOT_VARIED.items():
        if name == fixed or name.startswith(f"{fixed}."):
            raise ConfigError(f"sweep.space.{name}: {told}")
