"""What is audited, in one neutral form: the records of a split, from a table or from a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl.data.auditing.findings import Finding, finding
from vilmedic_ssl.data.paths import locate
from vilmedic_ssl.data.patients import Unknown, is_missing
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.registry import closest

# column of a table -> names it goes by in published tables; compared without case, blanks, _ and -
COLUMNS = {
    "path": ("path", "image", "filename", "file", "imagepath", "filepath", "imageindex", "imageid"),
    "patient": ("patient", "patientid", "subjectid", "subject"),
    "study": ("study", "studyid", "studyinstanceuid"),
    "split": ("split", "fold", "subset"),
}
IDS = ("id", "uid", "name", "imageid")
TEXTS = ("report", "findings", "impression", "text", "caption")
CLASSES = ("label", "class", "diagnosis")
FIRST = ("train", "validate", "test")  # the order in which splits are told
CELLS = {"", "-1", "0", "1", "-1.0", "0.0", "1.0"}


@dataclass
class Part:
    """One split, or a whole table that has none.

    Attributes:
        name: of the split; that of another source is led by the source's name.
        ids: one per sample. paths: likewise, where known.
        patients, studies: likewise; "" = unknown, None = all of them are.
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

    def __post_init__(self) -> None:
        self.patients, self.studies = _known(self.patients), _known(self.studies)

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

    def finding(
        self, kind: str, message: str, numbers: Sequence[int], examples: Sequence[str] = ()
    ) -> Finding:
        """What is wrong with some samples of this split."""
        return finding(
            kind,
            f"{self.name}: {message}",
            rows=self.rows(numbers),
            patients=self.patients_of(numbers),
            splits=[self.name],
            examples=examples,
            count=len(numbers),
        )


def pairs(parts: Sequence[Part]) -> Iterator[tuple[Part, Part]]:
    """The splits that must have nothing in common.

    Parts of the other source are its own affair, and one like train_small may be a piece of train.
    """
    for a, b in combinations(parts, 2):
        piece = "train" in (a.name, b.name) and a.name[:5] == b.name[:5] == "train"
        if (a.source == 0 and not piece) or a.source != b.source:
            yield a, b


def _known(names: Sequence[Any] | None) -> list[str] | None:
    """Ids as text, "" where they name nobody; None if all do."""
    found = [
        "" if isinstance(name, Unknown) or is_missing(name) else str(name).strip()
        for name in (() if names is None else names)
    ]
    return found if any(found) else None


def _draws(dataset: Any) -> bool:
    """Whether a dataset without files holds pictures all the same."""
    try:
        dataset.decoded(0)
    except TypeError:  # what the base class answers
        return False
    except UserError:  # a picture, but a spoilt one
        return True
    return True


def from_dataset(dataset: Any, *, source: int = 0, prefix: str = "") -> Part:
    """The records of a `MedicalDataset`."""
    drawn = dataset.paths is None and len(dataset.ids) > 0 and _draws(dataset)
    return Part(
        name=prefix + dataset.split,
        ids=list(dataset.ids),
        paths=dataset.paths,
        patients=dataset.patients,
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
    path: str | None = None,
    patient: str | None = None,
    study: str | None = None,
    label: str | None = None,
    labels: list[str] = (),  # type: ignore[assignment]
) -> list[Part]:
    """The splits of a table, train first; one part where it has no split column.

    Args:
        rows: column -> value; patient, study, path, report, split and labels as present. What a
            row lacks, and NaN, is blank.
        folder: the table's.
        root: folder the paths are relative to; null = the table's folder.
        path, patient, study: their columns; null = one called so, or as in published tables.
        label: column with a class name; null = one called label, class or diagnosis.
        labels: columns with 1, 0, -1 or blank; none = every column that holds only these.

    Raises:
        UserError: no rows, a column that is not there, a path that leads out of the root.
    """
    if not rows:
        raise UserError("the table has no rows; write one per sample below the column names")
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    blank = dict.fromkeys(columns, "")
    table = [{**blank, **{str(k): _text(v) for k, v in row.items()}} for row in rows]
    for name in [*filter(None, (path, patient, study, label)), *labels]:
        if name not in columns:
            raise UserError(f"the table has no column {name!r}; {closest(name, columns)}")
    known = {key: _column(columns, names) for key, names in COLUMNS.items()}
    if known["path"] and _plain(known["path"]) == "imageid" and not _files(table, known["path"]):
        known["path"] = None
    known |= {k: v for k, v in (("path", path), ("patient", patient), ("study", study)) if v}
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
            paths=[locate(base, name) for name in names] if names else None,
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
    by_name = {_plain(column): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _plain(column: str) -> str:
    """A column's name as it is compared: "Patient ID" and patient_id are one."""
    return re.sub(r"[\s_-]", "", column).lower()


def _text(value: Any) -> str:
    """A cell as text; None and what pandas has for it are blank."""
    if isinstance(value, str):
        return value.strip()
    return "" if is_missing(value) else str(value)


def _files(table: Sequence[Mapping[str, str]], column: str) -> bool:
    """Whether a column of ids names files."""
    return any(Path(row[column]).suffix for row in table)


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
