"""The audit of a collection: what splits share, what is spoilt, what gives the answer away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilmedic_ssl.data.auditing.findings import KINDS, Finding, allowed, leaks, refuse_settings

if TYPE_CHECKING:
    from vilmedic_ssl.data.auditing.parts import Part

__all__ = ["KINDS", "Finding", "allowed", "audit", "audit_parts", "leaks"]


def audit(
    manifest: str | Path | Sequence[Mapping[str, Any]],
    *,
    root: str | Path | None = None,
    against: str | Path | Sequence[Mapping[str, Any]] | None = None,
    path: str | None = None,
    patient: str | None = None,
    study: str | None = None,
    label: str | None = None,
    labels: Sequence[str] = (),
    allow: Sequence[str] = (),
    images: bool = True,
    distance: int = 6,
    near_share: float = 0.02,
    workers: int = 0,
) -> list[Finding]:
    """What is wrong with a table of samples, worst first; leaks have severity "leak".

    Args:
        manifest: CSV or Parquet file, or rows (column -> value) or a pandas data frame with
            patient, study, path, report, split and labels as present. Without a split column there
            is one split, `all`.
        root: folder the paths are relative to; None = the file's folder, or the current one.
        against: another table, to look for overlap between the two.
        path, patient, study: their columns, where these are called otherwise.
        label: column with a class name. labels: columns of 1, 0, -1 or blank.
        allow: kinds of leak that are warnings.
        images: read the pixels; False compares paths only.
        distance: bits of 64 in which the difference hashes of near-duplicates may differ.
        near_share: share of a split's images with near-duplicates in another, from which they are a
            leak; 0 = one is.
        workers: processes that read images.

    Raises:
        UserError: the table is unreadable or empty, a path leads out of the root, or none of a
            split's images can be read.
        ConfigError: a kind that cannot be allowed, a distance or a share out of range.
    """
    from vilmedic_ssl.data.auditing.parts import from_table

    refuse_settings(allow, distance, near_share)
    rows, folder = _table(manifest)
    where = None if root is None else str(root)
    parts = from_table(
        rows,
        folder,
        root=where,
        path=path,
        patient=patient,
        study=study,
        label=label,
        labels=list(labels),
    )
    if against is not None:
        rows, folder = _table(against)
        prefix = f"{Path(against).stem}:" if isinstance(against, (str, Path)) else "other:"
        parts += from_table(rows, folder, 1, prefix, root=where)
    found = audit_parts(
        parts, images=images, distance=distance, near_share=near_share, workers=workers
    )
    return allowed(found, allow)


def _table(
    manifest: str | Path | Sequence[Mapping[str, Any]],
) -> tuple[Sequence[Any], Path]:
    if isinstance(manifest, (str, Path)):
        from vilmedic_ssl.data.datasets.manifest import read_table

        return read_table(manifest), Path(manifest).parent
    from vilmedic_ssl.data.splits import rows_of

    return rows_of(manifest), Path()


def audit_parts(
    parts: Sequence[Part],
    *,
    images: bool = True,
    distance: int = 6,
    near_share: float = 0.02,
    workers: int = 0,
    policy: Mapping[str, Any] | None = None,
    pattern_key: str = "",
) -> list[Finding]:
    """The findings about some splits, in the order they are found.

    Args:
        policy: what uncertain and blank labels are read as, to be told.
        pattern_key: where the config takes a pattern that finds patients in file names.
        images, distance, near_share, workers: as of `audit`.

    Raises:
        UserError: none of a split's images can be read.
    """
    records = list(_records(parts, policy, pattern_key))
    return records + list(_images(parts, images, distance, near_share, workers))


def _records(
    parts: Sequence[Part], policy: Mapping[str, Any] | None, pattern_key: str
) -> Iterator[Finding]:
    """Everything that needs no picture."""
    from vilmedic_ssl.data.auditing.labels import label_findings, no_patients, no_splits
    from vilmedic_ssl.data.auditing.overlap import misspelled, shared_groups
    from vilmedic_ssl.data.auditing.parts import pairs
    from vilmedic_ssl.data.auditing.texts import shared_texts, text_findings

    own = [part for part in parts if part.source == 0]
    for a, b in pairs(parts):
        yield from shared_groups(a, b)
        yield from misspelled(a, b)
        yield from shared_texts(a, b)
    yield from text_findings(own)
    yield from label_findings(own, policy)
    yield from no_patients(parts, pattern_key)
    yield from no_splits(parts)


def _images(
    parts: Sequence[Part], images: bool, distance: int, near_share: float, workers: int
) -> Iterator[Finding]:
    """Everything about files and pixels."""
    from vilmedic_ssl import console
    from vilmedic_ssl.data.auditing.confounding import confounded
    from vilmedic_ssl.data.auditing.labels import no_images
    from vilmedic_ssl.data.auditing.near import near_duplicates
    from vilmedic_ssl.data.auditing.overlap import repeated_pictures, shared_paths, shared_pictures
    from vilmedic_ssl.data.auditing.parts import pairs
    from vilmedic_ssl.data.auditing.pictures import inverted, look_at, refuse_unread, spoilt

    if not images:
        for a, b in pairs(parts):
            yield from shared_paths(a, b)
        return
    yield from no_images(parts)
    having = [part for part in parts if part.paths is not None or part.pictures is not None]
    bar = console.Bar(sum(map(len, having)), desc="audit", unit="image")
    try:
        seen = {id(part): look_at(part, workers=workers, tick=bar.advance) for part in having}
    finally:
        bar.close()
    for pictures in seen.values():
        refuse_unread(pictures)
    for a, b in pairs(having):
        yield from shared_pictures(seen[id(a)], seen[id(b)])
        yield from near_duplicates(seen[id(a)], seen[id(b)], distance=distance, share=near_share)
    own = [seen[id(part)] for part in having if part.source == 0]
    for pictures in own:
        yield from spoilt(pictures)
        yield from repeated_pictures(pictures)
    yield from inverted(own)
    yield from confounded(own)
