"""`vilmedic-ssl audit`: a config, a table or a folder of images, alone or against another."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl import config as yaml_config
from vilmedic_ssl import console
from vilmedic_ssl.data.auditing.findings import counted
from vilmedic_ssl.errors import ConfigError, Leak, UserError
from vilmedic_ssl.executors.settings import AuditSettings
from vilmedic_ssl.experiment.audit import (
    SPLITS,
    WIDTH,
    experiment_parts,
    findings_of,
    parts_of,
    refusal,
    summary,
    write_json,
)
from vilmedic_ssl.experiment.outputs import output_place
from vilmedic_ssl.experiment.settings import check_data, read_config, spare_workers, typed
from vilmedic_ssl.registry import closest, find
from vilmedic_ssl.schema import build, complete
from vilmedic_ssl.settle import settle

if TYPE_CHECKING:
    from vilmedic_ssl.data.auditing.findings import Finding
    from vilmedic_ssl.data.auditing.parts import Part

FILES = ("audit.json", "audit.html")
TABLES = (".csv", ".parquet")
CONFIGS = (".yml", ".yaml")


def audit_target(
    target: str,
    overrides: Sequence[str] = (),
    *,
    against: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> list[Finding]:
    """Audit a config, a table or a folder of images; writes audit.json and audit.html.

    Args:
        overrides: keys of the config; for a table or a folder those of `dataset` and `audit`.
        against: another config, table or folder, to look for overlap between the two.
        out: folder to write to; None = `audit` in the run folder of a config, else `audit`, or the
            next number that does not hold the audit of another target.
        overwrite: replace something else at `out`.

    Raises:
        Leak: there are leaks that are not allowed.
        UserError: something cannot be read or written; the audit of another target at `out`.
    """
    from vilmedic_ssl.report_audit import write_audit

    parts, settings, default, node = _open(target, overrides)
    sources = ["audit", *_sources(target, overrides, against)]
    folder, mark = output_place(out, default, sources, files=FILES, overwrite=overwrite)
    compared = ""
    if against is not None:
        name = Path(against.rstrip("/")).stem
        others = _open(against, (), source=1, prefix=f"{name}:")[0]
        compared = f", compared with {against}, {counted(sum(map(len, others)), 'sample')}"
        parts = parts + others
    found = findings_of(parts, settings, spare_workers(), node)
    written = write_json(folder, FILES[0], found, mark=mark)
    page = write_audit(
        folder,
        title=f"Audit of {target}" + (f" against {against}" if against else ""),
        verdict=summary(found) + compared,
        findings=found,
        sizes={part.name: len(part) for part in parts},
    )
    rows = [(f.severity, f.kind, textwrap.shorten(f.message, WIDTH)) for f in found]
    if rows:
        console.result(console.table(("", "kind", "finding"), rows))
    console.result(summary(found) + compared)
    console.say(f"findings {written}")
    console.say(f"page {page}")
    data = (node or {}).get("dataset") or {}
    words = "" if against else _split_words(target, overrides)
    told = refusal(found, parts, data, settings, config=words, folder=folder)
    if told:
        raise Leak(told)
    return found


def _sources(target: str, overrides: Sequence[str], against: str | None) -> list[str]:
    """The paths that an audit looks at; other keys are how it does, and may be tried in turn."""
    values = [word.partition("=")[2] for word in overrides]
    names = [target, *(value for value in values if value and Path(value).exists())]
    return [str(Path(name).resolve()) for name in [*names, *filter(None, [against])]]


def _split_words(target: str, overrides: Sequence[str]) -> str:
    """What follows `vilmedic-ssl split` for the same data."""
    path = Path(target)
    if path.suffix in TABLES:
        words = ["CONFIG", f"dataset.manifest={target}"]
    elif path.suffix in CONFIGS or yaml_config.config_in(path):
        words = [target]
    else:
        words = ["config/SELFSUP/simclr-folder.yml", f"dataset.root={target}"]
    return shlex.join([*words, *(o for o in overrides if not o.startswith("audit."))])


def _open(
    target: str, overrides: Sequence[str], *, source: int = 0, prefix: str = ""
) -> tuple[list[Part], AuditSettings, Path, dict[str, Any] | None]:
    """The parts of a target, how to audit them, where to write, and the config as far as there is
    one.
    """
    path = Path(target)
    if path.suffix in CONFIGS or yaml_config.config_in(path):
        given = read_config(target, overrides)
        node = check_data(given, "audit")
        experiment = typed(node)
        parts = list(experiment_parts(experiment, node, source=source, prefix=prefix))
        folder = experiment.folder / "audit" if "name" in given else Path("audit")
        return parts, experiment.audit or AuditSettings(), folder, node
    node = _given(overrides)
    settings = build(
        settle(node.get("audit") or {}, AuditSettings), cls=AuditSettings, where="audit"
    )
    given = node.get("dataset") or {}
    if path.is_dir():
        data = settle(given, find("ImageFolder"), "dataset")
        whole = {"dataset": {"patient_pattern": None, "exclude": [], **data}}
        return _folder(path, data, source, prefix), settings, Path("audit"), whole
    if path.suffix not in TABLES:
        raise UserError(
            f"{target}: nothing that can be audited; name a config (.yml), a table (.csv or "
            ".parquet) or a folder of images"
        )
    from vilmedic_ssl.data.auditing.parts import from_table
    from vilmedic_ssl.data.datasets.manifest import read_table

    keys = complete(settle(given, from_table, "dataset"), from_table, "dataset")
    parts = from_table(read_table(path), path.parent, source, prefix, **keys)
    return parts, settings, Path("audit"), None


def _folder(path: Path, data: Mapping[str, Any], source: int, prefix: str) -> list[Part]:
    """The splits of a folder of images."""
    from vilmedic_ssl.data.datasets.base import Context
    from vilmedic_ssl.data.datasets.image_folder import SPELLINGS

    given = {"proto": "ImageFolder", "root": str(path), "transform": {"channels": "rgb"}, **data}
    there = [p.name for p in sorted(path.iterdir()) if p.is_dir()]
    made = any(name.lower() in SPELLINGS["train"] for name in there)
    usual = {name for names in SPELLINGS.values() for name in names}
    others = [name for name in there if made and name.lower() not in usual]

    def dataset(split: str) -> Any:
        return build(given, Context(split=split), where="dataset")

    return list(parts_of(dataset, (*SPLITS, *others), source, prefix))


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    """`dataset.` and `audit.` keys from a command line."""
    node: dict[str, Any] = {}
    for text in overrides:
        keys, value = yaml_config.parse_override(text)
        if keys[0] not in ("dataset", "audit"):
            hint = closest(keys[0], ("dataset", "audit"))
            raise ConfigError(
                f"{text!r}: only keys of `dataset` and `audit` mean something; {hint}"
            )
        yaml_config.apply_override(node, keys, value, text)
    return node
