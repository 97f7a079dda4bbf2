"""Trials shared by several processes: each is begun once, finished once, and none is lost when a
process dies.

Parameters and values are kept by Optuna (Akiba et al. 2019). Who may begin a trial is decided under
one lock, and a process holds a second one on the trial it works on; a trial that nobody holds was
left behind, and the next process continues it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.compat import require
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.sweep_locks import held, lock_of, mend
from vilmedic_ssl.executors.sweep_settings import SweepSettings
from vilmedic_ssl.executors.sweep_space import grid, label_of, listed, values_of

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from optuna import Study
    from optuna.trial import FrozenTrial

POLL = 1.0  # seconds between looks at what the other processes do
TRIALS = 20  # of a random or tpe sweep that names no number


@dataclass(frozen=True)
class Trial:
    """One set of parameters; `begun` = another process left it unfinished."""

    number: int
    parameters: dict[str, Any]
    names: dict[str, str]
    begun: bool


@dataclass(frozen=True)
class Result:
    """What came of a trial: a value per seed, or the reason why there is none."""

    values: dict[int, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """One trial in the table.

    Attributes:
        state: finished, failed or running.
        names: key -> its value in words; parameters: the value itself.
        value, sd: mean and standard deviation over seeds; None where there is none.
        seconds: spent by the process that ended it.
    """

    trial: int
    state: str
    value: float | None
    sd: float | None
    seconds: float | None
    names: dict[str, str]
    parameters: dict[str, Any]
    values: dict[str, float]
    reason: str | None


class Sweep:
    """The trials of one sweep.

    Args:
        folder: of the sweep; made when missing.
        settings: the `sweep` section.
        lower: True when lower values are better.
        seed: of the draws.
        key: hash of all that the trials have in common.

    Raises:
        UserError: Optuna is missing; the folder holds another sweep.
    """

    def __init__(self, folder: Path, settings: SweepSettings, *, lower: bool, seed: int, key: str):
        self.folder, self.settings, self.lower = folder, settings, lower
        self.seed, self.key = seed, key
        self.optuna: Any = require("optuna", extra="sweep")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self.grid = grid(settings.space) if settings.sampler == "grid" else []
        self.total = settings.trials or len(self.grid) or TRIALS
        if self.grid:
            self.total = min(self.total, len(self.grid))
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_of(folder / "sweep.lock")
        self._journal = folder / "sweep.journal"
        with self._lock:
            self.study = self._open()

    # -- what is kept ------------------------------------------------------------------------------

    def _open(self) -> Study:
        storages = self.optuna.storages
        if self.settings.storage is None:
            mend(self._journal)
            backend = storages.journal.JournalFileBackend(str(self._journal), lock_obj=_Held())
            self.storage = storages.JournalStorage(backend)
        else:
            try:
                self.storage = storages.RDBStorage(self.settings.storage)
            except Exception as error:  # SQLAlchemy's own kinds
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"sweep.storage: {self.settings.storage!r} cannot be opened ({reason}); write "
                    "a URL such as sqlite:///sweep.db, or null"
                ) from error
        direction = "minimize" if self.lower else "maximize"
        study: Study = self.optuna.create_study(
            storage=self.storage,
            study_name=self.folder.name,
            direction=direction,
            load_if_exists=True,
        )
        if study.user_attrs.get("key", self.key) != self.key and study.get_trials(deepcopy=False):
            raise UserError(
                f"{self.folder} holds a sweep of another config or space; give the same words as "
                "then to go on with it, or another name= for a new one"
            )
        study.set_user_attr("key", self.key)
        return study

    def rows(self) -> list[Row]:
        """All trials so far, by number."""
        return [self._row(frozen) for frozen in self.study.get_trials(deepcopy=False)]

    def _row(self, frozen: FrozenTrial) -> Row:
        told, known = frozen.user_attrs, set(self.settings.space) <= set(frozen.params)
        parameters = values_of(self.settings.space, frozen.params) if known else {}
        over, done = frozen.state.is_finished(), frozen.value is not None
        values = list(told.get("values", {}).values()) if done else []
        return Row(
            trial=frozen.number,
            state="finished" if done else "failed" if over else "running",
            value=frozen.value,
            sd=stdev(values) if len(values) > 1 else None,
            seconds=told.get("seconds") if over else None,
            names={key: label_of(frozen.params[key]) for key in parameters},
            parameters=parameters,
            values=told.get("values", {}),
            reason=told.get("reason"),
        )

    # -- the loop ----------------------------------------------------------------------------------

    def run(
        self, objective: Callable[[Trial], Result], *, after: Callable[[list[Row]], None]
    ) -> list[Row]:
        """Work on trials until all are over, those of other processes too; returns the table.

        Args:
            objective: makes a Result of a trial, or raises what ends this process.
            after: is given the table, under the lock, whenever a trial of this process is over.

        Raises:
            UserError: of the objective, while no trial is over; later it is a reason in the table.
        """
        bar, shown = console.Bar(self.total, desc=f"sweep {self.folder.name}", unit="trial"), 0
        try:
            while True:
                with self._lock:
                    over = sum(row.state != "running" for row in self.rows())
                    claim = self._claim()
                bar.advance(over - shown)
                shown = over
                if claim is not None:
                    self._work(*claim, objective, after)
                elif over < self.total:
                    bar.note("waiting for other processes")
                    time.sleep(POLL)
                else:
                    return self.rows()
        finally:
            bar.close()

    def _claim(self) -> tuple[Any, bool, BaseFileLock] | None:
        """A trial to work on, whether it was begun before, and the lock on it; None when all are
        over or worked on.
        """
        found = self.study.get_trials(deepcopy=False)
        for frozen in found:
            if not frozen.state.is_finished() and (hold := self._held(frozen.number)):
                self.study.sampler = self._sampler(frozen.number)
                live = self.optuna.trial.Trial(self.study, frozen._trial_id)
                return self._draw(live), True, hold
        if len(found) >= self.total:
            return None
        hold = self._held(len(found))
        assert hold is not None, "a trial that does not exist is worked on"
        self.study.sampler = self._sampler(len(found))
        return self._draw(self.study.ask()), False, hold

    def _held(self, number: int) -> BaseFileLock | None:
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        return held(locks / f"trial-{number}")

    def _sampler(self, number: int) -> Any:
        """The sampler of one trial: what it draws depends on the number, not on who draws."""
        import numpy as np

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        made = self.optuna.samplers.RandomSampler(seed=seed)
        if self.settings.sampler == "tpe":
            return self.optuna.samplers.TPESampler(seed=seed)
        if not self.grid:
            return made
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            return self.optuna.samplers.PartialFixedSampler(self.grid[number], made)

    def _draw(self, trial: Any) -> Any:
        """Give a trial its parameters; those it has already stay."""
        for key, axis in self.settings.space.items():
            if axis.finite:
                trial.suggest_categorical(key, list(listed(axis)))
            elif axis.whole:
                trial.suggest_int(key, axis.low, axis.high, log=axis.log)
            else:
                trial.suggest_float(key, axis.low, axis.high, log=axis.log)
        return trial

    def _work(
        self,
        live: Any,
        begun: bool,
        hold: BaseFileLock,
        objective: Callable[[Trial], Result],
        after: Callable[[list[Row]], None],
    ) -> None:
        names = {key: label_of(value) for key, value in live.params.items()}
        trial = Trial(live.number, values_of(self.settings.space, live.params), names, begun)
        told = ", ".join(f"{key}={name}" for key, name in names.items())
        again = ", continued" if begun else ""
        console.say(f"trial {trial.number} ({trial.number + 1} of {self.total}{again}): {told}")
        begin = time.monotonic()
        try:
            try:
                result = objective(trial)
            except UserError as error:
                if self._forgotten(trial.number):
                    raise
                result = Result(reason=str(error))
            with self._lock:
                self._tell(live, result, time.monotonic() - begin)
                after(self.rows())
        finally:
            hold.release()

    def _tell(self, live: Any, result: Result, seconds: float) -> None:
        live.set_user_attr("values", {str(seed): value for seed, value in result.values.items()})
        live.set_user_attr("seconds", round(seconds, 1))
        if result.reason is None:
            value = fmean(result.values.values())
            console.say(f"trial {live.number}: {self.settings.metric} {value:.6g}")
            self.study.tell(live, value)
        else:
            console.warn(f"trial {live.number} has no value: {result.reason}")
            live.set_user_attr("reason", result.reason)
            self.study.tell(live, state=self.optuna.trial.TrialState.FAIL)

    def _forgotten(self, number: int) -> bool:
        """While no trial is over, a mistake of the user is one of all trials: True, and the study
        is deleted unless others work on it, so that the corrected words begin a new one.
        """
        with self._lock:
            found = self.study.get_trials(deepcopy=False)
            if any(frozen.state.is_finished() for frozen in found):
                return False
            holds = [self._held(frozen.number) for frozen in found if frozen.number != number]
            alone = None not in holds
            for hold in filter(None, holds):
                hold.release()
            if alone:
                self.optuna.delete_study(study_name=self.folder.name, storage=self.storage)
            return True


class _Held:
    """For Optuna's journal: every use of it happens with the lock of the sweep held."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
