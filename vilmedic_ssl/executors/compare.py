"""Many run folders as one table: what differs between their configs, their best validation scores,
the numbers of their results.json.

Runs whose configs differ in nothing but the seed are one row: the mean over seeds, with its
standard deviation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.executors.evaluations import read_record, reports_of
from vilmedic_ssl.executors.run import read_log
from vilmedic_ssl.executors.sweep_space import label_of

# Where a run was made and how it was looked at: no difference between methods.
ELSEWHERE = (
    *("name", "ckpt_dir", "seed", "ckpt", "overwrite", "device", "num_workers", "plugins"),
    *("audit", "ensemblor", "sweep"),
)
Record = Mapping[str, Any]
Scored = tuple[float, float | None, float | None, str]


@dataclass(frozen=True)
class Training:
    """One seed of a run folder."""

    folder: Path
    seed: int
    config: dict[str, Any]
    log: list[dict[str, Any]]


@dataclass
class Group:
    """Trainings whose configs differ in the seed at most.

    Attributes:
        label: what tells the group apart, in words.
        differs: dotted key -> value, of the keys in which groups differ.
        scores: metric -> best value of each training that has it.
        results: name -> (value, low, high, note) of each folder that was scored; low, high may be
            None, and the note says why, or "".
    """

    trainings: list[Training]
    label: str = ""
    differs: dict[str, str] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    results: dict[str, list[Scored]] = field(default_factory=dict)

    @property
    def folders(self) -> list[Path]:
        return list(dict.fromkeys(t.folder for t in self.trainings))


def groups_of(folders: Sequence[str | Path]) -> list[Group]:
    """Read run folders, or folders of sweeps with runs below them, and group their trainings.

    Raises:
        UserError: no such folder, or no run in it.
    """
    made: dict[str, Group] = {}
    for training in (t for folder in folders for t in _trainings(Path(folder))):
        told = {k: v for k, v in training.config.items() if k not in ELSEWHERE}
        made.setdefault(yaml_config.digest(told), Group([])).trainings.append(training)
    groups = list(made.values())
    _differences(groups)
    for group in groups:
        _scores(group)
    for group, _, place in _scored(groups):
        _results(group, place)
    _warn_of_other_data(groups)
    _warn_of_other_weights(groups)
    return groups


def _trainings(folder: Path) -> Iterable[Training]:
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}; name folders that training wrote")
    files = sorted(folder.glob("config_[0-9]*.yml"))
    inner = [] if files else sorted(folder.glob("*/config_[0-9]*.yml"), key=_by_number)
    if not files and not inner:
        raise UserError(f"{folder} holds no run (no config_<seed>.yml); name folders of trainings")
    for path in files or inner:
        seed = int(path.stem.removeprefix("config_"))
        log = read_log(path.with_name(f"log_{seed}.jsonl"))
        yield Training(path.parent, seed, yaml_config.read_yaml(path), log)


def _by_number(path: Path) -> tuple[int, str]:
    """trial-10 behind trial-9."""
    number = path.parent.name.rpartition("-")[2]
    return (int(number) if number.isdecimal() else 0, str(path))


def flat(node: Any, where: str = "") -> dict[str, Any]:
    """A config with dotted keys; lists stay whole."""
    if not isinstance(node, Mapping):
        return {where: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{where}.{key}" if where else str(key))
    return found


def _differences(groups: Sequence[Group]) -> None:
    """Fill in `differs` and `label`."""
    configs = [flat(group.trainings[0].config) for group in groups]
    keys = [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if key.split(".")[0] not in ELSEWHERE
        and len({label_of(config.get(key)) for config in configs}) > 1
    ]
    for group, config in zip(groups, configs, strict=True):
        group.differs = {key: label_of(config.get(key)) for key in keys}
        names = ", ".join(folder.name for folder in group.folders[:2])
        more = len(group.folders) - 2
        group.label = f"{names} and {more} more" if more > 0 else names


def _scores(group: Group) -> None:
    """The best value of every validation score of each training."""
    for training in group.trainings:
        evaluations = [r.get("scores") or {} for r in training.log if r.get("kind") == "eval"]
        for name in dict.fromkeys(name for scores in evaluations for name in scores):
            values = [s[name] for s in evaluations if s.get(name) is not None]
            if values:
                best = (min if lower_is_better(name) else max)(values)
                group.scores.setdefault(name, []).append(best)


def lower_is_better(name: str) -> bool:
    """The direction of a validation score; of one that no metric here has, by its name."""
    from vilmedic_ssl.executors.monitors import METRICS

    return METRICS[name].lower_is_better if name in METRICS else name.endswith("loss")


def _scored(groups: Sequence[Group]) -> Iterator[tuple[Group, Path, Path]]:
    """Group, run folder, and where results of its trainings are, in it or below."""
    for group in groups:
        for folder in group.folders:
            seeds = [training.seed for training in group.trainings if training.folder == folder]
            yield from ((group, folder, place) for place in reports_of(folder, seeds))


def _results(group: Group, folder: Path) -> None:
    path = folder / "results.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not readable ({error}); score the run again") from error
    for name, value in found.items():
        whole = name.rpartition("/")
        if isinstance(value, (int, float)) and not (
            whole[2] in ("low", "high") and whole[0] in found
        ):
            ends = found.get(f"{name}/low"), found.get(f"{name}/high")
            note = str(found.get(f"{name}/interval", ""))
            group.results.setdefault(name, []).append((float(value), *ends, note))


def _warn_of_other_data(groups: Sequence[Group]) -> None:
    """Results on different images do not compare, nor do means over different classes."""
    hashes: set[Any] = set()
    left: dict[str, set[Any]] = {}
    for _, _, place in _scored(groups):
        found = json.loads((place / "results.json").read_text(encoding="utf-8"))
        hashes.add(found.get("split/hash"))
        for name in (name for name in found if name.rpartition("/")[2] == "auroc"):
            left.setdefault(name, set()).add(found.get(f"{name}/left_out"))
    if len(hashes) > 1:
        console.warn(
            "these runs were not all scored on the same splits (split/hash in results.json "
            "differs): their results do not compare"
        )
    for name in (name for name, every in left.items() if len(every) > 1):
        console.warn(
            f"{name} is a mean over other classes in some of these runs ({name}/left_out in "
            "results.json differs): these means do not compare"
        )


def _warn_of_other_weights(groups: Sequence[Group]) -> None:
    """Results of a checkpoint that more training, or a new one, has replaced."""
    for _, folder, place in _scored(groups):
        names = (read_record(place) or {}).get("checkpoints", {})
        if names and not any((folder / name).is_file() for name in names):
            console.warn(
                f"{place / 'results.json'} is of {next(iter(names))}, which is not there any more; "
                "score the run again, with `vilmedic-ssl ensemble`"
            )


def rows_of(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The table as plain rows with the same keys: runs, seeds, the keys that differ, then each
    number with its sd over seeds, or, for a single scored folder, its interval or why it has none.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group.differs))
    scores = list(dict.fromkeys(name for group in groups for name in group.scores))
    results = list(dict.fromkeys(name for group in groups for name in group.results))
    noted = {name for g in groups for name, every in g.results.items() if any(t[3] for t in every)}
    made = []
    for group in groups:
        row: dict[str, Any] = {
            "runs": " ".join(map(str, group.folders)),
            "seeds": len(group.trainings),
            **{key: group.differs.get(key) for key in keys},
        }
        for name in scores:
            row |= _mean(f"best {name}", group.scores.get(name, []))
        for name in results:
            triples = group.results.get(name, [])
            row |= _mean(name, [t[0] for t in triples])
            single = triples[0] if len(triples) == 1 else (None, None, None, "")
            row |= {f"{name}/low": single[1], f"{name}/high": single[2]}
            if name in noted:
                row[f"{name}/interval"] = single[3]
        made.append(row)
    return made


def _mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: fmean(values) if values else None,
        f"{name}/sd": stdev(values) if len(values) > 1 else None,
    }
