"""Any dataset, divided as a split file says instead of as it divides itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vilmedic_ssl.data.datasets.base import Context, MedicalDataset
from vilmedic_ssl.data.images import channels_owner
from vilmedic_ssl.data.split_file import SplitFile
from vilmedic_ssl.data.splits import TEST, TRAIN, VALIDATE
from vilmedic_ssl.errors import MissingSplit, UserError
from vilmedic_ssl.schema import build

Homes = dict[str, MedicalDataset]


def home_splits(node: Mapping[str, Any], context: Context, more: Sequence[str] = ()) -> Homes:
    """The splits the data itself has: train, validate and test as far as they are there, and
    `more`.

    Raises:
        MissingSplit: the data has none of them.
    """
    homes, missing = {}, []
    for name in dict.fromkeys((TRAIN, VALIDATE, TEST, *more)):
        try:
            homes[name] = build(node, replace(context, split=name), where="dataset")
        except MissingSplit as error:
            missing.append(error)
    if not homes:
        raise missing[0]
    return homes


def resplit(
    node: Mapping[str, Any], context: Context, splits: SplitFile, *, fraction: float | None = None
) -> Resplit:
    """One split of a split file.

    Args:
        node: the dataset as the config describes it.
        context: `split` is one of the file; the rest is handed to the splits of the data.
        fraction: only this nested fraction, where the split is the training split.

    Raises:
        MissingSplit: the file has no such split.
        UserError: it has no such fraction, or the data holds other samples than the file.
    """
    taken = fraction if context.split == TRAIN else None
    splits.of_split(context.split, taken)  # what it lacks is said before the data is read
    homes = home_splits(node, context, [row[0] for row in splits.rows])
    settled = _settled(homes, splits)
    _same_samples(homes, settled)
    rows = settled.of_split(context.split, taken)
    needed = {home: homes[home] for home in dict.fromkeys(row[0] for row in rows)}
    needed = _of_one_mode(node, context, needed)
    several = len({row[1] for row in splits.rows}) < len(splits.rows)
    return Resplit(context.split, needed, [(row[0], row[1]) for row in rows], splits, several)


def _settled(homes: Homes, splits: SplitFile) -> SplitFile:
    """The file with the split each sample has in the data now, where ids alone tell samples apart:
    a key that divides the data another way does not matter then.
    """
    there = {name: home for home, data in homes.items() for name in data.ids}
    plain = len(there) == sum(map(len, homes.values()))
    if not plain or len({row[1] for row in splits.rows}) < len(splits.rows):
        return splits
    return replace(splits, rows=[(there.get(row[1], row[0]), *row[1:]) for row in splits.rows])


def _same_samples(homes: Homes, splits: SplitFile) -> None:
    known = {(row[0], row[1]) for row in splits.rows}
    there = {(home, name) for home, data in homes.items() for name in data.ids}
    if not known & there:
        raise UserError(
            f"split_file: {splits.path} was made from other data: none of its {len(known)} samples "
            "is here; name the file of this data, or write one with `vilmedic-ssl split`"
        )
    same = "give the `dataset` keys that `split` was given"
    if gone := sorted(known - there):
        home, name = gone[0]
        raise UserError(
            f"split_file: {splits.path} names {len(gone)} sample(s) the data does not have, for "
            f"example {name!r} of split {home!r}; {same}, restore the files, or write a new file "
            "with `vilmedic-ssl split`"
        )
    if new := sorted(there - known):
        home, name = new[0]
        raise UserError(
            f"split_file: {splits.path} does not know {len(new)} sample(s) of the data, for "
            f"example {name!r} of split {home!r}; {same}, take them out, or write a new file with "
            "`vilmedic-ssl split`"
        )


def _of_one_mode(node: Mapping[str, Any], context: Context, homes: Homes) -> Homes:
    """With `channels: auto`, colour in one split of the data makes all that are mixed colour."""
    modes = {getattr(getattr(home, "files", None), "mode", None) for home in homes.values()}
    node = copy.deepcopy(dict(node))
    owner = channels_owner(node)
    if modes != {"gray", "rgb"} or owner is None:
        return homes
    owner["channels"] = "rgb"
    return {name: build(node, replace(context, split=name), where="dataset") for name in homes}


class Resplit(MedicalDataset):
    """Chosen samples of the data's own splits, as one split.

    Args:
        homes: the data's splits that give samples.
        chosen: (split in the data, id) of each sample.
        prefix: ids are shared between splits of the data, and told apart as `home:id`.

    Attributes:
        files: of the first home, for its `mode`; samples are not numbered as there.
    """

    def __init__(
        self,
        split: str,
        homes: Homes,
        chosen: Sequence[tuple[str, str]],
        splits: SplitFile,
        prefix: bool,
    ):
        self.split, self.splits, self.homes = split, splits, homes
        first = next(iter(homes.values()))
        number = {(h, name): i for h, data in homes.items() for i, name in enumerate(data.ids)}
        self.chosen = [(home, number[home, name]) for home, name in sorted(chosen)]
        self.own_ids = [homes[home].ids[i] for home, i in self.chosen]
        names = [f"{home}:{homes[home].ids[i]}" for home, i in self.chosen]
        self.ids = names if prefix else self.own_ids
        self.label_names = first.label_names
        if any(home.label_names != self.label_names for home in homes.values()):
            raise UserError(
                "split_file: the splits of the data have different classes, so their numbers do "
                "not compare; give them the same ones"
            )
        labels = self._of_each("labels")
        self.labels = None if labels is None else np.stack(labels)
        self.patients, self.studies = self._names("patients"), self._names("studies")
        self.reports, self.projections = self._of_each("reports"), self._of_each("projections")
        self.files = getattr(first, "files", None)
        self.said, self.texts = self._of_each("said"), first.texts

    def _names(self, name: str) -> list[Any] | None:
        """Patients or studies: those that one home does not know are unknown, those of others are
        not.
        """
        values = {home: getattr(data, name) for home, data in self.homes.items()}
        if all(value is None for value in values.values()):
            return None
        unknown = {home: [None] * len(data) for home, data in self.homes.items()}
        return [(values[home] or unknown[home])[i] for home, i in self.chosen]

    def _of_each(self, name: str) -> list[Any] | None:
        """An attribute that has one value per sample; None unless every home has it."""
        values = {home: getattr(data, name) for home, data in self.homes.items()}
        if any(value is None for value in values.values()):
            return None
        return [values[home][i] for home, i in self.chosen]

    @property
    def views(self) -> int | None:
        return next(iter(self.homes.values())).views

    @property
    def paths(self) -> list[Path] | None:
        return self._of_each("paths")

    def item(self, index: int, seed: int) -> dict[str, Any]:
        home, i = self.chosen[index]
        return self.homes[home].item(i, seed)

    def decoded(self, index: int) -> Tensor:
        home, i = self.chosen[index]
        return self.homes[home].decoded(i)

    def picture(self, index: int) -> Tensor:
        home, i = self.chosen[index]
        return self.homes[home].picture(i)

    def mask(self, index: int, finding: str, side: str | None = None) -> Tensor | None:
        home, i = self.chosen[index]
        return self.homes[home].mask(i, finding, side)

    def outlined(self, index: int) -> list[tuple[str, str]]:
        home, i = self.chosen[index]
        return self.homes[home].outlined(i)

    def ready(self, workers: int = 0) -> None:
        for home in self.homes.values():
            home.ready(workers)

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return next(iter(self.homes.values())).collate(items)

    def content(self) -> Any:
        """Includes the data's splits that samples come from, as a whole."""
        return [super().content(), {name: home.content() for name, home in self.homes.items()}]

    def members(self) -> Tensor:
        """As in the data's own splits, so that a sample is found by whichever way it came."""
        return members_of(self.own_ids)

    def card(self) -> dict[str, Any]:
        return {**super().card(), "split file": f"{self.splits.path}, hash {self.splits.hash}"}


def members_of(ids: list[str]) -> Tensor:
    """`MedicalDataset.members` of samples with these ids."""
    named = MedicalDataset()
    named.ids = ids
    return named.members()
