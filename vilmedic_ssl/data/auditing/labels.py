"""Classes per split, what blank and uncertain labels became, and whether patients are known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl.data.auditing.findings import Finding, counted, finding, named
from vilmedic_ssl.data.auditing.parts import Part

# How the files of well-known collections name their patient (docs/data.md).
STYLES = (
    ("Kermany chest X-rays, as on Kaggle", r"^(person\d+|(?:NORMAL2-)?IM-\d+)[_-]"),
    ("Kermany chest X-rays, original release", r"^((?:NORMAL|BACTERIA|VIRUS)-\d+)-"),
    ("Kermany OCT", r"^((?:CNV|DME|DRUSEN|NORMAL)-\d+)-"),
    ("PatientID_StudyID", r"^([Pp]\d+)_"),
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
                f"{name} {has} sample of {counted(len(lacking), 'class')}: {named(lacking)}",
                splits=[part.name for part in having] if name == "no split" else [name],
                examples=lacking,
                count=len(lacking),
            )


def _absent(part: Part) -> list[str]:
    labels = part.labels
    assert labels is not None
    if labels.ndim == 1:
        return [name for i, name in enumerate(part.label_names) if not np.any(labels == i)]
    return [name for i, name in enumerate(part.label_names) if not np.any(labels[:, i] == 1)]


def no_patients(parts: Sequence[Part]) -> Iterator[Finding]:
    """Says that overlap of patients could not be looked for, and how it could."""
    without = [part for part in parts if part.patients is None]
    if without:
        yield finding(
            "no_patients",
            "patients are unknown, so their overlap could not be checked"
            f"{_suggestion(without) or '; a patient column or a patient_pattern would name them'}",
            splits=[part.name for part in without],
        )


def _suggestion(parts: Sequence[Part]) -> str:
    names = [Path(name).name for part in parts for name in part.ids]
    for style, pattern in STYLES:
        if sum(bool(re.search(pattern, name)) for name in names) >= MOST * len(names):
            return f"; file names look like {style}: write 'dataset.patient_pattern={pattern}'"
    return ""
