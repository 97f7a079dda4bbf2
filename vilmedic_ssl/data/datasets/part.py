"""Some samples of a split, all of them or some without their labels: what a budget leaves, say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vilmedic_ssl import console
from vilmedic_ssl.data.budget import Budget
from vilmedic_ssl.data.budget_rows import choose
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.data.datasets.resplit import members_of


def budgeted(home: MedicalDataset, budget: Budget, *, seed: int, scored: bool) -> Part:
    """The training split as far as a budget goes; what was taken is said once.

    Args:
        seed: of the experiment.
        scored: for scores, not for training, so that images without labels are always left out.

    Raises:
        UserError: as `choose`.
    """
    choice = choose(home, budget, seed=budget.seeded(seed))
    keep = budget.unlabelled == "keep" and not scored
    rows = choice.kept if keep else choice.labelled
    left = f"; {len(rows) - len(choice.labelled):,} more without labels" if keep else ""
    console.say_once(choice.told + left)
    for sentence in choice.wanting:
        console.warn_once(f"budget: {sentence}")
    hidden = set(rows) - set(choice.labelled)
    return Part(home, rows, hidden=hidden, note=choice.told.removeprefix("budget: ") + left)


class Part(MedicalDataset):
    """Chosen samples of a split.

    Args:
        rows: their numbers in `home`.
        hidden: those of them whose labels are not told: -1, or nan for every finding.
        note: what the data card says about the choice.

    Attributes:
        labelled: how many of the samples have labels.
        files: of the home, for its `mode`; samples are not numbered as there.
    """

    def __init__(
        self,
        home: MedicalDataset,
        rows: Sequence[int],
        *,
        hidden: set[int] = frozenset(),  # type: ignore[assignment]
        note: str = "",
    ):
        self.home, self.rows, self.note = home, list(rows), note
        self.split, self.label_names = home.split, home.label_names
        self.ids = [home.ids[i] for i in self.rows]
        own_ids = getattr(home, "own_ids", home.ids)
        self.own_ids = [own_ids[i] for i in self.rows]
        self.patients, self.studies = self._of_each("patients"), self._of_each("studies")
        self.reports, self.projections = self._of_each("reports"), self._of_each("projections")
        if home.labels is not None:
            self.labels = home.labels[self.rows]
            self.labels[[i in hidden for i in self.rows]] = -1 if home.labels.ndim == 1 else np.nan
        self.labelled = 0 if home.labels is None else len(self.rows) - len(hidden)
        self.files = getattr(home, "files", None)
        self.said, self.texts = self._of_each("said"), home.texts

    def _of_each(self, name: str) -> list[Any] | None:
        """An attribute of the home that has one value per sample."""
        values = getattr(self.home, name)
        return None if values is None else [values[i] for i in self.rows]

    @property
    def views(self) -> int | None:
        return self.home.views

    @property
    def paths(self) -> list[Path] | None:
        return self._of_each("paths")

    def item(self, index: int, seed: int) -> dict[str, Any]:
        return self.home.item(self.rows[index], seed)

    def decoded(self, index: int) -> Tensor:
        return self.home.decoded(self.rows[index])

    def picture(self, index: int) -> Tensor:
        return self.home.picture(self.rows[index])

    def mask(self, index: int, finding: str, side: str | None = None) -> Tensor | None:
        return self.home.mask(self.rows[index], finding, side)

    def outlined(self, index: int) -> list[tuple[str, str]]:
        return self.home.outlined(self.rows[index])

    def ready(self, workers: int = 0) -> None:
        self.home.ready(workers)

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return self.home.collate(items)

    def content(self) -> Any:
        """Includes the split that samples come from, as a whole."""
        return [super().content(), self.home.content()]

    def members(self) -> Tensor:
        """As in the data's own splits, so that a sample is found by whichever way it came."""
        return members_of(self.own_ids)

    def card(self) -> dict[str, Any]:
        note = {"budget": self.note} if self.note else {}
        return {**self.home.card(), **super().card(), **note}
