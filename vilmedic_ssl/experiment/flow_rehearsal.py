"""Every stage of a flow is set up before the first one is trained: what would end it when its turn
comes ends the flow now.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vilmedic_ssl import console
from vilmedic_ssl.data.budget import Budget
from vilmedic_ssl.errors import Leak, Unobtainable, UserError
from vilmedic_ssl.executors.flow import Step

if TYPE_CHECKING:
    from vilmedic_ssl.experiment.flow_data import Data

Key = tuple[str, str | None]


class Steps(Protocol):
    """What a rehearsal asks about the steps of a flow."""

    def done(self, step: Step) -> bool: ...

    def checkpoint(self, step: Step) -> Path | None: ...

    def config(self, step: Step, source: Path | None) -> dict[str, Any]: ...


def rehearse(
    steps: Steps, plan: Sequence[Step], data: Mapping[str, Data], folder: Path, split: str
) -> None:
    """Draw every budget of the steps to do, and set up each stage at each budget: its data, its
    model from untrained weights of the stage before, its optimizer, all but the training.

    Raises:
        UserError: one of them cannot run; the sentence names it.
        Leak: it would be trained on images of `split`, which is reported.
    """
    from vilmedic_ssl import dist

    todo = [step for step in plan if not dist.on_main(partial(steps.done, step))]
    for step in todo:
        _refuse_budget(step, data[step.name])
    if not todo:
        return
    console.say("setting every stage up, to see that it can run")
    place = Path(dist.on_main(lambda: tempfile.mkdtemp(dir=folder, prefix="rehearsal-")))
    try:
        with console.quiet():
            _set_up(steps, list(_first(todo)), data, place, split)
    finally:
        dist.on_main(lambda: shutil.rmtree(place, ignore_errors=True))


def _first(todo: Sequence[Step]) -> Iterator[Step]:
    """One step per stage and budget: seeds differ in nothing but what is drawn."""
    keys: set[Key] = set()
    for step in todo:
        if _key(step) not in keys:
            keys.add(_key(step))
            yield step


def _key(step: Step) -> Key:
    return step.name, None if step.budget is None else repr(step.budget)


def _set_up(
    steps: Steps, todo: Sequence[Step], data: Mapping[str, Data], place: Path, split: str
) -> None:
    from vilmedic_ssl.experiment.training import train

    checkpoints: dict[Key, Path | None] = {}
    absent: set[Key] = set()
    for step in todo:
        source = None
        if step.source is not None:
            if _key(step.source) in absent:
                absent.add(_key(step))
                continue
            rehearsed = checkpoints.get(_key(step.source))
            source = (
                rehearsed if _key(step.source) in checkpoints else steps.checkpoint(step.source)
            )
        try:
            if step.stage.trains:
                config = {**steps.config(step, source), "ckpt_dir": str(place), "num_workers": 0}
                run = train({**config, "name": step.folder}, audit=False, rehearse=True)
                checkpoints[_key(step)] = run / f"last_{step.seed}.pth"
            elif step.stage.model is not None:
                _build(steps.config(step, None))
                checkpoints[_key(step)] = None
            else:
                checkpoints[_key(step)] = source
            if step.stage.judged_by:
                _refuse_leak(checkpoints[_key(step)], data[step.name], split)
        except Unobtainable as error:
            if not step.stage.optional:
                raise _named(step, error) from error
            absent.add(_key(step))
        except UserError as error:
            raise _named(step, error) from error


def _named(step: Step, error: UserError) -> UserError:
    sentence = str(error).removeprefix(f"flow.stages.{step.name}: ")
    return type(error)(f"flow.stages.{step.told}: {sentence}")


def _build(node: dict[str, Any]) -> None:
    """The model of a stage that is judged untrained."""
    from vilmedic_ssl.experiment.data import dataset_of, pin_classes
    from vilmedic_ssl.experiment.settings import model_of, typed

    train = dataset_of(typed(node), node, "train")
    pin_classes(node["model"], train)
    model_of(node)


def _refuse_budget(step: Step, data: Data) -> None:
    """Raises:
    UserError: the budget of a step takes nothing.
    """
    from vilmedic_ssl.data.budget_rows import choose
    from vilmedic_ssl.data.datasets.part import Part

    train, node = data.splits["train"], step.config.get("budget")
    while isinstance(train, Part):  # of the first stage with this data, which may have its budget
        train = train.home
    try:
        if node is not None:
            budget = Budget(**node)
            choose(train, budget, seed=budget.seeded(step.seed))
    except UserError as error:
        raise _named(step, error) from error


def _refuse_leak(path: Path | None, data: Data, split: str) -> None:
    """Raises:
    Leak: the weights of a checkpoint have learned from images of the split that is reported.
    """
    import torch

    from vilmedic_ssl.executors import checkpoint

    if path is None:
        return
    members = data.splits[split].members()
    count = int(torch.isin(members, checkpoint.read_run(path)["trained_on"]).sum())
    if count:
        raise Leak(
            f"{count} of {len(members)} images of split {split!r} are among those a stage learns "
            "from, or started from; take them out of its data, or write other weights"
        )
