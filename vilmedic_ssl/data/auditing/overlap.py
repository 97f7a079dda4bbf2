"""What two splits share: patients, studies, files, pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vilmedic_ssl.data.auditing.findings import LISTED, Finding, counted, finding, named
from vilmedic_ssl.data.auditing.parts import Part
from vilmedic_ssl.data.auditing.pictures import Pictures

Places = dict[str, list[int]]


def shared_groups(a: Part, b: Part) -> Iterator[Finding]:
    """Patients and studies with samples on both sides."""
    for kind in ("patient", "study"):
        left, right = ((p.patients if kind == "patient" else p.studies) for p in (a, b))
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


def places(values: Sequence[str]) -> Places:
    """Where each value stands; blank ones left out."""
    found: Places = {}
    for i, value in enumerate(values):
        if value:
            found.setdefault(value, []).append(i)
    return found


def shared_paths(a: Part, b: Part) -> Iterator[Finding]:
    """The same path on both sides: all that can be said without reading the files."""
    if a.paths is not None and b.paths is not None:
        left, right = ([str(path.resolve()) for path in p.paths or ()] for p in (a, b))
        yield from _same("file", a, b, places(left), places(right))


def shared_pictures(a: Pictures, b: Pictures) -> Iterator[Finding]:
    """The same bytes, and the same picture in files that differ."""
    here, there = places(a.sha256), places(b.sha256)
    yield from _same("file", a.part, b.part, here, there)
    pixels, others = places(a.pixels), places(b.pixels)
    differ = {
        key: numbers
        for key, numbers in pixels.items()
        if key in others
        and not {a.sha256[i] for i in numbers} & {b.sha256[j] for j in others[key]} - {""}
    }
    yield from _same("pixels", a.part, b.part, differ, others)


def _same(kind: str, a: Part, b: Part, here: Places, there: Places) -> Iterator[Finding]:
    both = [key for key in here if key in there]
    if both:
        rows, patients = _both_sides(a, b, here, there, both)
        examples = [f"{a.row(here[k][0])} = {b.row(there[k][0])}" for k in both[:LISTED]]
        noun, how = ("file", "byte for byte") if kind == "file" else ("picture", "pixel for pixel")
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
