"""Class scores of a split in a file, with all that comparing them takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from vilmedic_ssl import files
from vilmedic_ssl.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """Scores of one model on one split.

    Attributes:
        ids: (N,) names of the samples.
        patients: (N,) group of each; None = unknown.
        labels: (N,) int64 or (N, C) float32 in {0, 1, nan}.
        label_names: C names.
        scores: (N, C) float32.
        images: how many labelled training images taught the model.
    """

    ids: list[str]
    patients: list[str] | None
    labels: np.ndarray
    label_names: list[str]
    scores: np.ndarray
    images: int

    def like(self, other: Predictions, name: str) -> Predictions:
        """The same rows in the order of another one's.

        Args:
            name: whose these are, for the error message.

        Raises:
            UserError: they are of other images, or labelled otherwise.
        """
        place = {id_: i for i, id_ in enumerate(self.ids)}
        same = self.label_names == other.label_names and place.keys() == set(other.ids)
        rows = [place[id_] for id_ in other.ids] if same else []
        if not same or not np.array_equal(self.labels[rows], other.labels, equal_nan=True):
            raise UserError(
                f"flow.stages.{name}: scored on other images or labels than the first stage, so "
                "nothing can be compared; only `transform` may differ in the dataset of judged "
                "stages"
            )
        return replace(
            self,
            ids=other.ids,
            patients=other.patients,
            labels=other.labels,
            scores=self.scores[rows],
        )

    def save(self, path: Path) -> None:
        """Write an .npz of plain arrays."""
        arrays = {
            "ids": np.array(self.ids),
            "labels": self.labels,
            "label_names": np.array(self.label_names),
            "scores": self.scores.astype(np.float32),
            "images": np.array(self.images),
        }
        if self.patients is not None:
            arrays["patients"] = np.array(self.patients)
        with files.atomic(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_predictions(path: Path) -> Predictions:
    """What `Predictions.save` wrote.

    Raises:
        UserError: damaged file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        return Predictions(
            held["ids"].tolist(),
            held["patients"].tolist() if "patients" in held else None,
            held["labels"],
            held["label_names"].tolist(),
            held["scores"],
            int(held["images"]),
        )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and it is made again") from error
