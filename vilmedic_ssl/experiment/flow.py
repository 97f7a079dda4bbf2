"""A flow end to end: its stages trained or taken from an earlier start, then one comparison."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import console
from vilmedic_ssl.config import digest, dump, read_yaml
from vilmedic_ssl.errors import ConfigError, Diverged, Unobtainable, UserError
from vilmedic_ssl.executors.flow import FlowSettings, Step, steps, told
from vilmedic_ssl.experiment.flow_config import (
    FlowExperiment,
    check_flow,
    checked_stage,
    shared_of,
    started,
    typed_flow,
)
from vilmedic_ssl.experiment.flow_data import inspect
from vilmedic_ssl.experiment.flow_rehearsal import rehearse
from vilmedic_ssl.files import remove_partials, write_text
from vilmedic_ssl.schema import plain

if TYPE_CHECKING:
    from vilmedic_ssl.executors.predictions import Predictions

FILES = ("flow.yml", "flow.csv", "flow.json", "flow.html", "learning_curve.png")
ELSEWHERE = ("ckpt_dir", "name", "device", "num_workers", "plugins", "ensemblor")


def run_flow(config: Mapping[str, Any], *, only_table: bool = False) -> Path:
    """Run what is not done yet, then write table, plot and page; returns the flow's folder.

    Args:
        only_table: train nothing; what is missing is left out, and said.

    Raises:
        UserError, Leak, Interrupted: as training does.
        Diverged: a stage did, at the end: the others are in the table.
    """
    from vilmedic_ssl import dist
    from vilmedic_ssl.executors.flow_table import as_text, cells, in_words, write
    from vilmedic_ssl.report_flow import write_flow_report

    checked = check_flow(plain(config))
    flow = typed_flow(checked)
    settings = flow.flow
    dist.start(dist.choose_device(flow.device))
    shared = shared_of(checked)
    data = inspect(settings, shared, flow.folder)
    dist.on_main(lambda: _save(checked, flow.folder))
    plan = list(steps(settings, shared, {name: of.hash for name, of in data.items()}))
    runner = _Runner(flow, settings, plan, only_table=only_table)
    if not only_table:
        rehearse(runner, plan, data, flow.folder, settings.split)
    made, lost = runner.run()
    if dist.rank() != 0:
        return flow.folder
    by_budget = _arranged(settings, plan, made)
    found = cells(
        by_budget, baseline=settings.baseline, names=settings.metrics, draws=settings.draws
    )
    words = in_words(found, settings.metrics[0], settings.baseline)
    about = {
        "split": settings.split,
        "seeds": list(settings.seeds),
        "baseline": settings.baseline,
        "draws": settings.draws,
        "words": words,
        "missing": lost,
    }
    write(found, flow.folder, about)
    report = write_flow_report(
        flow.folder, title=flow.name, cells=found, about=about, config=checked
    )
    console.result(as_text(found, settings.metrics, settings.baseline))
    for sentence in [*words, *lost]:
        console.result(sentence)
    console.result(f"report {report}")
    diverged = [sentence for sentence in lost if "diverged" in sentence]
    if diverged:
        raise Diverged("; ".join(diverged))
    return flow.folder


def compare_again(config: Mapping[str, Any]) -> dict[str, float | str]:
    """Table, plot and page once more from what the stages predicted; the means, by
    "<split>/<stage>/<budget>/<metric>".

    Raises:
        UserError: no stage has been run with all its seeds.
    """
    folder = run_flow(config, only_table=True)
    held = json.loads((folder / "flow.json").read_text(encoding="utf-8"))
    return {
        f"{held['split']}/{row['stage']}/{row['budget']}/{row['metric']}": row["mean"]
        for row in held["rows"]
    }


def _save(checked: Mapping[str, Any], folder: Path) -> None:
    """The resolved config, which runs and scores the flow without the words it was given; the
    comparison that other words gave here is kept below `comparisons`.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
        _set_aside(checked, folder)
        write_text(folder / FILES[0], dump(checked))
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); change ckpt_dir or name"
        ) from error


def _set_aside(checked: Mapping[str, Any], folder: Path) -> None:
    there = [folder / name for name in FILES if (folder / name).exists()]
    old = _stored(folder)
    if there and (old is None or _compared(old) != _compared(checked)):
        place = _room(folder / "comparisons", "before" if old is None else digest(_compared(old)))
        for path in there:
            path.replace(place / path.name)
        console.say(f"{folder} held the comparison of another flow; it is now in {place}")


def _stored(folder: Path) -> dict[str, Any] | None:
    """The flow that was compared here; None where there is none, or it cannot be read."""
    try:
        return read_yaml(folder / FILES[0])
    except ConfigError:
        return None


def _compared(flow: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide what is in the table."""
    return {key: value for key, value in flow.items() if key not in ELSEWHERE}


def _room(folder: Path, name: str) -> Path:
    """A new folder of that name, or with the next number that is free."""
    names = itertools.chain([name[:8]], (f"{name[:8]}-{n}" for n in itertools.count(2)))
    place = next(folder / one for one in names if not (folder / one).exists())
    place.mkdir(parents=True)
    return place


class _Runner:
    """Runs the steps of a plan in order, skipping what is done."""

    def __init__(
        self,
        flow: FlowExperiment,
        settings: FlowSettings,
        plan: Sequence[Step],
        *,
        only_table: bool,
    ):
        self.flow, self.settings, self.plan, self.only_table = flow, settings, plan, only_table
        self.features: tuple[Any, Any] = (None, None)

    def run(self) -> tuple[dict[tuple[str, str | None, int], Predictions], list[str]]:
        """Predictions by (stage, budget, seed), and a sentence per step that is missing."""
        from vilmedic_ssl import dist
        from vilmedic_ssl.executors.predictions import read_predictions

        made: dict[tuple[str, str | None, int], Predictions] = {}
        gone: dict[int, str] = {}  # by id of the step
        unobtainable: dict[str, str] = {}  # by stage: what one step lacks, all do
        lost: list[str] = []
        start, todo = time.monotonic(), sum(not self.done(step) for step in self.plan)
        console.say(f"flow {self.flow.folder}: {len(self.plan)} steps, {todo} to do")
        ran = 0
        for number, step in enumerate(self.plan, 1):
            if step.name in unobtainable:
                gone[id(step)] = unobtainable[step.name]
                continue
            if step.source is not None and id(step.source) in gone:
                gone[id(step)] = gone[id(step.source)]
                lost.append(f"{step.told}: left out, since {gone[id(step)]}")
                continue
            if not dist.on_main(partial(self.done, step)):
                if self.only_table:
                    gone[id(step)] = f"{step.told} has not been run"
                    lost.append(gone[id(step)])
                    continue
                left = (time.monotonic() - start) / ran * (todo - ran) if ran else None
                rest = "" if left is None else f", about {_clock(left)} left"
                console.say(f"[{number}/{len(self.plan)}] {step.told}{rest}")
                try:
                    self._make(step)
                except Diverged as error:
                    gone[id(step)] = f"{step.told} diverged"
                    lost.append(f"{step.told} diverged: {error}")
                    continue
                except Unobtainable as error:
                    if not step.stage.optional:
                        raise
                    gone[id(step)] = unobtainable[step.name] = f"{step.told} was left out"
                    lost.append(f"{step.told} was left out: {error}")
                    console.warn(lost[-1])
                    continue
                ran += 1
            if step.stage.judged_by and dist.rank() == 0:
                budget = None if step.budget is None else told(step.budget)
                made[step.name, budget, step.seed] = read_predictions(self._scores(step))
        return made, lost

    # -- where things are --------------------------------------------------------------------------

    def _folder(self, step: Step) -> Path:
        return self.flow.folder / step.folder

    def _scores(self, step: Step) -> Path:
        return self._folder(step) / f"predictions_{self.settings.split}_{step.seed}.npz"

    def _mark(self, step: Step) -> Path:
        return self._folder(step) / f"done_{step.seed}.json"

    def done(self, step: Step) -> bool:
        trained = not step.stage.trains or self._mark(step).is_file()
        return trained and (not step.stage.judged_by or self._scores(step).is_file())

    def checkpoint(self, step: Step) -> Path | None:
        """The checkpoint of a step, or of the one whose encoder it judges; None = untrained."""
        from vilmedic_ssl.executors import checkpoint

        if step.stage.model is None:
            assert step.source is not None
            return self.checkpoint(step.source)
        if not step.stage.trains:
            return None
        return checkpoint.find(self._folder(step), step.stage.checkpoint, step.seed)

    # -- doing -------------------------------------------------------------------------------------

    def _make(self, step: Step) -> None:
        """Train and judge a step, unless another process just did."""
        from vilmedic_ssl import dist
        from vilmedic_ssl.locks import only_one

        folder = self._folder(step)
        dist.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        place, main = folder / str(step.seed), dist.rank() == 0
        with only_one(place, f"running {step.told}") if main else nullcontext():
            if step.stage.trains and not dist.on_main(self._mark(step).is_file):
                self._train(step)
            if step.stage.judged_by and not dist.on_main(self._scores(step).is_file):
                dist.on_main(lambda: self._judge(step))

    def _train(self, step: Step) -> None:
        from vilmedic_ssl import dist
        from vilmedic_ssl.executors.checkpoint import newest
        from vilmedic_ssl.experiment.training import train

        resumed = dist.on_main(lambda: newest(self._folder(step), step.seed)) is not None
        config = {**self._sourced(step), "ckpt": "last" if resumed else None}
        begin = time.monotonic()
        train(config, audit=False)
        mark = {"seconds": round(time.monotonic() - begin, 1), "resumed": resumed}
        dist.on_main(lambda: write_text(self._mark(step), json.dumps(mark) + "\n"))

    def _sourced(self, step: Step) -> dict[str, Any]:
        """`config` of a step whose source is done."""
        return self.config(step, None if step.source is None else self.checkpoint(step.source))

    def config(self, step: Step, source: Path | None) -> dict[str, Any]:
        """The experiment of a step, ready to be trained or scored.

        Args:
            source: a checkpoint of the step it builds on.
        """
        config = {
            **step.config,
            "name": f"{self.flow.name}/{step.folder}",
            "seed": step.seed,
            "ensemblor": vars(self.flow.ensemblor).copy(),
        }
        owner = step
        while owner.stage.model is None:  # judged as it is: the model is that of its source
            assert owner.source is not None
            owner = owner.source
        config["model"] = dict(owner.config["model"])
        if step.stage.model is not None and source is not None:
            config = started(config, str(source))
        return checked_stage(step.name, config)

    def _judge(self, step: Step) -> None:
        """Write the class scores of a step."""
        from vilmedic_ssl.experiment.judging import Judged, predictions

        node = self._sourced(step)
        whole = {**node, "budget": None}
        path = self.checkpoint(step)
        owner = step.source if step.stage.model is None else step
        key = (path, owner and owner.folder, digest(node["dataset"]), step.seed)
        if self.features[0] != key:
            self.features = key, Judged(whole, path, step.seed, self.settings.split)
        found = predictions(self.features[1], node, step.stage.judged_by or "classifier")
        found.save(self._scores(step))


def _arranged(
    settings: FlowSettings,
    plan: Sequence[Step],
    made: Mapping[tuple[str, str | None, int], Predictions],
) -> dict[str, dict[str, list[Predictions]]]:
    """budget -> stage -> predictions by seed; a stage that lacks a seed at a budget is left out.

    Raises:
        UserError: nothing is left.
    """
    found: dict[str, dict[str, list[Predictions]]] = {}
    for budget in map(told, settings.budgets):
        for name, stage in settings.stages.items():
            of_seeds = [made.get((name, budget, seed)) for seed in settings.seeds]
            if stage.judged_by and all(one is not None for one in of_seeds):
                found.setdefault(budget, {})[name] = [one for one in of_seeds if one is not None]
    if not found:
        raise UserError(
            "flow: no stage has all its seeds, so there is nothing to compare; run it with "
            "`vilmedic-ssl train` and the same words"
        )
    return found


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
