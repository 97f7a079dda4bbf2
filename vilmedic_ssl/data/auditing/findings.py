"""What an audit says: findings of a kind, with the rows and patients they are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from vilmedic_ssl.errors import ConfigError
from vilmedic_ssl.registry import closest

Severity = Literal["leak", "warning", "note"]
# kind -> how bad it is, and what it means in a few words
KINDS: Mapping[str, tuple[Severity, str]] = {
    "patient": ("leak", "a patient in two splits"),
    "study": ("leak", "a study in two splits"),
    "file": ("leak", "the same file in two splits"),
    "pixels": ("leak", "the same picture in two splits, in files that differ"),
    "near_duplicate": ("leak", "almost the same picture in two splits"),
    "patient_spelling": ("warning", "patients of two splits whose ids are spelled almost alike"),
    "text": ("warning", "the same text in two splits"),
    "duplicate_image": ("warning", "the same picture several times in one split"),
    "unreadable": ("warning", "images that cannot be read"),
    "constant": ("warning", "images of one value, or almost"),
    "inverted": ("warning", "images that look like negatives of the others"),
    "blank_text": ("warning", "samples without text"),
    "duplicate_text": ("warning", "texts that several samples share"),
    "class_missing": ("warning", "a class that a split lacks"),
    "no_splits": ("warning", "one split alone, so that nothing is compared"),
    "confounded": ("warning", "a class that image size or file format gives away"),
    "study_text": ("note", "texts that samples of one study share, as they should"),
    "no_patients": ("note", "patients are unknown"),
    "no_images": ("note", "no picture was looked at"),
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
        thumbs: of the examples, pairs of 32 x 32 uint8 pictures; never in `as_dict`.
    """

    kind: str
    severity: Severity
    message: str
    rows: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    count: int = 0
    thumbs: tuple[tuple[bytes, bytes], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        plain = asdict(replace(self, thumbs=()))
        plain.pop("thumbs")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def finding(
    kind: str,
    message: str,
    *,
    rows: Iterable[str] = (),
    patients: Iterable[str] = (),
    splits: Sequence[str] = (),
    examples: Sequence[str] = (),
    count: int = 0,
    thumbs: Iterable[tuple[bytes, bytes]] = (),
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
        tuple(thumbs),
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


def refuse_settings(allow: Iterable[str], distance: int, near_share: float) -> None:
    """Raise a ConfigError for kinds that are no leaks, a distance or a share out of range."""
    stopping = [kind for kind, (severity, _) in KINDS.items() if severity == "leak"]
    for kind in allow:
        if kind in KINDS and kind not in stopping:
            raise ConfigError(f"audit.allow: {kind!r} stops nothing anyway; leave it out")
        if kind not in KINDS:
            raise ConfigError(f"audit.allow: there is no kind {kind!r}; {closest(kind, stopping)}")
    if not 0 <= distance <= 16:
        raise ConfigError(f"audit.distance: {distance}; write a number of bits from 0 to 16")
    if not 0 <= near_share <= 1:
        raise ConfigError(
            f"audit.near_share: {near_share}; write a share from 0 to 1, such as 0.02"
        )


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
