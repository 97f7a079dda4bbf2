"""What a report says is not there, after NegEx (Chapman et al. 2001, J Biomed Inform 34:301):
triggers before or after the finding, phrases that only look like triggers, ends of the scope.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vilmedic_ssl.data.reports.language import known
from vilmedic_ssl.data.reports.sentences import spans

EN_DEGREE = (
    r"(?:(?:acute\s+)?interval|significant|substantial|appreciable|definite|relevant|apparent|major|further"
    r"|gross|overall|obvious)"
)
EN_CHANGE = (
    rf"(?:no|without|little)\s+(?:{EN_DEGREE}\s+)*"
    r"(?:change|increase|decrease|improvement|worsening|progression)s?\b(?!\s+of\b)"
)
ES_CHANGE = (
    r"(?:sin|no\s+(?:hay|existen?|se\s+(?:observan?|aprecian?|objetivan?|identifican?)))\s+"
    r"(?:otros\s+)?(?:(?:cambios?|variaci[oó]n(?:es)?|modificaci[oó]n(?:es)?|aumento)\b)"
    r"(?!\s+(?:degenerativ|inflamator|agud|pleur|parenquim|osteo|[oó]se|artr|post))"
)


class Rules(NamedTuple):
    """Patterns of one language: scope after, scope before, neither, and what ends a scope."""

    before: re.Pattern[str]
    after: re.Pattern[str]
    pseudo: re.Pattern[str]
    ends: re.Pattern[str]


def _rules(before: str, after: str, pseudo: str, ends: str) -> Rules:
    return Rules(
        *(re.compile(p, re.IGNORECASE | re.VERBOSE) for p in (before, after, pseudo, ends))
    )


ENGLISH = _rules(
    before=r"""\b(?:no\b(?!\.\s*\d)(?!\s*$)|without|not|never|neither|nor|denies|denied|rules?\s+out
        |\w+n['’]t\b|negative\s+for|free\s+(?:of|from)|clear\s+of|(?:absence|lack)\s+of
        |fails?\s+to\s+\w+)\b
        (?:\s+(?:\w+\s+){0,2}?(?:evidence|signs?|suggestion|indication|finding)s?\s+
           (?:of|for|to\s+suggest)\b)?""",
    after=r"""\b(?:(?:is|are|was|were|(?:has|have)\s+been)\s+)?(?:not|no\s+longer|never)\s+
        (?:\w+ly\s+)?(?:seen|identified|visuali[sz]ed|present|demonstrated|evident|noted
        |appreciated|detected|observed|found|apparent)\b
      | \b(?:is|are|was|were|(?:has|have)\s+been)\s+(?:\w+ly\s+)?
        (?:excluded|ruled\s+out|absent|negative)\b
      | \b(?:has|have)\s+(?:since\s+)?(?:\w+ly\s+)?(?:resolved|cleared)\b""",
    pseudo=rf"""\b{EN_CHANGE}
      | \b(?:not|n['’]t)\s+(?:\w+ly\s+)?(?:changed|increased|decreased|improved|worsened)\b
      | \bnot\s+(?:only|necessarily|(?:certain|clear|sure)\s+(?:if|whether))\b
      | \b(?:can\s?not|can['’]t|could\s+not|may\s+not|not)\s+(?:be\s+)?(?:\w+ly\s+){{0,2}}
        (?:be\s+)?(?:excluded?|ruled?\s+out)\b
      | \b(?:to|please)\s+rule\s+out\b | \bno\s+doubt\b | \bgram[-\s]negative\b
      | \bwithout\s+(?:difficulty|delay|complication)s?\b""",
    ends=r"""[;:()] | \s-\s | \b(?:but|however|although|though|except(?:ing)?|apart\s+from
        |aside\s+from|other\s+than|besides|nevertheless|yet|still|whereas|while|which|secondary\s+to
        |due\s+to|because|since|there\s+(?:is|are|was|were)|and\s+(?:the|there|a|an))\b
      | ,\s*(?:the|there|a|an|it|this|these|with|unchanged|stable|and\s+(?:the|there))\b""",
)
SPANISH = _rules(
    before=r"""\bno\s+(?:se\s+\w+|hay|existen?|presenta|muestra|impresionan?|son|es|est[aá]n?
        |parecen?|tiene)\b(?:\s+(?:signos|evidencia|datos|im[aá]genes)\s+
        (?:de|sugerentes\s+de|sugestiv[oa]s\s+de)\b)?
      | \b(?:no|sin|ni|nunca|tampoco)\b(?:\s+(?:signos|evidencia|datos|im[aá]genes)\s+
        (?:de|sugerentes\s+de|sugestiv[oa]s\s+de)\b)?
      | \b(?:ausencia|libres?|negativ[oa]s?)\s+(?:de|para)\b | \bse\s+descartan?\b""",
    after=r"""\b(?:(?:es|son|est[aá]n?|queda|quedan|ha\s+sido)\s+)?
        (?:ausentes?|descartad[oa]s?|resuelt[oa]s?)\b
      | \bno\s+(?:es|son|fue|fueron)\s+visibles?\b
      | \b(?:no\s+)?se\s+(?:ha\s+)?(?:observan?|aprecian?|identifican?|visuali[sz]an?|descartan?)
        (?=\s*[.,;]?\s*$)""",
    pseudo=rf"""\b{ES_CHANGE}
      | \b(?:no\s+se\s+(?:puede[n]?\s+)?descartar?n?|no\s+descarta|sin\s+descartar|para\s+descartar
        |a\s+descartar|no\s+s[oó]lo|sin\s+embargo|no\s+(?:ha\s+)?(?:cambiado|variado))\b""",
    ends=r"""[;:()] | \s-\s | \b(?:pero|aunque|sin\s+embargo|excepto|salvo|mientras|debido\s+a|que
        |secundari[oa]s?\s+a|y\s+(?:el|la|los|las|se|con))\b | ,\s*(?:el|la|los|las|se|con)\b""",
)
RULES = {"en": ENGLISH, "es": SPANISH}
VERB = re.compile(r"\b(?:is|are|was|were|remains?|shows?|es|son|est[aá]n?)\b[^,]*,")


def negated(text: str, language: str = "en") -> list[tuple[int, int]]:
    """Character spans (start, end) of what the text denies, in order, not overlapping.

    A scope runs from its trigger to the end of the clause, or back to the start of it for triggers
    that follow ("effusion is excluded"); the trigger itself is not part. "no change", "no
    increase", "not only" and "cannot be excluded" deny nothing.

    Raises:
        ConfigError: another language.
    """
    rules = RULES[known(language)]
    found = []
    for start, end in spans(text):
        found += [(start + a, start + b) for a, b in _scopes(text[start:end].rstrip(".!?"), rules)]
    return found


def _scopes(sentence: str, rules: Rules) -> list[tuple[int, int]]:
    """Scopes within a sentence."""
    hidden = rules.pseudo.sub(lambda m: "~" * len(m[0]), sentence)
    behind = list(rules.after.finditer(hidden))
    hidden = rules.after.sub(lambda m: "~" * len(m[0]), hidden)
    triggers = list(rules.before.finditer(hidden))
    stops = sorted(
        [m.start() for m in rules.ends.finditer(hidden)] + [m.start() for m in triggers + behind]
    )
    ahead = [(m.end(), next((s for s in stops if s >= m.end()), len(sentence))) for m in triggers]
    for trigger in behind:
        begins = [m.end() for m in rules.ends.finditer(hidden, 0, trigger.start())]
        begins += [m.end() for m in triggers + behind if m.end() <= trigger.start()]
        begins += [m.end() for m in VERB.finditer(hidden, 0, trigger.start())]
        ahead.append((max(begins, default=0), trigger.start()))
    trimmed = (_trimmed(sentence, *scope) for scope in ahead)
    return _apart([scope for scope in trimmed if scope[0] < scope[1]])


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without blanks, marks and joining words at both ends."""
    inner = re.sub(r"[\s,;:.~-]+$|(?:[\s,]+(?:and|or|y|o|ni))+[\s,]*$", "", text[start:end])
    return start + len(inner) - len(inner.lstrip(" \t\n\r,;:.~-")), start + len(inner)


def _apart(scopes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, overlapping ones joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(scopes):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
