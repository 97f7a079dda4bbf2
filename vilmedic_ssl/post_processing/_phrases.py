"""Which findings a paired model is asked for, and in which words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.errors import ConfigError, UserError
from vilmedic_ssl.post_processing._shared import Features
from vilmedic_ssl.registry import closest

if TYPE_CHECKING:
    from vilmedic_ssl.executors.pairs import Reader
else:
    Reader = Any

Phrases = str | dict[str, str | None]
DEFAULT = "{side} {finding}"
OTHER = {"left": "right", "right": "left"}
SIDES = {
    "en": {"left": "left", "right": "right"},
    "es": {"left": "izquierdo", "right": "derecho"},  # "del lado {side}" suits every gender
}


class Words:
    """Findings in words, from the key `phrases`.

    Args:
        phrases: a template for every finding, or one for each that is not called `DEFAULT`, None
            leaving it out; `{finding}` becomes its name in lower case, `{side}` left, right or
            nothing.
        findings: those of the data.
        key: where `phrases` stands, for messages.
        language: of the words for the sides, en or es.

    Raises:
        ConfigError: an unknown finding or a template with other braces.
    """

    def __init__(
        self,
        phrases: str | Mapping[str, str | None],
        findings: Sequence[str],
        key: str,
        language: str = "en",
    ):
        own = {} if isinstance(phrases, str) else phrases
        for name in own:
            if name not in findings:
                hint = closest(name, findings)
                raise ConfigError(f"{key}: no finding {name!r} has an outline; {hint}")
        usual = phrases if isinstance(phrases, str) else DEFAULT
        wanted = {name: own.get(name, usual) for name in findings}
        self.templates = {name: text for name, text in wanted.items() if text is not None}
        for template in self.templates.values():
            if re.search(r"[{}]", re.sub(r"\{(side|finding)\}", "", template)):
                raise ConfigError(f"{key}: {template!r}; braces are for {{side}} and {{finding}}")
        self.sides = {"": "", **SIDES[language]}

    def sided(self, finding: str) -> bool:
        """True when its phrase names the side."""
        return "{side}" in self.templates[finding]

    def of(self, finding: str, side: str = "") -> str:
        """The phrase for a finding on a side, "" = on none in particular."""
        phrase = self.templates[finding].replace("{finding}", finding.lower())
        return " ".join(phrase.replace("{side}", self.sides[side]).split())


@dataclass(frozen=True)
class Asked:
    """A finding that is there.

    Attributes:
        image: its number in the split.
        side: that the phrase names, "" = none.
        phrase: what the model is asked for; other: the same of the other side, "" without a side.
        inside: (H, W) bool, its outline in the evaluation view.
    """

    image: int
    finding: str
    side: str
    phrase: str
    other: str
    inside: np.ndarray


def language_of(data: MedicalDataset) -> str:
    """That of the reports, en where the data does not say."""
    return data.texts.settings.language if data.texts else "en"


def findings_of(data: MedicalDataset, plugin: str) -> list[str]:
    """The names of the findings that have outlines, in the order of labels, then of the data.

    Raises:
        UserError: there are none.
    """
    seen = dict.fromkeys(name for i in range(len(data)) for name, _ in data.outlined(i))
    if not seen:
        raise UserError(
            f"{plugin}: the {data.split} split has no outlines of findings; name their table in "
            f"dataset.masks, or take {plugin} out of ensemblor.post_processing"
        )
    return [n for n in data.label_names if n in seen] + [
        n for n in seen if n not in data.label_names
    ]


def asked(
    features: Features, split: str, words: Words, *, most: int, reports: Sequence[str] | None
) -> list[Asked]:
    """Findings with an outline, at most so many, chosen at random, in the order of images; where
    the data has labels, those that are true.

    Args:
        reports: of each image; the phrase is then the sentence that names the finding, and
            findings without one are left out. None = the phrase of `words`.
    """
    data = features.dataset(split)
    places = [(i, *pair) for i in range(len(data)) for pair in _wanted(data, i, words)]
    found: list[Asked] = []
    for k in np.random.default_rng(features.seed).permutation(len(places)):
        if len(found) == most:
            break
        i, finding, side = places[k]
        phrase, other = words.of(finding, side), words.of(finding, OTHER[side]) if side else ""
        if reports is not None:
            phrase, other = _in_report(data, reports[i], words.of(finding), side)
        mask = data.mask(i, finding, side or None)
        if phrase and mask is not None and mask.any():
            found.append(Asked(i, finding, side, phrase, other, mask.numpy()))
    return sorted(found, key=lambda item: (item.image, item.finding, item.side))


def _wanted(data: MedicalDataset, i: int, words: Words) -> Iterator[tuple[str, str]]:
    """(finding, side as its phrase names it) of an image, without those its label denies."""
    pairs = [
        (finding, side if words.sided(finding) else "")
        for finding, side in data.outlined(i)
        if finding in words.templates
    ]
    for finding, side in dict.fromkeys(pairs):
        if data.labels is None or finding not in data.label_names:
            yield finding, side
        else:
            c = data.label_names.index(finding)
            if (data.labels[i] == c) if data.labels.ndim == 1 else (data.labels[i, c] == 1):
                yield finding, side


def _in_report(data: MedicalDataset, report: str, name: str, side: str) -> tuple[str, str]:
    """The sentence that names a finding, and the same with left and right exchanged; "" where there
    is none, or it does not name the side.
    """
    from vilmedic_ssl.data.reports import mirror

    language = language_of(data)
    sentence = next(iter(naming(report, name, language, side)), "")
    return sentence, mirror(sentence, language) if side and _names(sentence, side, language) else ""


def _names(sentence: str, side: str, language: str) -> bool:
    stem = SIDES[language][side].rstrip("o")
    return bool(re.search(rf"\b{stem}", sentence, re.IGNORECASE))


def naming(report: str, name: str, language: str, side: str = "") -> list[str]:
    """The sentences of a report that name a finding and do not deny it, those first that name the
    side too.
    """
    from vilmedic_ssl.data.reports import negated, sentences

    found = []
    for sentence in sentences(report, language):
        spans = negated(sentence, language)
        hits = re.finditer(rf"\b{re.escape(name)}", sentence, re.IGNORECASE)
        if any(all(not a <= hit.start() < b for a, b in spans) for hit in hits):
            found.append(sentence)
    return sorted(found, key=lambda text: not (side and _names(text, side, language)))
