"""The phrases with which reports compare, and what each becomes, in order."""

from __future__ import annotations

import re

from vilmedic_ssl.data.reports.negation import EN_CHANGE, ES_CHANGE

Edits = list[tuple[re.Pattern[str], str]]

# English ----------------------------------------------------------------------------------------
HIDDEN = r"(?:XXXX|_{2,})(?:[\s,/-]+(?:XXXX|_{2,}))*"  # a date or name taken out
KIND = r"(?:chest|frontal|lateral|portable|AP|PA|CT|MRI?|plain|XXXX|___)"
STUDY = (
    rf"(?:(?:{KIND}\s+)*(?:stud(?:y|ies)|exam(?:ination)?s?|radiographs?|films?|images?|imaging"
    r"|x-(?:rays?|XXXX)|CTs?|scans?|MRIs?|comparison|views?|series|chest))"
)
PAST = r"(?:prior|previous|earlier|preceding|last|comparison)"
STOP = r"(?=\s*(?:[.,;)]|$|(?:and|with|which|but)\b))"
DATED = rf"(?:\s+(?:(?:of|from|dated|on|performed\s+on)\s+)?{HIDDEN})?"
PRIOR = (
    rf"(?:(?:(?:the|a|an|any|most|recent)\s+)*{PAST}(?:\s+{PAST})*"
    rf"(?:\s+{STUDY}|{STOP})(?:\s+(?:exam(?:ination)?|study)\b)?{DATED}"
    rf"|(?:the\s+)?{STUDY}\s+(?:(?:of|from|dated)\s+)?{HIDDEN})"
)
AGAINST = (
    r"(?:(?:(?:as|when)\s+)?(?:compared|in\s+comparison|relative)\s+(?:to|with)\s+(?:that\s+of\s+)?"
    rf"(?:{PRIOR}|{HIDDEN})|(?:since|from|versus)\s+{PRIOR}|since\s+{HIDDEN}"
    r"|(?:in|over|during)\s+the\s+interval|as\s+before)"
)
DEGREE = (
    r"(?:(?:grossly|essentially|relatively|overall|largely|again|both|all|roughly|also|otherwise"
    r"|significantly|fairly|generally|not\s+(?:significantly|substantially|appreciably))\s+)*"
)
TREND = r"(?:increased|decreased|improved|worsened|progressed|enlarged|larger|smaller|regressed)"
SAME = (
    rf"{DEGREE}(?:unchanged|stable(?:\s+to\s+(?:\w+ly\s+)?{TREND})?|(?<=not\s)(?:\w+ly\s+)?changed|not\s+(?:\w+ly\s+)?changed"
    rf"|similar(?=\s+(?:in\s+\w+\s+)?(?:to|with)\s+{PRIOR}))"
)
ASPECT = (
    r"(?:\s+in\s+(?:the\s+)?(?:size|position|appearance|configuration|extent|number|degree"
    rf"|interval))?(?:\s*,?\s*(?:{AGAINST}|(?:to|with|from)\s+(?:{PRIOR}|{HIDDEN})))?"
)
BE = r"(?:is|are|was|were|remains?|appears?|(?:has|have)\s+(?:been|remained)?|being)"
JOINS = (  # words after which "stable" was no adjective
    r"(?:since|from|compared|in|to|with|without|as|at|over|and|or|but|on|by|relative|when|of|for"
    r"|given|despite)"
)
OF = r"(?:(?:the\s+)?(?:size|appearance|position|extent)\s+(?:of|and\s+\w+\s+of)\s+)?"
GROWTH = r"(?:increase|decrease|improvement|worsening|enlargement|progression|development)"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _edits(*pairs: tuple[str, str]) -> Edits:
    return [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in pairs]


ENGLISH = _edits(
    (rf"^\s*{AGAINST}\s*,\s*|^\s*{AGAINST}\s+(?=there\b)", ""),
    (rf"(?:\bthere(?:['’]s|\s+(?:is|are|has|have))?(?:\s+been)?\s+)?\b{EN_CHANGE}"
     rf"(?:\s+{AGAINST})?\s+(?:in|to)\s+{OF}", ""),
    (rf"(?:,?\s*\b(?:and|or|with|but)\s+)?(?:\bthere(?:['’]s|\s+(?:is|are|has|have))(?:\s+been)?\s+)?"
     rf"\b{EN_CHANGE}(?:\s*,?\s*{AGAINST})?(?=\s*(?:[.,;]|$))[,;]?(?:\s*and\s+)?", ""),
    (rf"(?:\bthere(?:\s+(?:is|are|has|have))(?:\s+been)?\s+)\b{EN_CHANGE}(?:\s*,?\s*{AGAINST})?"
     r"\s+and\s+", "there is "),
    (r",?\s+(?:or|and)\s+(?:significant\s+|definite\s+)*interval\s+changes?(?=\s*(?:[.,;]|$))", ""),
    (rf"\b(is|are)\s+{SAME}{ASPECT}\s+and\s+(?=(?:again\s+)?(?:indicat|represent|is\b|are\b|has\b"
     r"|have\b|appear|remain|suggest))", ""),
    (rf"\b(is|are|remains?|appears?)\s+{SAME}{ASPECT}\s+and\s+(?!(?:there|the|an?|no)\b)", r"\1 "),
    (rf",?(?:\s+(?:and|but))?(?:\s*\bwhich)?(?<!patient)\s+{BE}\s+{SAME}{ASPECT}{STOP}", ""),
    (r"(?:,|\s+and|\s+but){0,3}(?<!cally)(?<!patient is)\s+"
     rf"{SAME}{ASPECT}(?=\s*(?:[.,;)]|$))", ""),
    (rf"^{SAME}{ASPECT}(?=\s*[.,;]|$)", ""),
    (rf"(?<!\bnot )(?<!cally )\b{DEGREE}(?:stable|unchanged|persistent(?:ly)?)(?:[\s-]appearing)?"
     rf",?\s+(?=\w)(?!{JOINS}\b)", ""),
    (r"(?:,\s*)?\b(?:once\s+)?again\b,?", ""),
    (r"\bre-?demonstration\s+of\s+", ""),
    (r"\bre-?demonstrated\b", "demonstrated"),
    (r"(?:\b(?:slight|mild|moderate|significant|marked|minimal|slightly)\s+)?"
     rf"\binterval\s+{GROWTH}s?\s+(?:in|of)\s+{OF}", ""),
    (r"(?<!short )(?<!month )(?<!week )(?<!day )(?<!year )(?<!\bthe )\binterval\s+"
     r"(?=increased?|decreased?|improve|worsen|resol|remov|plac|clear|reduc|develop|progress|enlarg"
     r"|insert|appear)", ""),
    (rf"(?:,|\s+and|\s+but){{0,3}}\s*(?:\b(?:is|are|appears?|(?:has|have)(?:\s+(?:not|been))?)\s+)?"
     rf"(?:\w+ly\s+)?(?<!\bnot )\b{TREND}(?:\s+in\s+size(?:\s+and\s+number)?)?(?:\s+XXXX)?\s+"
     rf"{AGAINST}{STOP}", ""),
    (rf",?\s*\b{AGAINST}{STOP}", ""),
    (r"\bpreviously\s+(?:seen|noted|described|identified|demonstrated|visuali[sz]ed|mentioned)\s+",
     ""),
    (r"\b(?:new|newly|worsening|improving)\s+(?=[a-z])", ""),
)  # fmt: skip

# Spanish ----------------------------------------------------------------------------------------
ES_STUDY = (
    r"(?:(?:el|la|los|las|un|una)\s+)?(?:estudios?|radiograf[ií]as?|rx|placas?|controle?s?"
    r"|exploraci[oó]n(?:es)?|previ[oa]s?|anterior(?:es)?|tac|tc)(?:\s+de\s+t[oó]rax)?"
    r"(?:\s+(?:m[aá]s\s+)?(?:previ[oa]s?|anterior(?:es)?|recientes?))?"
    rf"(?:\s+(?:de(?:l)?\s+(?:fecha\s+)?|con\s+fecha\s+(?:de\s+)?)?{HIDDEN})?"
)
ES_AGAINST = (
    r"(?:(?:con|en)\s+respecto\s+(?:al?|con|de)|respecto\s+(?:al?|de)|en\s+comparaci[oó]n\s+(?:al?|con)"
    rf"|en\s+relaci[oó]n\s+(?:al?|con)|comparad[oa]s?\s+con|desde)\s*(?:l\s+)?(?:{ES_STUDY}|{HIDDEN})"
)
ES_DEGREE = (
    r"(?:\s+(?:significativ[oa]s?|relevantes?|valorables?|de\s+inter[eé]s|aparentes?|evolutiv[oa]s?"
    r"|apreciables?|importantes?|radiol[oó]gic[oa]s?))*"
)
ES_END = r"(?=\s*(?:[.,;)]|$))"
ESPANOL = _edits(
    (rf"^\s*{ES_AGAINST}\s*,?\s*", ""),
    (rf"(?:,|\s+y){{0,3}}\s*\b{ES_CHANGE}{ES_DEGREE}(?:\s*,?\s*{ES_AGAINST})?{ES_END}", ""),
    (rf"(?:,|\s+y){{0,3}}\s*\b(?:permanecen?|se\s+mantienen?|contin[uú]an?)\s+(?:estables?|igual(?:es)?"
     rf"|sin\s+cambios)(?:\s*,?\s*{ES_AGAINST})?{ES_END}", ""),
    (rf"(?:,|\s+y){{0,3}}\s+(?:estables?|similar(?:es)?|inalterad[oa]s?)(?:\s*,?\s*{ES_AGAINST}|{ES_END})",
     ""),
    (rf"(?:,|\s+y){{0,3}}\s*\b(?:que\s+)?(?:han?\s+)?(?:aumentad[oa]s?|disminuid[oa]s?|mejorad[oa]s?|empeorad[oa]s?)"
     rf"\s*,?\s+{ES_AGAINST}{ES_END}", ""),
    (rf",?\s*\b{ES_AGAINST}{ES_END}", ""),
    (r"\b(?:ya\s+)?(?:conocid[oa]s?|descrit[oa]s?|visible|presente)s?\s+previamente", ""),
    (r"\bde\s+nuevo\s+(?=se\b)|\bnuevamente\s+", ""),
)  # fmt: skip

EDITS: dict[str, Edits] = {"en": ENGLISH, "es": ESPANOL}
# A sentence that has these words alone, after an edit, says nothing.
EMPTY: dict[str, frozenset[str]] = {
    "en": _words(
        "the a an of in and is are with at this heart size cardiac cardiomediastinal mediastinal "
        "mediastinum hilar silhouette contour contours appearance chest lung lungs exam "
        "examination study film position volumes there it these findings xxxx ___"
    ),
    "es": _words(
        "el la los las de del y es son silueta cardiaca cardíaca cardiomediastínica mediastino "
        "estudio tórax torax pulmones resto hallazgos xxxx ___"
    ),
}
# Words of comparisons that may go although a denial reached over them.
LOST: dict[str, frozenset[str]] = {
    "en": _words(
        "significant definite interval change changes or and since from as when compared to with "
        "the a any most in prior previous earlier preceding last comparison recent study studies "
        "exam examination examinations exams radiograph radiographs film films image images "
        "imaging x ray rays previously seen noted described identified ct scan chest unchanged "
        "stable again grossly xxxx ___ relative versus during over frontal lateral portable"
    ),
    "es": _words(
        "con en respecto a al la el los las de del desde estudio estudios radiografía radiografia "
        "rx previo previa previos previas anterior anteriores control placa tórax torax estable "
        "comparación comparacion relación relacion comparado comparada xxxx ___ y cambios"
    ),
}
