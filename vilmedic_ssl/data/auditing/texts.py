"""Texts that are missing, shared by several samples, or shared by two splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from vilmedic_ssl.data.auditing.findings import LISTED, Finding, counted, finding, named
from vilmedic_ssl.data.auditing.overlap import places
from vilmedic_ssl.data.auditing.parts import Part


def text_findings(parts: Sequence[Part]) -> Iterator[Finding]:
    """Blank and repeated texts of one source, column by column."""
    columns = dict.fromkeys(name for part in parts for name in part.texts)
    for column in columns:
        having = [part for part in parts if column in part.texts]
        if any(text.strip() for part in having for text in part.texts[column]):
            for part in having:
                yield from _blank(part, column)
            yield from _repeated(having, column)


def spelled(text: str) -> str:
    """A text as it is compared: in lower case, with single blanks."""
    return " ".join(text.lower().split())


def _blank(part: Part, column: str) -> Iterator[Finding]:
    blank = [i for i, text in enumerate(part.texts[column]) if not text.strip()]
    if blank:
        yield part.finding(
            "blank_text",
            f"{len(blank):,} of {counted(len(part), 'sample')} have no {column}: "
            f"{named(part.rows(blank))}",
            blank,
        )


def _repeated(parts: Sequence[Part], column: str) -> Iterator[Finding]:
    """How many samples share their text, and what that does to retrieval.

    Samples of one study share its report as they should; they count against retrieval all the same,
    for no model can tell them apart by text. Of k samples with one text, at best one is found
    first: R@1 of exact pairs is at most different texts / texts.
    """
    where = [(part, i) for part in parts for i, t in enumerate(part.texts[column]) if t.strip()]
    texts = [spelled(part.texts[column][i]) for part, i in where]
    times = Counter(texts)
    shared = [k for k, text in enumerate(texts) if times[text] > 1]
    if not shared:
        return
    studies: dict[str, set[tuple[str, str]]] = {}
    known = all(part.studies is not None for part in parts)
    for k in shared:
        part, i = where[k]
        study = (part.studies[i] if part.studies else "") or part.row(i)
        patient = part.patients[i] if part.patients else ""  # study names may restart with each
        studies.setdefault(texts[k], set()).add((patient, study))
    apart = [k for k in shared if len(studies[texts[k]]) > 1]
    within = f", {len(apart) / len(texts):.1%} with another study" if known else ""
    often = [(text, n) for text, n in times.most_common(LISTED) if n > 1]
    yield finding(
        "duplicate_text" if apart or not known else "study_text",
        f"{column}: {counted(len(texts), 'text')}, {len(times):,} different; "
        f"{len(shared) / len(texts):.1%} share theirs with another sample{within}; exact-pair R@1 "
        f"is at most {len(times) / len(texts):.1%}",
        rows=[where[k][0].row(where[k][1]) for k in shared],
        patients=[p for k in shared for p in where[k][0].patients_of([where[k][1]])],
        splits=[part.name for part in parts],
        examples=[f"{n} times: {text[:120]}" for text, n in often],
        count=len(shared),
    )


def shared_texts(a: Part, b: Part) -> Iterator[Finding]:
    """Texts that stand on both sides; honest where reports follow templates."""
    for column in a.texts:
        if column not in b.texts:
            continue
        here, there = (places([spelled(t) for t in p.texts[column]]) for p in (a, b))
        both = [text for text in there if text in here]
        if not both:
            continue
        left = [i for text in both for i in here[text]]
        right = [j for text in both for j in there[text]]
        having = sum(map(len, there.values()))
        yield finding(
            "text",
            f"{column}: {len(right):,} of {having:,} texts of {b.name} ({len(right) / having:.1%}) "
            f"also stand in {a.name}",
            rows=a.rows(left) + b.rows(right),
            patients=a.patients_of(left) + b.patients_of(right),
            splits=[a.name, b.name],
            examples=[f"{a.row(here[t][0])} = {b.row(there[t][0])}" for t in both[:LISTED]],
            count=len(right),
        )
