"""What two splits share, patients, studies, files, pixels; and pictures repeated within one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vilmedic_ssl.data.auditing.findings import LISTED, NAMED, Finding, counted, finding, named
from vilmedic_ssl.data.auditing.parts import Part
from vilmedic_ssl.data.auditing.pictures import Pictures

Places = dict[str, list[int]]


def shared_groups(a: Part, b: Part) -> Iterator[Finding]:
    """Patients and studies with samples on both sides."""
    for kind in ("patient", "study"):
        left, right = (a.patients, b.patients) if kind == "patient" else _studies(a, b)
        if left is None or right is None:
            continue
        here, there = places(left), places(right)
        both = [key for key in here if key in there]
        if both:
            rows, patients = _both_sides(a, b, here, there, both)
            yield finding(
                kind,
                f"{counted(len(both), kind)} in {a.name} and {b.name}: {named(both)} "
                f"({counted(len(rows), 'sample')})",
                rows=rows,
                patients=both if kind == "patient" else patients,
                splits=[a.name, b.name],
                examples=both,
                count=len(both),
            )


def _studies(a: Part, b: Part) -> tuple[list[str] | None, list[str] | None]:
    """What tells the studies apart: their ids, unless these restart with every patient (study1,
    study2 ...), which shows where a split has one under two patients.
    """
    if not (_restarts(a) or _restarts(b)):
        return a.studies, b.studies
    left, right = (
        [f"{p} {s}" if p and s else "" for p, s in zip(part.patients, part.studies, strict=True)]
        if part.patients and part.studies
        else None
        for part in (a, b)
    )
    return left, right


def _restarts(part: Part) -> bool:
    if not part.patients or not part.studies:
        return False
    visits = {(s, p) for s, p in zip(part.studies, part.patients, strict=True) if s and p}
    return len({study for study, _ in visits}) < len(visits)


def misspelled(a: Part, b: Part) -> Iterator[Finding]:
    """Patients of both sides whose ids differ in case, blanks, leading zeros or a final .0."""
    here, there = _spellings(a), _spellings(b)
    alike = [
        min((x, y) for x in here[key] for y in there[key] if x != y)
        for key in here
        if here[key] != there.get(key, here[key])
    ]
    if alike:
        examples = [f"{x} = {y}" for x, y in alike]
        yield finding(
            "patient_spelling",
            f"{counted(len(alike), 'patient')} of {a.name} and {b.name} may be the same person, "
            f"spelled differently: {named(examples)}; if so, spell them alike",
            patients=[patient for pair in alike for patient in pair],
            splits=[a.name, b.name],
            examples=examples,
            count=len(alike),
        )


def _spellings(part: Part) -> dict[str, set[str]]:
    """Patient without what people vary -> the ids that come to this."""
    found: dict[str, set[str]] = {}
    for patient in dict.fromkeys(part.patients or ()):
        bare = re.sub(r"\.0$", "", re.sub(r"\s", "", patient.casefold()))
        bare = re.sub(r"(?<!\d)0+(?=\d)", "", bare)
        if bare:
            found.setdefault(bare, set()).add(patient)
    return found


def places(values: Sequence[str], among: Iterable[int] | None = None) -> Places:
    """Where each value stands, among some numbers; blank ones left out."""
    found: Places = {}
    for i in range(len(values)) if among is None else among:
        if value := values[i]:
            found.setdefault(value, []).append(i)
    return found


def shared_paths(a: Part, b: Part) -> Iterator[Finding]:
    """The same path on both sides: all that can be said without reading the files."""
    if a.paths is not None and b.paths is not None:
        left, right = ([str(path.resolve()) for path in p.paths or ()] for p in (a, b))
        yield from _same("file", "by its path", a, b, places(left), places(right))


def shared_pictures(a: Pictures, b: Pictures) -> Iterator[Finding]:
    """The same bytes, the same picture in files that differ, and the same picture mirrored, turned
    or inverted. Pictures that show nothing, such as empty slices, are alike and mean nothing.
    """
    mine, yours = a.usable.tolist(), b.usable.tolist()
    here, there = places(a.sha256, mine), places(b.sha256, yours)
    yield from _same("file", "byte for byte", a.part, b.part, here, there)
    how = "pixel for pixel"
    forms = [(a.sha256, a.pixels, b.sha256, b.pixels, how)]
    if a.turned and b.turned:
        turned = f"{how}, but mirrored, turned or inverted"
        forms.append((a.pixels, a.turned, b.pixels, b.turned, turned))
    for finer_a, values_a, finer_b, values_b, words in forms:
        here, there = places(values_a, mine), places(values_b, yours)
        differ = {
            key: numbers
            for key, numbers in here.items()
            if key in there
            and not {finer_a[i] for i in numbers} & {finer_b[j] for j in there[key]} - {""}
        }
        yield from _same("pixels", words, a.part, b.part, differ, there)


def repeated_pictures(seen: Pictures) -> Iterator[Finding]:
    """The same picture several times in one split, in files that differ."""
    part = seen.part
    alike = [
        numbers
        for numbers in places(seen.pixels, seen.usable.tolist()).values()
        if len({part.paths[i] if part.paths else i for i in numbers}) > 1
    ]
    if alike:
        rows = [i for numbers in alike for i in numbers]
        examples = [" = ".join(part.rows(numbers[:NAMED])) for numbers in alike]
        people = sum(len(part.patients_of(numbers)) > 1 for numbers in alike)
        labels = part.labels if part.labels is not None else np.zeros(len(part))
        unlike = sum(len({labels[i].tobytes() for i in numbers}) > 1 for numbers in alike)
        yield finding(
            "duplicate_image",
            f"{part.name}: {counted(len(alike), 'picture')} more than once, pixel for "
            f"pixel, {people:,} under several patients and {unlike:,} with different labels: "
            f"{named(examples)}",
            rows=part.rows(rows),
            patients=part.patients_of(rows),
            splits=[part.name],
            examples=examples,
            count=len(alike),
        )


def _same(kind: str, how: str, a: Part, b: Part, here: Places, there: Places) -> Iterator[Finding]:
    both = [key for key in here if key in there]
    if both:
        rows, patients = _both_sides(a, b, here, there, both)
        examples = [f"{a.row(here[k][0])} = {b.row(there[k][0])}" for k in both[:LISTED]]
        noun = "file" if kind == "file" else "picture"
        yield finding(
            kind,
            f"{a.name} and {b.name} share {counted(len(both), noun)} {how}: "
            f"{named(examples, len(both))}",
            rows=rows,
            patients=patients,
            splits=[a.name, b.name],
            examples=examples,
            count=len(both),
        )


def _both_sides(
    a: Part, b: Part, here: Places, there: Places, keys: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Rows and known patients of the samples that hold any of the keys."""
    left = [i for key in keys for i in here[key]]
    right = [j for key in keys for j in there[key]]
    return a.rows(left) + b.rows(right), a.patients_of(left) + b.patients_of(right)
