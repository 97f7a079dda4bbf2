"""What is done to the text of reports, in English and Spanish: cleaning that keeps the meaning,
sections, sentences, negations, comparisons with earlier studies, sides.
"""

from __future__ import annotations

from collections.abc import Callable

from vilmedic_ssl.data.reports import legacy
from vilmedic_ssl.data.reports.clean import clean
from vilmedic_ssl.data.reports.language import LANGUAGES
from vilmedic_ssl.data.reports.laterality import has_side, mirror
from vilmedic_ssl.data.reports.negation import negated
from vilmedic_ssl.data.reports.sections import HEADINGS, sections, select
from vilmedic_ssl.data.reports.sentences import sentences

__all__ = [
    "DESTROYS",
    "LANGUAGES",
    "PROCESSING",
    "SECTIONS",
    "clean",
    "has_side",
    "mirror",
    "negated",
    "sections",
    "select",
    "sentences",
]

SECTIONS = tuple(HEADINGS)  # names that `sections` gives
# The value of a dataset's `processing`; the long names are ViLMedic's.
PROCESSING: dict[str, Callable[[str], str]] = {
    "clean": clean,
    "none": str,
    "r2gen": legacy.r2gen,
    "r2gen_clean_report": legacy.r2gen,
    "ifcc": legacy.ifcc,
    "ifcc_clean_report": legacy.ifcc,
    "gloria": legacy.gloria,
    "gloria_clean_report_chexpert": legacy.gloria,
    "rouge": legacy.rouge,
}
# One sentence for every name whose cleaner loses meaning.
DESTROYS: dict[str, str] = {
    name: legacy.DESTROYS[function.__name__]
    for name, function in PROCESSING.items()
    if function.__name__ in legacy.DESTROYS
}
