"""The report cleaners of ViLMedic 1.3.3, with their faults, for runs that must be comparable.

Written from their behaviour on worked examples; `DESTROYS` says what each one loses.
"""

from __future__ import annotations

import re

# Replaced one after the other, each so many times: longer runs keep a remainder.
R2GEN_RUNS = (("__", "_", 7), ("  ", " ", 6), ("..", ".", 8))
R2GEN_LISTS = (
    ("1. ", ""),
    *((f". {n}. ", ". ") for n in range(2, 6)),
    *((f" {n}. ", ". ") for n in range(2, 6)),
)
# ":-[" is a range of characters in the original: it takes < = > @ as well.
R2GEN_MARKS = re.compile(r"[\"'/\\.,?;*!%^&_+(){}\]:-\[]")
WORDS_OR_MARKS = re.compile(r"\w+|[^\w\s]+")

DESTROYS = {
    "r2gen": "decimal points and comparisons are deleted (2.5 cm becomes 25 cm, < 3 mm becomes "
    "3 mm), and so are %, / and the numbers 1 to 5 before a full stop",
    "ifcc": "decimals are taken apart (2.5 cm becomes 2 . 5 cm) and so are dates and redactions",
    "gloria": "numbers lose all before the decimal point (2.5 cm becomes 5 cm), <, % and all that "
    "is not ASCII are deleted, and a sentence of one word is dropped (normal becomes nothing)",
    "rouge": "decimals are taken apart (2.5 cm becomes 2 5 cm), <, %, sentence ends, redactions "
    "and accented letters are deleted",
}


def r2gen(text: str) -> str:
    """Lower case, list numbers 1 to 5 and most marks removed, sentences joined by " . "."""
    text = text.replace("\n", " ")
    for run, single, times in R2GEN_RUNS:
        for _ in range(times):
            text = text.replace(run, single)
    for item, instead in R2GEN_LISTS:
        text = text.replace(item, instead)
    parts = (R2GEN_MARKS.sub("", part.strip()) for part in text.strip().lower().split(". "))
    joined = " . ".join(parts)
    return joined and joined + " ."


def ifcc(text: str) -> str:
    """Lower case; runs of word characters and runs of marks, separated by blanks."""
    return " ".join(WORDS_OR_MARKS.findall(text.lower()))


def gloria(text: str) -> str:
    """Lower-case ASCII words of the sentences that have two words or more."""
    sentences = re.split(r"\d+\.|\.", text.replace("\n", " "))
    tokens = (re.findall(r"\w+", sentence.lower()) for sentence in sentences)
    words = (word for found in tokens if len(found) > 1 for word in found)
    ascii_only = (word.encode("ascii", "ignore").decode() for word in words)
    return " ".join(filter(None, ascii_only))


def rouge(text: str) -> str:
    """Lower-case runs of a-z and 0-9. (The original gives a list, which no dataset could use.)"""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
