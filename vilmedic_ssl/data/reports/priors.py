"""Comparisons with earlier studies taken out of a report: no single image shows them."""

from __future__ import annotations

import re
from collections import Counter

from vilmedic_ssl.data.reports.negation import negated
from vilmedic_ssl.data.reports.prior_phrases import EDITS, EMPTY, LOST
from vilmedic_ssl.data.reports.sentences import spans

# A heading in the running line and a list number: kept in front of what is edited.
FRONT = re.compile(
    r"(?P<heading>(?:[A-ZÁÉÍÓÚÑ]{4,}[A-ZÁÉÍÓÚÑ ]*:\s*)?)(?P<item>(?:\d{1,2}[.)]\s*)?)"
)
TIDY = (
    (re.compile(r"(?<=[\w)])\s+([.,;:])(?!\d)"), r"\1"),
    (re.compile(r"^[\s,;:]+|^(?:and|but|with|y|pero|con)\s+", re.IGNORECASE), ""),
    (re.compile(r"(?<=[\w)])(?:\s|,){1,4}(?:and|but|y|pero|,){0,3}(?=[.;]|$)"), ""),
    (re.compile(r",\s*,"), ","),
    (re.compile(r"\s{2,}"), " "),
    (re.compile(r"\b([Aa])n\s+(?=[^aeiouAEIOU\W])"), r"\1 "),
    (re.compile(r"\b([Aa])\s+(?=[aeio]\w)(?!one|uni|eu)"), r"\1n "),
)


def without_priors(text: str, language: str) -> str:
    """A cleaned text without its comparisons; sentences that were nothing else are gone, with their
    list number. A sentence whose numbers or negations an edit would touch stays as it is.
    """
    out: list[str] = []
    last = 0
    for start, end in spans(text):
        sentence = text[start:end]
        kept = _edited(sentence, language)
        out.append((text[last:start] if out else "") + kept if kept else "")
        last = end
    return " ".join("".join(out).split())


def _edited(sentence: str, language: str) -> str:
    """One sentence after all edits, "" where nothing but a comparison was said."""
    front = FRONT.match(sentence)
    assert front is not None  # matches the empty text
    body = sentence[front.end() :]
    now = body
    for pattern, instead in EDITS[language]:
        changed = pattern.sub(instead, now)
        if changed != now and _says_the_same(now, changed, language):
            now = changed
    if now == body:
        return sentence
    for pattern, instead in TIDY:
        now = pattern.sub(instead, now)
    now = now.strip()
    words = re.findall(r"\w+", now.lower())
    if not set(words) - EMPTY[language]:
        return front["heading"].strip()
    if body[:1].isupper():
        now = now[:1].upper() + now[1:]
    return front[0] + now


def _says_the_same(before: str, after: str, language: str) -> bool:
    """Whether an edit left all numbers, and denied words but those of comparisons, as they were."""
    if re.findall(r"\d+", before) != re.findall(r"\d+", after):
        return False
    gone = _denied(before, language) - _denied(after, language)
    come = _denied(after, language) - _denied(before, language)
    return not come and not set(gone) - LOST[language]


def _denied(text: str, language: str) -> Counter[str]:
    scopes = (text[start:end] for start, end in negated(text, language))
    return Counter(word for scope in scopes for word in re.findall(r"\w+", scope.lower()))
