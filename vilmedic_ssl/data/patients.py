"""Whose an image is: names of patients and studies, and what stands where the data has none.

One rule for splits, budgets, intervals, neighbours, losses and the audit: a sample whose patient is
unknown is a patient of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vilmedic_ssl.errors import UserError

# What pandas reads as missing, and how it spells a missing value itself; compared in lower case.
MISSING = {
    *("", "nan", "-nan", "na", "n/a", "#n/a", "#n/a n/a", "#na", "null", "none", "nat", "<na>"),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
}


def is_missing(value: Any) -> bool:
    """True for an id that names nobody: blank, None, NaN, and their spellings."""
    return str(value).strip().lower() in MISSING


class Unknown(str):
    """A name for the patient or study of one sample of which the data does not know it.

    It differs from every other name, so that code that groups by name needs no special case.
    """


def tell_apart(names: Sequence[Any], ids: Sequence[str], kind: str) -> list[str] | None:
    """Names as text, with an `Unknown` of its own for each sample without one; None if all are.

    Two rows with the same id are the same image, and so have the same unknown patient.

    Args:
        names: one per sample; what is missing by `is_missing` is unknown.
        ids: of the samples, which tell unknown ones apart.
        kind: patient or study.
    """
    named = [
        Unknown(f"unknown {kind} of {own}")
        if isinstance(name, Unknown) or is_missing(name)
        else str(name).strip()
        for name, own in zip(names, ids, strict=True)
    ]
    return None if all(isinstance(name, Unknown) for name in named) else named


def count_unknown(names: Sequence[str] | None) -> int:
    """How many of some names, as `tell_apart` gives them, are unknown."""
    return sum(isinstance(name, Unknown) for name in names or ())


class Names:
    """An attribute of a dataset that holds one name per sample, or None: what is set goes through
    `tell_apart` with the dataset's `ids` when it is first read.

    Args:
        kind: patient or study.
    """

    def __init__(self, kind: str):
        self.kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self.settled, self.given = name, f"given {name}"  # keys of the instance's own dictionary

    def __get__(self, data: Any, owner: type | None = None) -> list[str] | None:
        if data is None:
            return None
        held = vars(data)
        if self.given in held:
            held[self.settled] = tell_apart(held.pop(self.given), data.ids, self.kind)
        names: list[str] | None = held.get(self.settled)
        return names

    def __set__(self, data: Any, names: Sequence[Any] | None) -> None:
        held = vars(data)
        held.pop(self.given, None)
        held[self.settled] = None
        if names is not None:
            held[self.given] = names


def patients_of(
    names: Sequence[str], pattern: str | None, *, among: Sequence[str] = ()
) -> list[str] | None:
    """The patient in each file name: the first group of a regular expression that took
    part, or its whole match; "" where it does not match.

    Args:
        pattern: None = patients are unknown.
        among: the names of all splits, where `names` are of one.

    Raises:
        UserError: invalid pattern, or one that matches no name at all.
    """
    if pattern is None:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"dataset.patient_pattern: '{pattern}' is no regular expression ({error})"
        ) from error
    matches = [expression.search(name) for name in names]
    if names and not any(matches) and not any(map(expression.search, among)):
        raise UserError(
            f"dataset.patient_pattern: '{pattern}' matches no file name, for example not "
            f"{names[0]!r}; correct it, or leave the key out where names do not tell the patient"
        )
    return [
        next((group for group in m.groups() if group is not None), m.group(0)) if m else ""
        for m in matches
    ]
