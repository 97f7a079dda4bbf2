"""Where an evaluation is written. A run folder holds the main report, which is what the config of
the run gives; any other evaluation has a folder of its own in `<run>/evaluations/`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import console
from vilmedic_ssl.errors import ConfigError, MissingSplit, UserError
from vilmedic_ssl.executors.compare import flat
from vilmedic_ssl.executors.evaluations import EVALUATIONS, RECORD, SEED, read_record
from vilmedic_ssl.executors.sweep_table import as_json
from vilmedic_ssl.experiment.data import hashes_of, take_classes
from vilmedic_ssl.experiment.settings import Experiment, settled, typed
from vilmedic_ssl.files import write_text
from vilmedic_ssl.locks import only_one
from vilmedic_ssl.schema import complete, without_weights

if TYPE_CHECKING:
    from vilmedic_ssl.executors.ensemblor import Outcome
    from vilmedic_ssl.executors.features import Features

SECTIONS = ("dataset", "split_file", "train_fraction", "budget", "audit", "model")
UNREAD = (  # keys of a transform that scoring does not look at
    *("train", "custom_transform_train", "second", "local", "views", "local_views", "local_crop"),
    *("load_memory", "cache", "cache_gb"),
)
WRITTEN = ("results.json", "report.html", "post_processing")
SINGLE = ("best-1", "last")
SHOWN = 4  # keys that a sentence names


@dataclass(frozen=True)
class Evaluation:
    """What decides the numbers of an evaluation.

    Attributes:
        config: dotted key -> value, of the data, the model and the plug-ins; paths are left out
            where `data` says what was there.
        data: split -> hash of its samples, and that of the split file.
        checkpoints: file name -> SHA-256.
        seed: of the checkpoint; of several, that of the best one.
        choice: how checkpoints were chosen; the same ones chosen otherwise are the same evaluation.
    """

    config: dict[str, Any]
    data: dict[str, str]
    checkpoints: dict[str, str]
    seed: int
    choice: str

    @property
    def hash(self) -> str:
        return yaml_config.digest({**asdict(self), "choice": None})

    def record(self) -> dict[str, Any]:
        """As it is kept in `evaluation.json`."""
        return json.loads(json.dumps({"format": 1, "hash": self.hash, **asdict(self)}, default=str))

    def unlike(self, record: Mapping[str, Any]) -> list[str]:
        """What differs from a kept one, the content of checkpoints apart: keys, splits, `seed`."""
        own = self.record()
        names = _unequal(own["config"], record["config"])
        names += [f"the data of {name}" for name in _unequal(own["data"], record["data"])]
        if own["choice"] != record["choice"]:
            return [*names, "ensemblor.mode"]
        one = own["choice"] in SINGLE
        return [*names, *(["seed"] if one and own["seed"] != record["seed"] else [])]


@dataclass(frozen=True)
class Place:
    """Where an evaluation is written.

    Attributes:
        folder: of results.json and what lies beside it.
        why: why that is not the run folder; "" where it is.
        previous: the record of the evaluation that is replaced; None = there is none.
        overwrite: the user asked for that.
    """

    folder: Path
    evaluation: Evaluation
    why: str = ""
    previous: Mapping[str, Any] | None = None
    overwrite: bool = False

    def claim(self, node: Mapping[str, Any]) -> None:
        """Make the folder, and write what it is for; of an evaluation outside the run folder also
        `config.yml`, which repeats it.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.previous is None:
                write_text(self.folder / RECORD, as_json(self.evaluation.record()))
            elif self.overwrite and self.evaluation.unlike(self.previous):
                self._set_aside()
            if self.why:
                text = yaml_config.dump({**node, "overwrite": False})
                write_text(self.folder / "config.yml", text)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror}); change ckpt_dir or name"
            ) from error

    def refuse_loss(self, outcome: Outcome) -> None:
        """A report is not replaced by one in which a plug-in failed that finished there.

        Raises:
            UserError: it would be.
        """
        if self.previous is None or self.overwrite or not (self.folder / WRITTEN[0]).is_file():
            return
        lost = [name for name in _failed(outcome) if name not in self.previous.get("failed", ())]
        if lost:
            raise UserError(
                f"{', '.join(lost)} failed and finished in the earlier evaluation, so "
                f"{self.folder / WRITTEN[0]} and {WRITTEN[1]} were left as they were; replace them "
                "with overwrite=true, or give this one a name with ensemblor.name=NAME"
            )

    def close(self, outcome: Outcome) -> None:
        """Write what the files beside it are of, once they are there."""
        content = {**self.evaluation.record(), "failed": _failed(outcome)}
        write_text(self.folder / RECORD, as_json(content))

    def _set_aside(self) -> None:
        """Files of other plug-ins or data are not mixed with those of this evaluation."""
        old = self.folder / "post_processing"
        names = (self.folder / f"{old.name}_before_{n}" for n in itertools.count(1))
        new = next(name for name in names if not name.exists())
        if _there(old):
            old.rename(new)
            console.say(f"the plug-ins' files of the evaluation that is replaced are now in {new}")


def _failed(outcome: Outcome) -> list[str]:
    return list(dict.fromkeys(name for name, _ in outcome.failures))


def evaluation_of(
    experiment: Experiment,
    node: Mapping[str, Any],
    files: Sequence[Path],
    features: Features,
) -> Evaluation:
    """The evaluation of these checkpoints on this data, whose splits are read."""
    names = dict.fromkeys((*experiment.ensemblor.splits, "train", "validate"))
    datasets = {}
    for name in names:
        try:
            datasets[name] = features.dataset(name)
        except (MissingSplit, UserError):
            if name in experiment.ensemblor.splits:
                raise
    return Evaluation(
        deciding(experiment, node, paths=False),
        hashes_of(experiment, datasets),
        {path.name: _sha256(path) for path in files},
        experiment.seed,
        _choice(experiment),
    )


def _choice(experiment: Experiment) -> str:
    choice = experiment.ckpt or experiment.ensemblor.mode
    return "best-1" if choice == "best" else choice


def deciding(experiment: Experiment, node: Mapping[str, Any], *, paths: bool) -> dict[str, Any]:
    """Dotted key -> value of what decides the numbers of an evaluation, the checkpoints apart.

    Args:
        paths: true = those of the data as absolute ones, false = without them.
    """
    own = {key: node[key] for key in SECTIONS}
    own["model"] = without_weights(own["model"])
    for key in ("dataset", "split_file", "budget"):
        own[key] = _settled(own[key], paths)
    settings = experiment.ensemblor
    own["ensemblor"] = {"splits": settings.splits, "post_processing": settings.post_processing}
    return flat(json.loads(json.dumps(own, default=str)))


def _settled(value: Any, paths: bool) -> Any:
    """A node with the keys that scoring reads, and paths that do not depend on where one stands."""
    if isinstance(value, Mapping):
        unread = UNREAD if "local_crop" in value else ()
        return {k: _settled(v, paths) for k, v in value.items() if k not in unread}
    if isinstance(value, list):
        return [_settled(item, paths) for item in value]
    if isinstance(value, str) and value and _exists(value):
        return str(Path(value).resolve()) if paths else "a path"
    return value


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a null byte
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def claimed(
    evaluation: Evaluation,
    experiment: Experiment,
    node: Mapping[str, Any],
    files: Sequence[Path],
    content: Mapping[str, Any],
) -> Place:
    """The place of an evaluation, taken: another seed that is scored meanwhile takes another one.

    Args:
        files, content: as of `place_of`.

    Raises:
        UserError: as `place_of`, or it cannot be written.
    """
    with only_one(experiment.folder / RECORD, f"taking its place in {experiment.folder}"):
        place = place_of(evaluation, experiment, node, files, content)
        place.claim(node)
    return place


def place_of(
    evaluation: Evaluation,
    experiment: Experiment,
    node: Mapping[str, Any],
    files: Sequence[Path],
    content: Mapping[str, Any],
) -> Place:
    """Where an evaluation belongs.

    Args:
        files, content: its checkpoints, best first, and what the first one holds.

    Raises:
        UserError: the folder of its name holds another evaluation, or something else.
    """
    run, below = experiment.folder, experiment.folder / EVALUATIONS
    if experiment.ensemblor.name is not None:
        named = below / experiment.ensemblor.name
        return _own_folder(evaluation, named, "named by ensemblor.name", experiment.overwrite)
    own, why = _own(experiment, node, files, content)
    if own is not None:
        evaluation = replace(evaluation, choice=_choice(own))
        main, why = _main(evaluation, run, experiment.overwrite)
        if main is None and why.startswith("the main report is of seed"):
            place, _ = _main(evaluation, below / f"{SEED}{experiment.seed}", experiment.overwrite)
            main = place and replace(place, why=why)
        if main is not None:
            return main
    return _own_folder(evaluation, below / evaluation.hash[:8], why, experiment.overwrite)


def _own(
    experiment: Experiment,
    node: Mapping[str, Any],
    files: Sequence[Path],
    content: Mapping[str, Any],
) -> tuple[Experiment | None, str]:
    """The experiment that the config of the run describes where it gives the same evaluation, else
    None and why it does not.
    """
    file = experiment.folder / f"config_{content['seed']}.yml"
    try:
        stored = yaml_config.read(file) if file.is_file() else content["config"]
        own_node = complete(settled(stored), Experiment, "")
        own = typed(own_node)
    except ConfigError as error:
        return None, f"{file} is not of this version ({error})"
    own = replace(own, ckpt_dir=experiment.ckpt_dir, name=experiment.name)  # it may have been moved
    own = replace(own, seed=content["seed"], ckpt=None)
    take_classes(own_node["model"], content["config"]["model"])
    keys = _unequal(deciding(experiment, node, paths=True), deciding(own, own_node, paths=True))
    if keys:
        return None, f"{_listed(keys)} {'are' if len(keys) > 1 else 'is'} not as in {file}"
    chosen = chosen_of(own)
    if [path.resolve() for path in files] != [path.resolve() for path in chosen]:
        names = ", ".join(path.name for path in chosen) or "no checkpoint that is there"
        return None, f"{file} chooses {names}"
    return own, ""


def chosen_of(experiment: Experiment) -> list[Path]:
    """The checkpoints that an experiment names; none where they are not there."""
    from vilmedic_ssl.executors.ensemblor import choose_checkpoints

    try:
        return choose_checkpoints(
            experiment.folder,
            experiment.ensemblor.mode,
            experiment.ckpt,
            seed_of_choice(experiment),
        )
    except UserError:
        return []


def seed_of_choice(experiment: Experiment) -> int | None:
    """The seed that a single checkpoint is chosen from: that of the config where it was trained
    here; None = all, also where several are scored together.
    """
    from vilmedic_ssl.executors import checkpoint

    folder, seed = experiment.folder, experiment.seed
    if _choice(experiment) not in SINGLE:
        return None
    own = [*checkpoint.best_files(folder, seed), folder / f"last_{seed}.pth"]
    return seed if any(path.is_file() for path in own) else None


def _main(evaluation: Evaluation, folder: Path, overwrite: bool) -> tuple[Place | None, str]:
    """The place of a report that more training refreshes, or why something else stays there."""
    record = read_record(folder)
    if record is None:
        if not overwrite and any(_there(folder / name) for name in WRITTEN):
            return None, (
                f"{folder} already has results or a report without {RECORD}, which says what they "
                "are of; overwrite=true replaces them"
            )
        return Place(folder, evaluation, overwrite=overwrite), ""
    unlike = evaluation.unlike(record)
    if "seed" in unlike:
        return None, f"the main report is of seed {record['seed']}"
    overwrite = overwrite or _is_unfinished(record, evaluation, folder)
    if unlike and not overwrite:
        return None, (
            f"{_listed(unlike)} changed since the report in {folder}; overwrite=true replaces it"
        )
    if not unlike and evaluation.record()["checkpoints"] != record["checkpoints"]:
        console.say(f"the report in {folder} is of earlier checkpoints and is brought up to date")
    return Place(folder, evaluation, "", record, overwrite), ""


def _own_folder(evaluation: Evaluation, folder: Path, why: str, overwrite: bool) -> Place:
    """The place of one evaluation and no other."""
    record = read_record(folder)
    if record is not None:
        overwrite = overwrite or _is_unfinished(record, evaluation, folder)
    if not overwrite:
        if record is None and _there(folder):
            raise UserError(
                f"{folder} is there already and no evaluation; choose another ensemblor.name, or "
                "write into it with overwrite=true"
            )
        if record is not None and record["hash"] != evaluation.hash:
            unlike = _listed(evaluation.unlike(record) or ["the checkpoint"])
            raise UserError(
                f"{folder} holds another evaluation ({unlike}); choose another ensemblor.name, or "
                "replace it with overwrite=true"
            )
    return Place(folder, evaluation, why, record, overwrite)


def _is_unfinished(record: Mapping[str, Any], evaluation: Evaluation, folder: Path) -> bool:
    """True where an evaluation ended before it had results, and is not at work: of the same seed,
    whose lock is held.
    """
    return record.get("seed") == evaluation.seed and not (folder / WRITTEN[0]).is_file()


def _there(path: Path) -> bool:
    """A file, or a folder with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys((*one, *other))
    return [name for name in names if one.get(name) != other.get(name)]


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    words = [*names[:SHOWN], *more]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
