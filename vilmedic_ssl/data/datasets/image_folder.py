"""A folder of images: split/class/image, class/image, or just images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vilmedic_ssl.data.datasets.base import Context, ImageRecords, patients_of
from vilmedic_ssl.data.exclude import matching, refuse_idle
from vilmedic_ssl.data.images import SUFFIXES, ImageFiles
from vilmedic_ssl.data.splits import FRACTIONS, TEST, TRAIN, VALIDATE, assign
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.errors import MissingSplit, UserError
from vilmedic_ssl.registry import closest, proto

SPELLINGS = {
    TRAIN: ("train", "training"),
    VALIDATE: ("validate", "val", "valid", "validation"),
    TEST: ("test", "testing"),
}


@proto
class ImageFolder(ImageRecords):
    """Images sorted into folders, for any modality, size, one or three channels.

    With a `train` folder the layout is split/class/image (or split/image, unlabelled); a missing
    `validate` is then taken from the patients of `train`, a tenth of the images. Without one it is
    class/image (or just images) and the splits are made by patient.

    Attributes:
        root: the folder.
        patient_pattern: regular expression on the file name; its group (or the whole match) is
            the patient, for example `person(\\d+)_`. null: every image is its own patient.
        exclude: globs on the path below root, for example `*/masks/*`, or `file:LIST`, a text file
            with one such path a line, taken as it is; each must match something.
        classes: the class folders to use; null = all.
        fractions: share of train, validate and test where the splits are made.
        transform: how files become tensors.
    """

    def __init__(
        self,
        context: Context,
        *,
        root: str,
        patient_pattern: str | None = None,
        exclude: list[str] = (),  # type: ignore[assignment]
        classes: list[str] | None = None,
        fractions: dict[str, float] = FRACTIONS,  # noqa: B006 (never written to)
        transform: Transform = Transform(),  # noqa: B008 (frozen)
    ):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(
                f"dataset.root: there is no folder {root}; write the folder that holds the images"
            )
        self.split, self.exclude, self.wanted = context.split, list(exclude), classes
        self.pattern, self.fractions = patient_pattern, fractions
        self.excluding: set[str] = set()  # the globs that left something out
        there = self._class_names()
        for name in classes or ():
            if name not in there:
                raise UserError(
                    f"dataset.classes: {root} has no class {name!r}; {closest(name, there)}"
                )
        found = self._of_split(context.split)
        refuse_idle(self.exclude, self.excluding, self._below, f"below {root}")
        if not found:
            raise MissingSplit(
                f"{root}: no image for split {context.split!r} ({', '.join(SUFFIXES)})"
            )
        self.ids = [path.relative_to(self.root).as_posix() for path, _ in found]
        self.patients = self._patients(found) if patient_pattern else None
        names = {name for _, name in found}
        if names != {""}:
            self.label_names = [name for name in there if classes is None or name in classes]
            number = {name: i for i, name in enumerate(self.label_names)}
            self.labels = np.array([number[name] for _, name in found], dtype=np.int64)
        self.files = ImageFiles([path for path, _ in found], transform, augment=context.augment)

    def _patients(self, found: list[tuple[Path, str]]) -> list[str]:
        """Patients from file names; without a pattern the path itself."""
        names = [path.relative_to(self.root).as_posix() for path, _ in found]
        if self.pattern is None:
            return names
        inside = patients_of([path.name for path, _ in found], self.pattern)
        assert inside is not None
        return inside

    def _folder(self, split: str) -> Path | None:
        """The folder of a split, in any of its spellings, upper or lower case."""
        there = {p.name.lower(): p for p in sorted(self.root.iterdir()) if p.is_dir()}
        spelled = (name.lower() for name in SPELLINGS.get(split, (split,)))
        return next((there[name] for name in spelled if name in there), None)

    def _class_names(self) -> list[str]:
        """The class folders of every split, so that numbers agree between splits."""
        named = (TRAIN, VALIDATE, TEST, self.split) if self._folder(TRAIN) else ()
        folders = {self._folder(split) for split in named} - {None} or {self.root}
        return sorted({name for base in folders for _, name in self._files(base)})

    def _images(self, base: Path | None) -> list[tuple[Path, str]]:
        """The files of the classes asked for."""
        found = self._files(base)
        return [(p, name) for p, name in found if self.wanted is None or name in self.wanted]

    def _files(self, base: Path | None) -> list[tuple[Path, str]]:
        """(path, class folder) of the images below a folder, sorted; "" for images outside any
        class folder.
        """
        assert base is not None
        found = []
        for path in sorted(base.rglob("*")):
            below = path.relative_to(base)
            if path.suffix.lower() not in SUFFIXES or any(
                part.startswith(".") for part in below.parts
            ):
                continue
            if globs := matching(path.relative_to(self.root).as_posix(), self.exclude):
                self.excluding.update(globs)
                continue
            found.append((path, below.parts[0] if len(below.parts) > 1 else ""))
        return found

    def _below(self) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*")]

    def _of_split(self, split: str) -> list[tuple[Path, str]]:
        if self._folder(TRAIN) is None:
            if split not in self.fractions:
                made = ", ".join(self.fractions)
                raise MissingSplit(
                    f"{self.root} has no folder {split!r}; the splits made from it are {made}"
                )
            return self._made(self._images(self.root), self.fractions, split)
        folder = self._folder(split)
        if self._folder(VALIDATE) is None and split in (TRAIN, VALIDATE):
            shares = {TRAIN: 0.9, VALIDATE: 0.1}
            return self._made(self._images(self._folder(TRAIN)), shares, split)
        if folder is None:
            there = ", ".join(sorted(p.name for p in self.root.iterdir() if p.is_dir()))
            raise MissingSplit(f"{self.root} has no folder {split!r}; folders there: {there}")
        return self._images(folder)

    def _made(
        self, found: list[tuple[Path, str]], shares: dict[str, float], split: str
    ) -> list[tuple[Path, str]]:
        if not found:
            return []
        homes = assign(self._patients(found), fractions=shares, seed=0)
        return [entry for entry, home in zip(found, homes, strict=True) if home == split]
