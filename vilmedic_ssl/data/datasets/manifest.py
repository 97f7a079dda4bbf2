"""One table, one row per image: patient, study, view, path, report, split and labels."""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from torch import Tensor

from vilmedic_ssl import console
from vilmedic_ssl.compat import require
from vilmedic_ssl.data.automatic import no_share
from vilmedic_ssl.data.datasets.base import Context, ImageRecords
from vilmedic_ssl.data.exclude import matching, refuse_idle
from vilmedic_ssl.data.images import ImageFiles
from vilmedic_ssl.data.masks import Masks, joined, read_masks
from vilmedic_ssl.data.paths import locate
from vilmedic_ssl.data.splits import FRACTIONS, split_patients
from vilmedic_ssl.data.texts import TextSettings
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import ConfigError, MissingSplit, UserError
from vilmedic_ssl.registry import closest, proto
from vilmedic_ssl.settle import AsText

Row = dict[str, str]
Policy = Literal["ignore", "positive", "negative"]
VALUE = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}


def read_table(path: str | Path) -> list[Row]:
    """The rows of a CSV or Parquet file, every value as text, blank for missing.

    Raises:
        UserError: missing, empty or ragged file, or one without commas or not in UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"dataset.manifest: there is no {path}; write the path of a CSV or Parquet file"
        )
    if path.suffix == ".parquet":
        table = require("pyarrow.parquet", extra="scale").read_table(path).to_pylist()
        rows = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table]
        return _not_empty(rows, path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error}); save it as UTF-8") from error
    if len(columns) == 1 and (";" in columns[0] or "\t" in columns[0]):
        raise UserError(f"{path} has one column, {columns[0]!r}: save it with commas")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(
                f"{path}, line {number}: not as many values as column names; quote commas in texts"
            )
    rows = [{(key or "").strip(): value.strip() for key, value in row.items()} for row in rows]
    return _not_empty(rows, path)


def _not_empty(rows: list[Row], path: Path) -> list[Row]:
    rows = [row for row in rows if any(row.values())]  # spreadsheets end in rows of commas
    if not rows:
        raise UserError(f"{path} has no rows; write one per image below the column names")
    return rows


@proto
class Manifest(ImageRecords):
    """Images, reports and labels from one table.

    Attributes:
        manifest: CSV or Parquet file with a `path` column; patient, study, view, report, split and
            labels as present.
        root: folder the paths are relative to; null = the manifest's folder.
        labels: columns with 1, 0, -1 (uncertain) or blank, for a multi-label task.
        label: one column with a class name, for a single-label task.
        uncertain: what -1 becomes: ignore (unknown), positive or negative; one word, or one per
            column.
        blank: what an empty cell becomes, likewise.
        filter: values to keep per column, for example {view: [PA, AP]}.
        exclude: globs on the path, for example `*/masks/*`, or `file:LIST`, a text file with one
            path a line, taken as it is; each must match something.
        fractions: share of the splits, made by patient when there is no `split` column, even in
            findings and other columns of few values; of the other keys only `label` moves images,
            where its column has more than 20 classes, or than a third of the patients.
        masks: CSV file below root with the outlines of findings, for plug-ins that ask where a
            model looks: columns path (as in the manifest), finding (a label's name) and mask (an
            image as large as the one it belongs to, bright inside; relative to this file); and
            where known side (left or right of the patient) and values (of a mask that is a map of
            labels: the numbers inside).
        text: what a paired model reads of a report; others do not look at reports.
        transform: how files become tensors.
    """

    def __init__(
        self,
        context: Context,
        *,
        manifest: str,
        root: str | None = None,
        labels: list[str] = (),  # type: ignore[assignment]
        label: str | None = None,
        uncertain: Policy | dict[str, Policy] = "ignore",
        blank: Policy | dict[str, Policy] = "negative",
        filter: Annotated[dict[str, Any], AsText()] = {},  # noqa: B006 (never written to)
        exclude: list[str] = (),  # type: ignore[assignment]
        fractions: dict[str, float] = FRACTIONS,  # noqa: B006 (never written to)
        masks: str | None = None,
        text: TextSettings = TextSettings(),  # noqa: B008 (frozen)
        transform: Transform = Transform(),  # noqa: B008 (frozen)
    ):
        table = read_table(manifest)
        self.where, columns = manifest, list(table[0])
        for column in ["path", *labels, *([label] if label else []), *filter]:
            if column not in columns:
                hint = closest(column, columns)
                if column == "path":
                    hint = f"give the one that names the images this name: {', '.join(columns)}"
                raise UserError(f"{manifest} has no column {column!r}; {hint}")
        if labels and label:
            raise ConfigError("dataset.labels and dataset.label exclude each other; keep one")
        for key, policy in (("uncertain", uncertain), ("blank", blank)):
            for column in policy if isinstance(policy, dict) else ():
                if column not in labels:
                    hint = closest(column, labels)
                    raise ConfigError(f"dataset.{key}: {column!r} is no column of labels; {hint}")
        if pathless := [n for n, row in enumerate(table, start=1) if not row["path"]]:
            raise UserError(
                f"{manifest}: path is blank in {len(pathless):,} rows, first in row {pathless[0]} "
                "below the column names; write the image's path there, or take such rows out"
            )
        if "split" not in columns:
            table = split_patients(table, fractions=fractions, label=label)
        kept = [row for row in table if all(_keeps(row[c], wanted) for c, wanted in filter.items())]
        refuse_idle(exclude, set(), lambda: [row["path"] for row in table], f"in {manifest}")
        kept = [row for row in kept if not matching(row["path"], exclude)]
        if homeless := [row["path"] for row in kept if not row["split"]]:
            _warn(
                f"{manifest}: split is blank in {len(homeless):,} of {len(kept):,} rows, first "
                f"{homeless[0]}; they are in no split"
            )
        rows = [row for row in kept if row["split"] == context.split]
        if not rows:
            there = sorted({row["split"] for row in kept})
            hint = (
                f"splits there: {', '.join(there)}; write {context.split} in the column split"
                if there
                else f"dataset.filter {dict(filter)} keeps none"
            )
            if "split" not in columns and context.split not in fractions:
                hint = no_share(context.split, fractions)
            raise MissingSplit(f"{manifest}: no row for split {context.split!r}; {hint}")
        self.split, self.ids = context.split, [row["path"] for row in rows]
        if len(set(self.ids)) < len(rows):
            twice = Counter(self.ids).most_common(1)[0][0]
            raise UserError(
                f"{manifest}: {twice} stands in two rows of split {context.split!r}; keep one"
            )
        self.patients = [row["patient"] for row in rows] if "patient" in columns else None
        self.studies = [row["study"] for row in rows] if "study" in columns else None
        self.projections = [row["view"] for row in rows] if "view" in columns else None
        self.augment, self.texts = context.augment, context.texts
        self.reports = [row["report"] for row in rows] if "report" in columns else None
        if self.texts is not None:
            if self.reports is None and context.augment:
                raise UserError(
                    f"{manifest} has no column 'report', which this model reads; "
                    f"{closest('report', columns)}"
                )
            self.said = self.texts.prepare_all(self.reports or [""] * len(rows), self.split)
        if labels:
            self.label_names = list(labels)
            cells = [[self._cell(row, c, uncertain, blank) for c in labels] for row in rows]
            self.labels = np.array(cells, dtype=np.float32)
        elif label:
            nameless = [row["path"] for row in kept if not row[label]]
            if nameless:
                names = ", ".join(sorted({row[label] for row in kept if row[label]}))
                raise UserError(
                    f"{manifest}, {nameless[0]}: {label} is blank; take such rows out, for "
                    f'example with "dataset.filter={{{label}: [{names}]}}"'
                )
            self.label_names = sorted({row[label] for row in kept})
            number = {name: i for i, name in enumerate(self.label_names)}
            self.labels = np.array([number[row[label]] for row in rows], dtype=np.int64)
        base = Path(root) if root else Path(manifest).parent
        self.files = ImageFiles(
            [locate(base, row["path"]) for row in rows], transform, augment=context.augment
        )
        self.outlines = locate(base, masks) if masks else None
        self.named = {row["path"] for row in table}

    def _cell(self, row: Row, column: str, uncertain: Any, blank: Any) -> float:
        """1, 0 or nan for one label cell."""
        text = row[column]
        try:
            value = float(text) if text else None
        except ValueError:
            value = 2.0
        if value in (0.0, 1.0):
            return value  # type: ignore[return-value]
        if value not in (None, -1.0):
            raise UserError(
                f"{self.where}, {row['path']}: {column} is {text!r}; write 1, 0, -1 or nothing"
            )
        policy, default = (blank, "negative") if value is None else (uncertain, "ignore")
        return VALUE[policy.get(column, default) if isinstance(policy, dict) else policy]

    @cached_property
    def masks(self) -> Masks:
        """Read when first asked for: training has no use for them."""
        return {} if self.outlines is None else read_masks(self.outlines, self.named)

    def mask(self, index: int, finding: str, side: str | None = None) -> Tensor | None:
        parts = self.masks.get(self.ids[index], {}).get(finding, [])
        parts = [part for part in parts if side in (None, part.side)]
        if not parts:
            return None
        height, width = self.decoded(index).shape[-2:]
        return self.files.pipeline.mask(joined(parts, (height, width)))

    def outlined(self, index: int) -> list[tuple[str, str]]:
        of_image = self.masks.get(self.ids[index], {})
        pairs = ((name, part.side) for name, parts in of_image.items() for part in parts)
        return list(dict.fromkeys(pairs))

    def content(self) -> Any:
        return [super().content(), self.reports or [""] * len(self)]


@cache
def _warn(text: str) -> None:
    """Once: a split is built several times in a run."""
    console.warn(text)


def _keeps(value: str, wanted: Any) -> bool:
    return value in [str(w) for w in (wanted if isinstance(wanted, list) else [wanted])]
