"""Splits by patient."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from vilmedic_ssl.data.patients import tell_apart
from vilmedic_ssl.errors import UserError

TRAIN, VALIDATE, TEST = "train", "validate", "test"
FRACTIONS = {TRAIN: 0.7, VALIDATE: 0.1, TEST: 0.2}


def rows_of(table: Any) -> list[Mapping[str, Any]]:
    """A table as rows (column -> value): rows, or a data frame with `to_dict`."""
    return table.to_dict("records") if hasattr(table, "to_dict") else list(table)


def refuse_shares(groups: Sequence[str], fractions: Mapping[str, float]) -> None:
    """Raises:
    UserError: fractions that are not positive or do not sum to 1, or fewer groups than splits.
    """
    if any(f <= 0 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"fractions {dict(fractions)}: write positive numbers that sum to 1")
    if (there := len(set(groups))) < len(fractions):
        raise UserError(
            f"{there} patients cannot fill {len(fractions)} splits; add data or name fewer splits"
        )


def assign(groups: Sequence[str], *, fractions: Mapping[str, float], seed: int) -> list[str]:
    """The split of each row, so that rows of one group (patient) stay together and splits come out
    near their share.

    Patients are shuffled by `seed` and dealt to the split that is furthest below its share of rows.

    Raises:
        UserError: fractions that are not positive or do not sum to 1, or fewer patients than
            splits.
    """
    refuse_shares(groups, fractions)
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    patients = sorted(sizes)
    random.Random(seed).shuffle(patients)
    room = {name: fraction * len(groups) for name, fraction in fractions.items()}
    home: dict[str, str] = {}
    for i, patient in enumerate(patients):
        empty = [name for name in room if name not in home.values()]
        scarce = len(patients) - i <= len(empty)  # the last patients go to splits that have none
        name = empty[0] if scarce else max(room, key=lambda n: room[n] / fractions[n])
        home[patient] = name
        room[name] -= sizes[patient]
    return [home[group] for group in groups]


def split_patients(
    manifest: Sequence[Mapping[str, Any]],
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    label: str | None = None,
) -> list[dict[str, Any]]:
    """The manifest's rows with a `split` column, no patient in two splits.

    Splits come out even in findings (columns of 1, 0, -1 or blank) and in other columns of few
    values, whatever the order of rows.

    Args:
        manifest: rows, or a pandas data frame; a row without a `patient` (a blank or missing one)
            is a patient of its own.
        fractions: share of rows per split, summing to 1.
        seed: chooses among equally good divisions.
        label: column of classes that is kept even however many values it has.

    Raises:
        UserError: impossible fractions, or fewer patients than splits.
    """
    from vilmedic_ssl.data.automatic import automatic, of_table

    manifest = rows_of(manifest)
    ids = [str(row.get("path", f"row {i}")) for i, row in enumerate(manifest, 1)]
    groups = tell_apart([row.get("patient") for row in manifest], ids, "patient") or ids
    table_NL = of_table(manifest, groups, len(fractions), label)
    names = automatic(groups, table_NL, fractions, seed=seed)
    return [{**row, "split": name} for row, name in zip(manifest, names, strict=True)]
