"""What is audited, in one neutral form: the records of a split, from a table or from a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl.data.paths import safe_join
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.registry import closest

# column of a table -> other names it goes by in published tables; compared without case
COLUMNS = {
    "path": ("path", "image", "filename", "file", "image_path"),
    "patient": ("patient", "patient_id", "patientid", "subject_id", "subject"),
    "study": ("study", "study_id", "studyid"),
    "split": ("split", "fold", "subset"),
}
IDS = ("id", "uid", "name")
TEXTS = ("report", "findings", "impression", "text", "caption")
CLASSES = ("label", "class", "diagnosis")
FIRST = ("train", "validate", "test")  # the order in which splits are told
CELLS = {"", "-1", "0", "1", "-1.0", "0.0", "1.0"}


@dataclass
class Part:
    """One split, or a whole table that has none.

    Attributes:
        name: of the split; that of another source is led by the source's name.
        ids: one per sample. paths, patients, studies: likewise, where known; "" = unknown.
        texts: name of the column -> one text per sample.
        labels: (N,) int64 classes or (N, C) float32 in {0, 1, nan}; with `label_names`.
        cells: label cells of a table that are neither 1 nor 0: "uncertain (-1)", "blank" -> count.
        pictures: has `decoded(i)`, where pictures live in no files of their own.
        source: 0 for what is audited, 1 for what it is held against.
    """

    name: str
    ids: list[str]
    paths: list[Path] | None = None
    patients: list[str] | None = None
    studies: list[str] | None = None
    texts: dict[str, list[str]] = field(default_factory=dict)
    labels: np.ndarray | None = None
    label_names: list[str] = field(default_factory=list)
    cells: dict[str, int] = field(default_factory=dict)
    pictures: Any = None
    source: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> str:
        return f"{self.name}:{self.ids[index]}"

    def rows(self, numbers: Sequence[int]) -> list[str]:
        return [self.row(i) for i in numbers]

    def patients_of(self, numbers: Sequence[int]) -> list[str]:
        """The known patients of some samples, each once."""
        if self.patients is None:
            return []
        return [p for p in dict.fromkeys(self.patients[i] for i in numbers) if p]


def pairs(parts: Sequence[Part]) -> Iterator[tuple[Part, Part]]:
    """The splits that must have nothing in common.

    Parts of the other source are its own affair, and a split whose name begins with train may be
    a piece of the training split.
    """
    for a, b in combinations(parts, 2):
        both_train = a.name.startswith("train") and b.name.startswith("train")
        if (a.source == 0 and not both_train) or a.source != b.source:
            yield a, b


def from_dataset(dataset: Any, *, source: int = 0, prefix: str = "") -> Part:
    """The records of a `MedicalDataset`.

    A sample whose patient is named like its file is one whose patient nobody knows.
    """
    patients = dataset.patients
    if patients is not None:
        patients = [
            "" if p in (name, Path(name).name) else str(p)
            for p, name in zip(patients, dataset.ids, strict=True)
        ]
    drawn = dataset.paths is None and hasattr(dataset, "files")
    return Part(
        name=prefix + dataset.split,
        ids=list(dataset.ids),
        paths=dataset.paths,
        patients=patients if patients and any(patients) else None,
        studies=dataset.studies,
        texts={"report": dataset.reports} if dataset.reports is not None else {},
        labels=dataset.labels,
        label_names=list(dataset.label_names),
        pictures=dataset if drawn else None,
        source=source,
    )


def from_table(
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    source: int = 0,
    prefix: str = "",
    *,
    root: str | None = None,
    label: str | None = None,
    labels: list[str] = (),  # type: ignore[assignment]
) -> list[Part]:
    """The splits of a table, train first; one part where it has no split column.

    Args:
        rows: column -> value; patient, study, path, report, split and labels as present.
        folder: the table's.
        root: folder the paths are relative to; null = the table's folder.
        label: column with a class name; null = one called label, class or diagnosis.
        labels: columns with 1, 0, -1 or blank; none = every column that holds only these.

    Raises:
        UserError: no rows, a column that is not there, a path that leads out of the root.
    """
    if not rows:
        raise UserError("the table has no rows; write one per sample below the column names")
    table = [{str(k): "" if v is None else str(v).strip() for k, v in r.items()} for r in rows]
    columns = list(table[0])
    for name in [*([label] if label else []), *labels]:
        if name not in columns:
            raise UserError(f"the table has no column {name!r}; {closest(name, columns)}")
    known = {key: _column(columns, names) for key, names in COLUMNS.items()}
    label = label or (None if labels else _column(columns, CLASSES))
    findings = list(labels) or ([] if label else _label_columns(table, set(known.values())))
    classes = sorted({row[label] for row in table}) if label else findings
    by_split: dict[str, list[int]] = {}
    for i, row in enumerate(table):
        by_split.setdefault(row[known["split"]] if known["split"] else "all", []).append(i)
    name_of = known["path"] or _column(columns, IDS) or _unique(table, known["study"])

    def part(split: str, numbers: list[int]) -> Part:
        mine = [table[i] for i in numbers]

        def values(key: str) -> list[str] | None:
            column = known[key]
            return [row[column] for row in mine] if column else None

        names = values("path")
        base = Path(root) if root else folder
        return Part(
            name=prefix + (split or "blank"),
            ids=[row[name_of] for row in mine] if name_of else [f"row {i + 1}" for i in numbers],
            paths=[safe_join(base, name) for name in names] if names else None,
            patients=values("patient"),
            studies=values("study"),
            texts=_texts(mine, columns),
            labels=_labels(mine, label, findings, classes),
            label_names=classes,
            cells=_unsaid(mine, findings),
            source=source,
        )

    order = sorted(by_split, key=lambda split: (*FIRST, split).index(split))
    return [part(split, by_split[split]) for split in order]


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), None)


def _unique(table: Sequence[Mapping[str, str]], column: str | None) -> str | None:
    """The column, if its values tell the rows apart."""
    return column if column and len({row[column] for row in table}) == len(table) else None


def _texts(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> dict[str, list[str]]:
    """Every column of text, and findings with impression where there are both and no report."""
    found = {
        name: [row[column] for row in rows]
        for name in TEXTS
        if (column := _column(columns, [name]))
    }
    if "report" not in found and {"findings", "impression"} <= set(found):
        both = zip(found["findings"], found["impression"], strict=True)
        found["findings + impression"] = [" ".join(filter(None, pair)) for pair in both]
    return found


def _label_columns(table: Sequence[Mapping[str, str]], taken: set[str | None]) -> list[str]:
    """Columns of 1, 0, -1 and blank that hold at least a 1."""
    return [
        column
        for column in table[0]
        if column not in taken
        and (values := {row[column] for row in table}) <= CELLS
        and values & {"1", "1.0"}
    ]


def _labels(
    rows: Sequence[Mapping[str, str]],
    label: str | None,
    findings: Sequence[str],
    classes: Sequence[str],
) -> np.ndarray | None:
    if label:
        number = {name: i for i, name in enumerate(classes)}
        return np.array([number[row[label]] for row in rows], dtype=np.int64)
    if not findings:
        return None
    value = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0}
    cells = [[value.get(row[name], np.nan) for name in findings] for row in rows]
    return np.array(cells, dtype=np.float32)


def _unsaid(rows: Sequence[Mapping[str, str]], findings: Sequence[str]) -> dict[str, int]:
    cells = [row[name] for row in rows for name in findings]
    uncertain = sum(cell in ("-1", "-1.0") for cell in cells)
    return {"uncertain (-1)": uncertain, "blank": cells.count("")} if findings else {}
