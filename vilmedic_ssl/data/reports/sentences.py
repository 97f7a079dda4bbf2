"""Sentences of a report: decimals, units, abbreviations, initials and list numbers end none."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vilmedic_ssl.data.reports.language import known

# Blank lines, and line breaks before an item of a list.
PARAGRAPH = re.compile(r"\n\s*\n|\n(?=[ \t]*(?:[-*•]|\(?\d{1,2}[.)])\s)")
# Marks before white space; or a full stop that was typed without the blank ("clear.No effusion").
END = re.compile(r"[.!?…]+[\"'’”)\]]*(?=\s|$)|(?<=[a-záéíóúñX]{3})\.(?=[A-ZÁÉÍÓÚÑ][a-z ])")
ITEM = re.compile(r"\s*(?:\(?\d{1,2}|[A-Za-z])")  # all of a sentence so far: a list number
CLOSED_UP = re.compile(r"XXXX|_{2,}|[a-záéíóúñ]|\d")  # what goes on after an abbreviation
TITLES = "dr drs mr mrs ms prof st sr sra dra vs cf approx ca resp incl esp viz e.g i.e aprox p ej"
UNITS = "etc cm mm ml mg kg cc hr hrs min sec ant post lat sup inf med bilat fig vol dept izq izqda"
SPANISH = "izqdo izda izdo der dcha dcho drcha drcho pág núm"
NEVER = frozenset(TITLES.split())  # end no sentence
SELDOM = frozenset([*UNITS.split(), *SPANISH.split()])  # end one before a capital only
NUMBERED = frozenset(["no", "nos", "nr", "nº", "fig", "figs", "núm"])  # end none before a number
DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # a.m, U.S


def sentences(text: str, language: str = "en") -> list[str]:
    """The sentences in order, on one line each, together all of the text.

    Blank lines, and line breaks before list items, end a sentence too; other line breaks do not. A
    list number stays with its sentence: "1. Small effusion.".

    Args:
        text: raw or cleaned.
        language: "en" or "es"; the rules of both languages hold in both.
    """
    known(language)
    return [" ".join(text[start:end].split()) for start, end in spans(text)]


def spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every sentence, without the white space around it."""
    found: list[tuple[int, int]] = []
    start = 0
    for cut in [*(m.end() for m in PARAGRAPH.finditer(text)), len(text)]:
        for begin, end in _within(text, start, cut):
            part = text[begin:end]
            begin += len(part) - len(part.lstrip())
            end -= len(part) - len(part.rstrip())
            if begin >= end:
                continue
            if found and not any(map(str.isalnum, part)) and "_" not in part:
                found[-1] = (found[-1][0], end)  # a stray full stop
            else:
                found.append((begin, end))
        start = cut
    return found


def _within(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    for mark in END.finditer(text, start, stop):
        if _ends(text[start : mark.start()], mark.group(), text[mark.end() : stop].lstrip()):
            yield start, mark.end()
            start = mark.end()
    yield start, stop


def _ends(before: str, mark: str, after: str) -> bool:
    """Whether the mark between two texts ends a sentence."""
    if not after or mark[0] in "!?":
        return True
    if mark.startswith(("...", "…")):
        return not after[0].islower()
    if ITEM.fullmatch(before):
        return False
    *others, last = before.split() or [""]
    word = last.lstrip("([\"'").lower()
    if word in NEVER or (word in NUMBERED and after[0].isdigit()):
        return False
    if word in SELDOM or DOTTED.fullmatch(word):
        return not CLOSED_UP.match(after)
    initial = re.fullmatch(r"[A-Z]", last) and others and others[-1][0].isupper()
    return not (initial and after[0].isupper())
