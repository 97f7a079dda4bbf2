"""Left and right exchanged in a report, as its film is mirrored."""

from __future__ import annotations

import re

from vilmedic_ssl.data.reports.language import known

SIDE = re.compile(r"(?<!\w)(left|right)(?=(?:wards?|most|sided?)?(?!\w))", re.IGNORECASE)
# Where the word is no side. All of it holds for left and right alike, so that mirroring twice gives
# the text back: "right in place" is left alone because "left in place" is.
NO_SIDE = re.compile(
    r"""(?<!\bthe\s)(?<!\bon\s)(?<!\bto\s)(?<!\bfrom\s)\b(?:left|right)\s+
        (?:in\s+(?:place|situ)|open|away|now|alone|over|behind|untreated|undisturbed
         |AMA|against\s+medical
         |(?:the|before|without|for|after)\s+(?:the\s+)?
          (?:hospital|department|room|clinic|ward|scanner|ED|ER|being))\b
      | \b(?:patient|pt|he|she|they|who|nothing|none|all)\s+(?:left|right)
        (?=\s*(?:$|[.,;])|\s+(?:the|before|against|for|without)\b)
      | \bat\s+(?:a\s+)?(?:left|right)\s+angles?\b""",
    re.IGNORECASE | re.VERBOSE,
)
# L and R alone only before what has sides, in brackets, or compared; L1 is a vertebra.
LETTER = re.compile(
    r"""(?<![\w/.])[LR](?=[- ](?:\d+(?:st|nd|rd|th)\s)?
        (?i:lungs?|lobe|bas(?:e|al|ilar)|ap(?:ex|ical)|hil(?:um|ar)|perihilar|pleural|effusion
        |pneumothorax|hemi(?:thorax|diaphragm)|costophrenic|lower|upper|mid(?:dle)?|sided?|ribs?
        |clavicle|shoulder|humerus|breast|PICC|IJ|subclavian|chest|arm|hip|knee|kidney)\b)
      | (?<=\()[LR](?=\)) | (?<!\w)[LR](?=\s?[<>]\s?[LR](?!\w)) | (?<=[LR][<>])[LR](?!\w)
      | (?<=[LR]\s[<>]\s)[LR](?!\w) | (?<!\w)[LR](?=(?:UL|LL|ML|IJ)(?!\w))""",
    re.VERBOSE,
)
TURN = re.compile(
    r"(?<!\w)(dextro|levo)(?=-?(?:rot[oa])?-?(?:e?scolio|conve[xj]|cardi|curv|posi))", re.IGNORECASE
)
ES_SIDE = re.compile(
    r"(?<!\w)(?:(izquierd|derech)(?=[oa]s?(?!\w))"
    r"|(izqd[oa]|dch[oa]|izd[oa]|drch[oa]|izq|der)(?!\w)|(?-i:(LSD|LSI|LID|LII)(?!\w)))",
    re.IGNORECASE,
)
# Abbreviations in pairs, each its partner's partner.
PAIRS = {"left": "right", "dextro": "levo", "izquierd": "derech", "izq": "der", "izqdo": "dcho"}
PAIRS |= {"izqda": "dcha", "izdo": "drcho", "izda": "drcha", "lsd": "lsi", "lid": "lii"}
SWAP = PAIRS | {b: a for a, b in PAIRS.items()} | {"l": "r", "r": "l"}


def mirror(text: str, language: str = "en") -> str:
    """The text with left and right exchanged; mirroring twice gives the text back.

    English: left and right with -sided, -ward, -most in lower, title and upper case; RUL, LLL, RIJ
    and the like; L and R alone only before a noun that has sides ("R lung"), in brackets, or
    compared ("R > L"). "left in place", "the patient left", "right away" are no sides and stay, and
    so does "bilateral". Spanish: izquierd- and derech- in every ending, izq. and der., izqda. and
    dcha. (izqdo./dcho., izda./drcha., izdo./drcho.), LSD and LSI, LID and LII. Both: dextro- and
    levoscoliosis and the like. Names of chambers ("left ventricle") are exchanged as well: in the
    mirrored film it lies on the other side.

    Raises:
        ConfigError: another language.
    """
    text = TURN.sub(_partner, text)
    if known(language) == "es":
        return ES_SIDE.sub(_partner, text)
    kept = [m.span() for m in NO_SIDE.finditer(text)]

    def exchanged(found: re.Match[str]) -> str:
        inside = any(start <= found.start() < end for start, end in kept)
        return found[0] if inside else _partner(found)

    return LETTER.sub(_partner, SIDE.sub(exchanged, text))


def has_side(text: str, language: str = "en") -> bool:
    """Whether the text names a side, that is, whether `mirror` changes it."""
    return mirror(text, language) != text


def _partner(found: re.Match[str]) -> str:
    """The partner of a word in its case; a word of mixed case stays."""
    word = found[0]
    for cased in (str.lower, str.upper, str.title):
        if word == cased(word):
            return cased(SWAP[word.lower()])
    return word
