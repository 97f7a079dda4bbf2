"""Sections of a report by their headings, in English and Spanish."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Name of the section: headings, in capitals without accents.
HEADINGS = {
    "findings": "FINDINGS, FINDING, FINDINGS AND IMPRESSION, FINDINGS/IMPRESSION, HALLAZGOS, "
    "HALLAZGO, DESCRIPCION",
    "impression": "IMPRESSION, IMPRESSIONS, IMPRESION, IMPRESION DIAGNOSTICA",
    "technique": "TECHNIQUE, TECNICA",
    "comparison": "COMPARISON, COMPARISONS, COMPARISON STUDY, COMPARISON EXAM, COMPARACION, "
    "ESTUDIOS PREVIOS, ESTUDIO PREVIO",
    "indication": "INDICATION, INDICATIONS, CLINICAL INDICATION, REASON FOR EXAM, "
    "REASON FOR EXAMINATION, REASON FOR STUDY, REASON FOR THE STUDY, INDICACION, INDICACIONES, "
    "MOTIVO, MOTIVO DEL ESTUDIO, MOTIVO DE CONSULTA",
    "history": "HISTORY, CLINICAL HISTORY, CLINICAL INFORMATION, HISTORIA, HISTORIA CLINICA, "
    "ANTECEDENTES, DATOS CLINICOS, INFORMACION CLINICA",
    "examination": "EXAMINATION, EXAM, STUDY, TYPE OF EXAMINATION, EXPLORACION, ESTUDIO, EXAMEN",
    "conclusion": "CONCLUSION, CONCLUSIONS, CONCLUSIONES",
    "recommendation": "RECOMMENDATION, RECOMMENDATIONS, RECOMENDACION, RECOMENDACIONES",
    "notification": "NOTIFICATION, NOTIFICATIONS",
    "wet read": "WET READ",
    "addendum": "ADDENDUM, ADENDA",
}
NAMES = {heading: name for name, text in HEADINGS.items() for heading in text.split(", ")}
MAIN = {"findings", "impression", "conclusion"}
ASIDE = {"", "addendum", "wet read"}

_ACCENTS = str.maketrans({"A": "[AÁ]", "E": "[EÉ]", "I": "[IÍ]", "O": "[OÓ]", "U": "[UÚ]"})
_ANY = "|".join(
    heading.translate(_ACCENTS).replace(" ", "[ ]+") for heading in sorted(NAMES, reverse=True)
)
# At the start of a line with a colon, or alone on it in capitals; in the running line in capitals
# with a colon, or after the end of a sentence with one.
HEADING = re.compile(
    rf"(?m)^[ \t]*(?P<line>(?i:{_ANY}))[ \t]*:|^[ \t]*(?P<alone>{_ANY})[ \t]*\r?$"
    rf"|(?<!\S)(?P<capitals>{_ANY})[ \t]*:|(?<=[.!?]\s)(?P<after>(?i:{_ANY}))[ \t]*:"
)
RULE = re.compile(r"(?m)^[ \t]*_{10,}[ \t]*\r?$|_{30,}")
TITLE = re.compile(r"^(?:ADDENDUM|ADENDA)\b[ \t]*:?\s*")
BANNER = re.compile(r"(?m)(?<!\S)FINAL REPORT\b[ \t]*:?")
BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


def sections(text: str) -> dict[str, str]:
    """The sections of a raw report by their English lower-case names, in their order.

    Names: findings, impression, technique, comparison, indication, history, examination,
    conclusion, recommendation, notification, wet read, addendum; "" = text before the first
    heading, or all of a text without headings. Headings stand at the start of a line or, in
    capitals, in the running line. What stands above a drawn line of underscores is an addendum (or
    a wet read), provided that there are headings below; "FINAL REPORT" is dropped. A section that
    comes twice is joined with a blank line between.
    """
    blocks = [_headed(block) for block in RULE.split(text) if block.strip()]
    if not blocks:
        return {"": ""}
    headed = [i for i, block in enumerate(blocks) if not set(block) <= ASIDE]
    main = headed[-1] if headed else len(blocks) - 1
    found = blocks[main]
    for i, block in enumerate(blocks):
        if i != main:
            name = "wet read" if "wet read" in block else "addendum"
            body = TITLE.sub("", "\n\n".join(filter(None, block.values())))
            found[name] = "\n\n".join(filter(None, [found.get(name), body]))
    return found


def select(text: str, names: Sequence[str]) -> str:
    """The named sections in the order asked for, separated by blank lines.

    Where the report has none of them, and neither findings nor impression nor conclusion, its last
    paragraph is taken: reports without headings end with what matters. A report of one paragraph
    without headings is taken whole.
    """
    found = sections(text)
    chosen = [found[name] for name in names if found.get(name)]
    if chosen:
        return "\n\n".join(chosen)
    if MAIN & found.keys():
        return ""
    *_, last = found.values()
    paragraphs = [part.strip() for part in BLANK_LINE.split(last) if part.strip()]
    return paragraphs[-1] if len(paragraphs) > 1 or (paragraphs and set(found) == {""}) else ""


def _headed(block: str) -> dict[str, str]:
    """The sections of a text without drawn lines."""
    block = BANNER.sub("", block)
    heads = list(HEADING.finditer(block))
    ends = [head.start() for head in heads[1:]] + [len(block)]
    found = {}
    start = block[: heads[0].start()].strip() if heads else block.strip()
    if start or not heads:
        found[""] = start
    for head, end in zip(heads, ends, strict=True) if heads else ():
        name = NAMES[_plain(next(filter(None, head.groups())))]
        body = block[head.end() : end].strip()
        found[name] = "\n\n".join(filter(None, [found.get(name), body]))
    return found


def _plain(heading: str) -> str:
    """In capitals, without accents, with single blanks."""
    letters = unicodedata.normalize("NFD", heading.upper())
    return " ".join("".join(c for c in letters if not unicodedata.combining(c)).split())
