"""What an audit says: findings of a kind, with the rows and patients they are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Severity = Literal["leak", "warning", "note"]
# kind -> how bad it is, and what it means in a few words
KINDS: Mapping[str, tuple[Severity, str]] = {
    "patient": ("leak", "a patient in two splits"),
    "study": ("leak", "a study in two splits"),
    "file": ("leak", "the same file in two splits"),
    "pixels": ("leak", "the same picture in two splits, in files that differ"),
    "near_duplicate": ("leak", "almost the same picture in two splits"),
    "text": ("warning", "the same text in two splits"),
    "unreadable": ("warning", "images that cannot be read"),
    "constant": ("warning", "images of one value"),
    "inverted": ("warning", "images that look like negatives of the others"),
    "blank_text": ("warning", "samples without text"),
    "duplicate_text": ("warning", "texts that several samples share"),
    "class_missing": ("warning", "a class that a split lacks"),
    "confounded": ("warning", "a class that image size or file format gives away"),
    "study_text": ("note", "texts that samples of one study share, as they should"),
    "no_patients": ("note", "patients are unknown"),
    "classes": ("note", "samples per class"),
    "policy": ("note", "what uncertain and blank labels are read as"),
}
ORDER = ("leak", "warning", "note")
NAMED = 3  # rows or patients that a sentence names
LISTED = 20  # examples that a finding keeps


@dataclass(frozen=True)
class Finding:
    """One thing an audit found.

    Attributes:
        kind: a key of `KINDS`.
        severity: leak (stops a training unless allowed), warning, or note.
        message: one sentence.
        rows: the samples it is about, as "split:id".
        patients: their patients, where known.
        splits: the splits it is about.
        examples: up to twenty cases in words, such as "test:a.png = train:b.png".
        count: how many cases there are.
    """

    kind: str
    severity: Severity
    message: str
    rows: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    count: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def finding(
    kind: str,
    message: str,
    *,
    rows: Iterable[str] = (),
    patients: Iterable[str] = (),
    splits: Sequence[str] = (),
    examples: Sequence[str] = (),
    count: int = 0,
) -> Finding:
    """A finding with the severity of its kind; repeated rows and patients are named once."""
    return Finding(
        kind,
        KINDS[kind][0],
        message,
        tuple(dict.fromkeys(rows)),
        tuple(dict.fromkeys(patients)),
        tuple(splits),
        tuple(examples[:LISTED]),
        count,
    )


def allowed(findings: Iterable[Finding], kinds: Iterable[str]) -> list[Finding]:
    """Worst first; leaks of the kinds named here are warnings."""
    kinds = set(kinds)
    eased = [
        replace(f, severity="warning", message=f"{f.message} (allowed)")
        if f.severity == "leak" and f.kind in kinds
        else f
        for f in findings
    ]
    return sorted(eased, key=lambda f: ORDER.index(f.severity))


def leaks(findings: Iterable[Finding]) -> list[Finding]:
    return [f for f in findings if f.severity == "leak"]


def counted(n: int, noun: str) -> str:
    """ "1 image", "1,200 images"; "study" and "class" know their plurals."""
    plural = {"study": "studies", "class": "classes", "copy": "copies"}.get(noun, f"{noun}s")
    return f"{n:,} {noun if n == 1 else plural}"


def named(things: Sequence[str], total: int | None = None) -> str:
    """The first few of a list, and how many more there are (of `total`, if the list is cut)."""
    shown = ", ".join(map(str, things[:NAMED]))
    more = (len(things) if total is None else total) - NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown
