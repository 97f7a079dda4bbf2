"""The page of a split: films, and over them the heat of phrases and of the words of a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._cells import smoothed
from vilmedic_ssl.post_processing._heat import Block, Strip, coloured, page
from vilmedic_ssl.post_processing._phrases import (
    Asked,
    Phrases,
    Reader,
    Words,
    asked,
    findings_of,
    language_of,
    naming,
)
from vilmedic_ssl.post_processing._shared import Features

CELL = 1.6  # inches
LETTERS = 28  # of a column's name that fit over a cell
SPECIAL = re.compile(r"\[.*\]|<.*>")  # [CLS], </s>
SOUGHT = 20  # findings looked at for each film that is shown


@dataclass(frozen=True)
class Shown:
    """The keys of `word_heatmap`."""

    images: int
    words: int
    phrases: Sequence[str]
    named: Phrases
    sigma: float


@dataclass(frozen=True)
class Film:
    """A film to show.

    Attributes:
        phrases: the columns.
        name, side: of its finding as reports have it, "" = of none.
        inside: (H, W) bool or None.
    """

    image: int
    title: str
    phrases: Sequence[str]
    name: str = ""
    side: str = ""
    inside: np.ndarray | None = None


def draw(
    features: Features, split: str, readers: dict[str, Reader], shown: Shown, path: Path
) -> str:
    """Write the page of a split; returns its caption.

    Raises:
        UserError: nothing to show.
    """
    reports = readers["trained"].reports(split)
    blocks: list[Block] = []
    for film in films(features, split, shown):
        picture = features.images(split, [film.image])[0]
        if film.phrases:
            where = [film.image] * len(film.phrases)
            heats = [reader.heat(split, where, list(film.phrases)) for reader in readers.values()]
            strips = _strips(list(readers), picture, heats, film, shown.sigma)
            blocks.append(Block(film.title, _columns(film.phrases), strips))
        sentence = _sentence(features, split, reports[film.image], film)
        if shown.words and sentence:
            blocks.append(_of_words(readers, split, picture, sentence, film, shown))
    if not blocks:
        raise UserError(f"word_heatmap: {split} has no outlines and no reports; write phrases")
    page(blocks, path, beside=False, cell=CELL)
    outlined = any(strip.outline is not None for block in blocks for strip in block.strips if strip)
    line = "; blue: outline of the finding" if outlined else ""
    return f"where phrases and words find their like, trained and untrained{line}"


def films(features: Features, split: str, shown: Shown) -> list[Film]:
    """Films with outlined findings, as many different ones as there are; without outlines any."""
    data = features.dataset(split)
    if not any(data.outlined(i) for i in range(len(data))):
        some = np.random.default_rng(features.seed).permutation(len(data))[: shown.images]
        return [Film(int(i), data.ids[i], shown.phrases) for i in sorted(some)]
    known = findings_of(data, "word_heatmap")
    words = Words(shown.named, known, "word_heatmap.named", language_of(data))
    left = asked(features, split, words, most=SOUGHT * shown.images, reports=None)
    chosen: list[Asked] = []
    while left and len(chosen) < shown.images:
        rare = min(left, key=lambda item: sum(item.finding == c.finding for c in chosen))
        chosen.append(rare)
        left = [item for item in left if item.image != rare.image]
    made = []
    for item in chosen:
        others = [words.of(name) for name in words.templates if name != item.finding]
        own = [item.phrase, *([item.other] if item.other else []), *others[:2]]
        made.append(
            Film(
                item.image,
                f"{data.ids[item.image]}: {item.phrase}",
                shown.phrases or own,
                words.of(item.finding),
                item.side,
                item.inside,
            )
        )
    return made


def _sentence(features: Features, split: str, report: str, film: Film) -> str:
    """The sentence that names the film's finding, or the first; "" where there is none."""
    from vilmedic_ssl.data.reports import sentences

    language = language_of(features.dataset(split))
    found = naming(report, film.name, language, film.side) if film.name else []
    return next(iter([*found, *sentences(report, language)]), "")


def _of_words(
    readers: dict[str, Reader],
    split: str,
    picture: np.ndarray,
    sentence: str,
    film: Film,
    shown: Shown,
) -> Block:
    """The words of a sentence, each over the film."""
    found = [reader.word_heat(split, film.image, sentence) for reader in readers.values()]
    words = found[0][0]
    rows = stretch(words, film.name, shown.words)
    heats = [heat_Whw[rows] for _, heat_Whw in found]
    strips = _strips(list(readers), picture, heats, film, shown.sigma)
    title = f'words of "{shorten(sentence, 110, placeholder=" ...")}"'
    return Block(title, _columns([words[w] for w in rows]), strips)


def _columns(texts: Sequence[str]) -> list[str]:
    return ["film", *(shorten(text, LETTERS, placeholder=" ...") for text in texts)]


def stretch(words: Sequence[str], name: str, most: int) -> list[int]:
    """Numbers of at most so many words in a row, specials and punctuation left out, with the first
    word of `name` in the middle where that leaves none out of reach.
    """
    real = [
        i for i, w in enumerate(words) if not SPECIAL.fullmatch(w) and any(c.isalnum() for c in w)
    ]
    first = (name.lower().split() or [""])[0]
    at = next((k for k, i in enumerate(real) if words[i].lower() == first), 0)
    begin = min(max(at - most // 2, 0), max(len(real) - most, 0))
    return real[begin : begin + most]


def _strips(
    told: Sequence[str],
    picture: np.ndarray,
    heats: Sequence[np.ndarray],
    film: Film,
    sigma: float,
) -> list[Strip]:
    """One line per network: maps over a picture, from black, the line's minimum, to yellow, which
    is as far from it in every line, so that the maps of a network that tells nothing apart look
    even.
    """
    maps = [smoothed(heat_Khw, sigma) for heat_Khw in heats]
    span = max(float(np.ptp(map_Khw)) for map_Khw in maps) or 1.0
    strips = []
    for name, map_Khw in zip(told, maps, strict=True):
        low = float(map_Khw.min())
        cells = [coloured(picture, (map_hw - low) / span) for map_hw in map_Khw]
        caption = f"{name}: black {low:.2f}, yellow {low + span:.2f}"
        strips.append(Strip(caption, [picture, *cells], film.inside))
    return strips
