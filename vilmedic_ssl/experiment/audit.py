"""The audit of an experiment's data, as it runs before training and scoring."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import console
from vilmedic_ssl.data.auditing.findings import ORDER, counted
from vilmedic_ssl.errors import Leak, MissingSplit, UserError
from vilmedic_ssl.experiment.audit_remedies import divided, left_out
from vilmedic_ssl.experiment.outputs import MARK
from vilmedic_ssl.files import write_text

if TYPE_CHECKING:
    from vilmedic_ssl.data.auditing.findings import Finding
    from vilmedic_ssl.data.auditing.parts import Part
    from vilmedic_ssl.executors.settings import AuditSettings
    from vilmedic_ssl.experiment.settings import Experiment

SPLITS = ("train", "validate", "test")
AUDIT = "audit.json"
WIDTH = 300  # letters of a finding in the terminal
BY_PATIENT = ("patient", "study")  # leaks that a division by patient mends


def audit_before(
    experiment: Experiment, node: Mapping[str, Any], folder: Path, *, replace: bool = True
) -> list[Finding]:
    """Audit the data of a run, say what is wrong (a line per kind), and keep all that was found in
    `<folder>/audit.json`.

    Where a leak stops the run, an older audit.json stays and the new one is audit_refused.json.

    Args:
        replace: false = an older audit.json stays until `keep_audit`, since the run may yet be
            refused.

    Raises:
        Leak: a leak that is not allowed.
        UserError: the data cannot be read.
    """
    from vilmedic_ssl import dist

    settings = experiment.audit
    if settings is None:
        return []

    def work() -> tuple[list[Finding], Path | None, str]:
        parts = list(experiment_parts(experiment, node))
        found = findings_of(parts, settings, experiment.workers, node)
        name, config = AUDIT, ""
        there = (folder / name).is_file()
        if _stopping(found) and there:
            name = "audit_refused.json"
        if any(item.kind in BY_PATIENT for item in _stopping(found)):
            config = shlex.quote(str(_write(folder, "config_refused.yml", yaml_config.dump(node))))
        later = not replace and name == AUDIT and there and not _are_in(folder / AUDIT, found)
        file = None if later else write_json(folder, name, found)
        told = refusal(found, parts, node["dataset"], settings, config=config, folder=folder)
        return found, file, told

    found: list[Finding]
    found, file, told = dist.on_main(work)
    wrong = [item for item in found if item.severity != "note"]
    for kind in dict.fromkeys(item.kind for item in wrong):
        first, *others = [item for item in wrong if item.kind == kind]
        more = f" (and {counted(len(others), 'finding')} more of this kind)" if others else ""
        console.warn(f"audit, {kind}: {textwrap.shorten(first.message, WIDTH)}{more}")
    console.say(f"audit: {summary(found, ORDER[:2])}" + (f" ({file})" if file else ""))
    if told:
        raise Leak(told)
    return found


def keep_audit(found: Sequence[Finding], folder: Path, seed: int) -> None:
    """Write what was found in the data of a training that begins: to audit.json or, where that
    says something else and other seeds lie in the folder, to audit_<seed>.json.

    Raises:
        UserError: it cannot be written.
    """
    if _are_in(folder / AUDIT, found):
        return
    others = set(folder.glob("config_*.yml")) - {folder / f"config_{seed}.yml"}
    name = f"audit_{seed}.json" if others and (folder / AUDIT).is_file() else AUDIT
    console.say(f"audit: findings in {write_json(folder, name, found)}")


def experiment_parts(
    experiment: Experiment, node: Mapping[str, Any], *, source: int = 0, prefix: str = ""
) -> Iterator[Part]:
    """The splits that an experiment's data has, among the usual ones and those it names, whatever
    its budget.
    """
    from vilmedic_ssl.experiment.data import dataset_of

    experiment = replace(experiment, budget=None)
    node = {**node, "dataset": _in_colour(node["dataset"])}
    named = (*SPLITS, *experiment.validator.splits, *experiment.ensemblor.splits)
    yield from parts_of(lambda split: dataset_of(experiment, node, split), named, source, prefix)


def _in_colour(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The node without `channels: auto`, which would open files that may be unreadable; the audit
    sees grey stored as colour by itself.
    """
    from vilmedic_ssl.data.images import channels_owner

    copy = json.loads(json.dumps(dataset))
    owner = channels_owner(copy)
    if owner is not None and owner["channels"] == "auto":
        owner["channels"] = "rgb"
    return copy


def parts_of(dataset: Any, names: Sequence[str], source: int, prefix: str) -> Iterator[Part]:
    """A part for each split that is there; another spelling of one seen before is left out.

    Raises:
        MissingSplit: of the first name, when there is none.
    """
    from vilmedic_ssl.data.auditing.parts import from_dataset

    seen: list[Part] = []
    missing: list[MissingSplit] = []
    for name in dict.fromkeys(names):
        try:
            part = from_dataset(dataset(name), source=source, prefix=prefix)
        except MissingSplit as error:
            missing.append(error)
            continue
        if not any(part.ids == other.ids and part.paths == other.paths for other in seen):
            seen.append(part)
            yield part
    if not seen:
        raise missing[0]


def findings_of(
    parts: Sequence[Part],
    settings: AuditSettings,
    workers: int,
    node: Mapping[str, Any] | None = None,
) -> list[Finding]:
    from vilmedic_ssl.data.auditing import allowed, audit_parts

    data = (node or {}).get("dataset") or {}
    policy = {
        word: data[key]
        for key, word in (("uncertain", "uncertain (-1)"), ("blank", "blank"))
        if data.get("labels") and key in data
    }
    found = audit_parts(
        parts,
        images=settings.images,
        distance=settings.distance,
        near_share=settings.near_share,
        workers=workers,
        policy=policy,
        pattern_key=_pattern_key(data),
    )
    return allowed(found, settings.allow)


def _pattern_key(data: Mapping[str, Any], where: str = "dataset") -> str:
    """Where this data takes a `patient_pattern`; "" = nowhere."""
    if isinstance(data.get("image"), Mapping):
        return _pattern_key(data["image"], f"{where}.image")
    return f"{where}.patient_pattern" if "patient_pattern" in data else ""


def _stopping(found: Sequence[Finding]) -> list[Finding]:
    return [item for item in found if item.severity == "leak"]


def refusal(
    found: Sequence[Finding],
    parts: Sequence[Part],
    data: Mapping[str, Any],
    settings: AuditSettings,
    *,
    config: str,
    folder: Path,
) -> str:
    """Why a run may not go on and how it can, in words to paste; "" = nothing stops it.

    Args:
        data: the dataset as the config describes it.
        config: the words that follow `vilmedic-ssl split`; "" = a division does not help.
        folder: for files that a remedy names.
    """
    stopping = _stopping(found)
    if not stopping:
        return ""
    first = stopping[0]
    whose = f" (patients {', '.join(first.patients[:3])})" if first.patients else ""
    others = [item for item in stopping if item.kind not in BY_PATIENT or not config]
    if first.kind in BY_PATIENT and config:
        remedy = divided(config, folder)
    else:
        remedy = left_out(others, parts, data, folder)
    kinds = dict.fromkeys([*settings.allow, *(item.kind for item in stopping)])
    allow = shlex.quote(f"audit.allow=[{','.join(kinds)}]")
    return (
        f"{first.kind}: {first.message}{whose if first.kind != 'patient' else ''}: "
        f"{remedy}, or write {allow} if it is meant"
    )


def _are_in(file: Path, found: Sequence[Finding]) -> bool:
    return file.is_file() and file.read_bytes() == _as_text(found).encode()


def _are_findings(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "findings" in content


def summary(found: Sequence[Finding], severities: Sequence[str] = ORDER) -> str:
    return ", ".join(counted(sum(f.severity == s for f in found), s) for s in severities)


def write_json(folder: Path, name: str, found: Sequence[Finding], *, mark: str = "") -> Path:
    """The findings as JSON.

    Args:
        mark: what `output_place` gave for this place; "" = it is a run's, and replaces findings
            only.

    Raises:
        UserError: it cannot be written, or something else stands there.
    """
    if not mark and (folder / name).exists() and not _are_findings(folder / name):
        raise UserError(f"{folder / name} is no audit of this program; move it away")
    return _write(folder, name, _as_text(found, mark))


def _as_text(found: Sequence[Finding], mark: str = "") -> str:
    from vilmedic_ssl.executors.sweep_table import as_json

    return as_json({"format": 1, MARK: mark, "findings": [item.as_dict() for item in found]})


def _write(folder: Path, name: str, text: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); change ckpt_dir or name, or --out"
        ) from error
    return folder / name
