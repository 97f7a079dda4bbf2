"""Cleaning that loses no number, no unit, no negation and no redaction."""

from __future__ import annotations

import re
import unicodedata

from vilmedic_ssl.data.reports.language import known
from vilmedic_ssl.data.reports.priors import without_priors

QUOTES = str.maketrans(
    {**dict.fromkeys("‘’‚‛", "'"), **dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‐‑‒–−", "-")}
    | dict.fromkeys("—―", " - ")
)
RULE = re.compile(r"(?m)^[ \t]*_{10,}[ \t]*$")  # a drawn line, as between addendum and report
REDACTION = re.compile(r"_{2,}")
# Ligatures, dots, units in one character. Left as they are: superscripts (10³ is not 103),
# fractions (1½ is not 11⁄2), circled and wide characters.
COMPATIBLE = ("<compat>", "<noBreak>", "<square>")


def clean(text: str, *, language: str = "en", drop_priors: bool = False) -> str:
    """A report on one line that says the same; cleaning twice changes nothing more.

    Line breaks and runs of blanks become one blank, so sections and paragraphs have to be taken
    from the raw text. Quotes and dashes become ASCII, ligatures letters, accents one character;
    control characters go. Case, numbers, units, list numbers and redactions (`XXXX`, `___`) stay; a
    run of underscores is written `___`.

    Args:
        text: as it came, any Unicode.
        language: "en" or "es"; the phrases that `drop_priors` knows.
        drop_priors: take out comparisons with earlier studies ("unchanged since the prior study").

    Raises:
        ConfigError: another language.
    """
    known(language)
    text = unicodedata.normalize("NFC", RULE.sub(" ", text))
    text = "".join(map(_character, " " + text[:-1], text, text[1:] + " "))
    text = unicodedata.normalize("NFC", text).translate(QUOTES)
    text = " ".join(REDACTION.sub("___", text).split())
    return without_priors(text, language) if drop_priors else text


def _character(before: str, character: str, after: str) -> str:
    """A character as it is written in cleaned text, between its neighbours."""
    if character.isascii() and (character.isprintable() or character.isspace()):
        return character
    kind = unicodedata.category(character)
    if kind == "Cs":  # half of a pair: no text
        return "\N{REPLACEMENT CHARACTER}"
    if kind == "Cc":
        return " "
    if kind == "Cf" and not character.isspace():  # a soft hyphen, a blank of no width
        return "" if before.isalpha() and after.isalpha() else " "  # never joins two numbers
    if not unicodedata.decomposition(character).startswith(COMPATIBLE):
        return character
    plain = unicodedata.normalize("NFKC", character)
    accent = plain.startswith(" ") and kind != "Zs"  # a blank and a combining mark
    return character if accent or plain == "." or any(map(str.isnumeric, plain)) else plain
