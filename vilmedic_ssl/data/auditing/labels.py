"""Classes per split, what blank and uncertain labels became, and whether patients are known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl.data.auditing.findings import Finding, counted, finding, named
from vilmedic_ssl.data.auditing.parts import Part, pairs

# How the files of well-known collections name their patient (docs/data.md). Some datasets search
# the file name, others the whole path: hence the slash. A prefix stays with its number, for it is
# not known that numbers run across prefixes.
STYLES = (
    ("Kermany chest X-rays, as on Kaggle", r"(?:^|/)(person\d+|(?:NORMAL2-)?IM-\d+)[_-]"),
    ("Kermany chest X-rays, original release", r"(?:^|/)((?:NORMAL|BACTERIA|VIRUS)-\d+)-"),
    ("Kermany OCT", r"(?:^|/)((?:CNV|DME|DRUSEN|NORMAL)-\d+)-"),
    ("PatientID_StudyID", r"(?:^|/)([Pp]\d+)_"),
)
MOST = 0.8  # share of file names that must follow a style before it is suggested


def label_findings(parts: Sequence[Part], policy: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Counts per class and split, classes that a split lacks, and the label policy."""
    having = [part for part in parts if part.labels is not None and len(part)]
    for part in having:
        yield finding("classes", f"{part.name}: {_counts(part)}", splits=[part.name])
    yield from _missing(having)
    if policy:
        told = "; ".join(f"{key} is read as {_spell(value)}" for key, value in policy.items())
        unknown = ", ".join(
            f"{np.isnan(part.labels).mean():.1%} of {part.name}"
            for part in having
            if part.labels is not None and part.labels.ndim == 2
        )
        yield finding("policy", f"labels: {told}; left out as unknown: {unknown or 'none'}")
    for part in having:
        if any(part.cells.values()):
            told = ", ".join(f"{n:,} {word}" for word, n in part.cells.items())
            yield finding(
                "policy",
                f"{part.name}: {told} label cells; here they count as unknown, a dataset reads "
                "them by its keys uncertain and blank",
                splits=[part.name],
            )


def _spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{policy} ({column})" for column, policy in value.items()) or "ignore"
    return str(value)


def _counts(part: Part) -> str:
    labels, names = part.labels, part.label_names
    assert labels is not None
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=len(names))
        return ", ".join(f"{name} {n:,}" for name, n in zip(names, counts, strict=True))
    positive, negative = np.sum(labels == 1, axis=0), np.sum(labels == 0, axis=0)
    return ", ".join(
        f"{name} {p:,} of {p + n:,}" for name, p, n in zip(names, positive, negative, strict=True)
    )


def _missing(having: Sequence[Part]) -> Iterator[Finding]:
    """Classes without a sample in one of the splits, or in any."""
    absent = {part.name: _absent(part) for part in having}
    nowhere = set.intersection(*map(set, absent.values())) if absent else set()
    told = {name: [c for c in lacking if c not in nowhere] for name, lacking in absent.items()}
    told["no split"] = sorted(nowhere)
    for name, lacking in told.items():
        if lacking:
            has = "has a" if name == "no split" else "has no"
            yield finding(
                "class_missing",
                f"{name} {has} sample of {counted(len(lacking), 'class')}: {named(lacking)}; "
                + _remedy(having, lacking),
                splits=[part.name for part in having] if name == "no split" else [name],
                examples=lacking,
                count=len(lacking),
            )


def _remedy(having: Sequence[Part], lacking: Sequence[str]) -> str:
    """What brings classes into every split, by the number of their patients."""
    counts = [len({who for part in having for who in _showing(part, name)}) for name in lacking]
    told = named([f"{name} {count:,}" for name, count in zip(lacking, counts, strict=True)])
    remedies = []
    if max(counts) >= len(having):
        remedies.append("`vilmedic-ssl split CONFIG --out splits.json` brings one into each split")
    if min(counts) < len(having):
        remedies.append(f"with fewer than {len(having)}, add some or leave the class out")
    return f"patients with it in all: {told}; {'; '.join(remedies)}"


def _showing(part: Part, name: str) -> list[str]:
    """The patients, or rows where they are unknown, of a split with a class."""
    labels = part.labels
    assert labels is not None
    if name not in part.label_names:
        return []
    i = part.label_names.index(name)
    rows = np.flatnonzero(labels == i if labels.ndim == 1 else labels[:, i] == 1).tolist()
    return [(part.patients or [""] * len(part))[row] or part.row(row) for row in rows]


def _absent(part: Part) -> list[str]:
    labels = part.labels
    assert labels is not None
    if labels.ndim == 1:
        return [name for i, name in enumerate(part.label_names) if not np.any(labels == i)]
    return [name for i, name in enumerate(part.label_names) if not np.any(labels[:, i] == 1)]


def no_patients(parts: Sequence[Part], key: str) -> Iterator[Finding]:
    """Says that overlap of patients could not be looked for, and how it could: a warning where the
    file names seem to tell the patient, or where some patients are known.

    Args:
        key: the pattern's, in the config; "" where patients come from a column.
    """
    if any(part.patients for part in parts):
        for part in parts:
            yield from _blank_patients(part)
        return
    style, pattern = _style([name for part in parts for name in part.ids])
    how = f"write '{key}={pattern or '...'}'" if key else "fill a column `patient`"
    found = finding(
        "no_patients",
        "patients are unknown, so their overlap could not be checked; "
        + (f"file names look like {style}: {how}" if style else f"where they are known, {how}"),
        splits=[part.name for part in parts],
    )
    yield replace(found, severity="warning") if style else found


def _blank_patients(part: Part) -> Iterator[Finding]:
    blank = [i for i in range(len(part)) if part.patients is None or not part.patients[i]]
    if blank:
        found = finding(
            "no_patients",
            f"{part.name}: {len(blank):,} of {counted(len(part), 'sample')} have no patient, so "
            f"their overlap could not be checked: {named(part.rows(blank))}",
            rows=part.rows(blank),
            splits=[part.name],
            count=len(blank),
        )
        yield replace(found, severity="warning")


def _style(names: Sequence[str]) -> tuple[str, str]:
    """The known style of these paths and its pattern, or blanks."""
    for style, pattern in STYLES:
        both = [(re.search(pattern, n), re.search(pattern, Path(n).name)) for n in names]
        same = sum(a is not None and b is not None and a[1] == b[1] for a, b in both)
        if same >= MOST * len(names):
            return style, pattern
    return "", ""


def no_images(parts: Sequence[Part]) -> Iterator[Finding]:
    """Says that pixels were not compared: a warning where nothing but ids was."""
    without = [part for part in parts if part.paths is None and part.pictures is None]
    if without:
        names = [part.name for part in without]
        found = finding(
            "no_images",
            f"{named(names)}: no picture was looked at, for nothing names image files; in the "
            "audit of a table write dataset.path=COLUMN",
            splits=names,
        )
        texts = all(part.texts for part in without)
        yield found if texts else replace(found, severity="warning")


def no_splits(parts: Sequence[Part]) -> Iterator[Finding]:
    """Says that there was nothing to compare with."""
    if not list(pairs(parts)):
        names = [part.name for part in parts]
        how = "; write them into a column `split`" if names == ["all"] else ""
        yield finding(
            "no_splits",
            f"there are no splits to compare ({named(names)} alone), so no overlap was looked "
            f"for{how}",
            splits=names,
        )
