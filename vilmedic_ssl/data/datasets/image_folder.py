"""A folder of images: split/class/image, class/image, or just images."""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.data.automatic import automatic, no_share, of_folders
from vilmedic_ssl.data.datasets.base import Context, ImageRecords
from vilmedic_ssl.data.exclude import matching, refuse_idle
from vilmedic_ssl.data.images import SUFFIXES, ImageFiles
from vilmedic_ssl.data.patients import patients_of, tell_apart
from vilmedic_ssl.data.splits import FRACTIONS, TEST, TRAIN, VALIDATE
from vilmedic_ssl.data.transforms import Transform
from vilmedic_ssl.data.walk import walk
from vilmedic_ssl.errors import MissingSplit, UserError
from vilmedic_ssl.registry import closest, proto

SPELLINGS = {
    TRAIN: ("train", "training"),
    VALIDATE: ("validate", "val", "valid", "validation"),
    TEST: ("test", "testing"),
}


@dataclass(frozen=True)
class Found:
    """An image below the root.

    Attributes:
        path: as it is read. label: its class folder, "" outside any.
        first: where it was met first, if links lead to it on several ways; its division goes by it.
        globs: the entries of `exclude` that match its path.
    """

    path: Path
    label: str
    first: Path
    globs: tuple[str, ...] = ()


@proto
class ImageFolder(ImageRecords):
    """Images sorted into folders, for any modality, size, one or three channels.

    With a `train` folder the layout is split/class/image (or split/image, unlabelled); a missing
    `validate` is then taken from the patients of `train`, a tenth of the images. Without one it is
    class/image (or just images) and the splits are made by patient. Made splits are even in the
    classes, and made of all images: `exclude` and `classes` move none to another split. Symbolic
    links are followed; a file that is reached twice is read once.

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
        self.split, self.exclude, self.pattern = context.split, list(exclude), patient_pattern
        self._met: dict[Path, list[Found]] = {}
        everything = self._everything()
        used = {glob for image in everything for glob in image.globs}
        refuse_idle(self.exclude, used, self._paths, f"below {root}")
        there = sorted({image.label for image in everything if not image.globs})
        for name in classes or ():
            if name not in there:
                raise UserError(
                    f"dataset.classes: {root} has no class {name!r}; {closest(name, there)}"
                )
        whole = self._of_split(context.split, fractions)
        found = [
            image
            for image in whole
            if not image.globs and (classes is None or image.label in classes)
        ]
        if not found:
            why = f"exclude and classes leave none of {len(whole):,}" if whole else ""
            raise MissingSplit(
                f"{root}: no image for split {context.split!r} ({why or ', '.join(SUFFIXES)})"
            )
        self.ids = self._below([image.path for image in found])
        self.patients = patients_of(
            [image.path.name for image in found],
            patient_pattern,
            among=[image.path.name for image in everything if not image.globs],
        )
        names = {image.label for image in found}
        if names != {""}:
            self.label_names = [name for name in there if classes is None or name in classes]
            number = {name: i for i, name in enumerate(self.label_names)}
            self.labels = np.array([number[image.label] for image in found], dtype=np.int64)
        self.files = ImageFiles([image.path for image in found], transform, augment=context.augment)
        self._advise(everything)
        self._met = {}  # nobody carries all splits about

    def _below(self, paths: Sequence[Path]) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in paths]

    def _folder(self, split: str) -> Path | None:
        """The folder of a split, in any of its spellings, upper or lower case."""
        there = {p.name.lower(): p for p in sorted(self.root.iterdir()) if p.is_dir()}
        spelled = (name.lower() for name in SPELLINGS.get(split, (split,)))
        return next((there[name] for name in spelled if name in there), None)

    def _everything(self) -> list[Found]:
        """The images of every split, so that classes have the same numbers in all."""
        named = (TRAIN, VALIDATE, TEST, self.split) if self._folder(TRAIN) else ()
        folders = {self._folder(split) for split in named} - {None} or {self.root}
        return [image for base in folders for image in self._images(base)]

    def _images(self, base: Path | None) -> list[Found]:
        """The images below a folder, in order, each real file once, left out or not."""
        assert base is not None
        if base in self._met:
            return self._met[base]
        walked = walk(base, self._passed)
        met: dict[str, Found] = {}
        twice: dict[Path, Path] = {}
        for path in walked.files:
            if path.suffix.lower() not in SUFFIXES:
                continue
            below = path.relative_to(base).parts
            globs = tuple(matching(path.relative_to(self.root).as_posix(), self.exclude))
            image = Found(path, below[0] if len(below) > 1 else "", path, globs)
            real = walked.real[path]
            if real in met and not image.globs and not met[real].globs:
                twice[path] = met[real].path
            met[real] = image if real not in met else self._once(met[real], image)
        self._tell_broken(sorted(walked.broken))
        self._tell_repeats(base, walked.repeats, "folders", "not followed")
        self._tell_repeats(base, twice, "images", "left out")
        self._met[base] = sorted(met.values(), key=lambda image: image.path)
        return self._met[base]

    def _advise(self, everything: Sequence[Found]) -> None:
        """Warn where the folders are hardly what was meant."""
        if self._folder(TRAIN) is None:
            self._tell_outer(everything)
        else:  # what lies beside the folders of the splits is walked by nobody
            self._tell_broken(sorted(self.root.iterdir()))
        used = [image for image in everything if not image.globs]
        beside = sorted(image.path for image in used if not image.label)
        if beside and len(beside) < len(used):
            some = ", ".join(self._below(beside[:3]))
            _warn(
                f"{self.root}: {len(beside):,} of {len(used):,} images lie beside the class "
                f"folders and count as a class without a name: {some}; move them into a folder, "
                "or leave them out with dataset.exclude"
            )

    def _tell_outer(self, everything: Sequence[Found]) -> None:
        """Warn of a single folder around those of the classes or splits, as archives have it."""
        outer = {image.label for image in everything}
        inner = {image.path.relative_to(self.root).parts[1:-1][:1] for image in everything}
        if len(outer) == 1 and len(inner) > 1:
            (name,) = outer
            _warn(
                f"{self.root}: everything lies in the folder {name}, which makes one class; where "
                "the classes or splits are the folders in it, write "
                + shlex.quote(f"dataset.root={self.root / name}")
            )

    def _tell_broken(self, paths: Sequence[Path]) -> None:
        """Warn of links without an image's ending that lead nowhere; the others are read."""
        links = [
            path
            for path in paths
            if path.is_symlink()
            and not path.exists()
            and path.suffix.lower() not in SUFFIXES
            and not matching(path.relative_to(self.root).as_posix(), self.exclude)
        ]
        if links:
            some = ", ".join(f"{link} (to {os.readlink(link)})" for link in links[:3])
            more = f" and {len(links) - 3:,} more" if len(links) > 3 else ""
            _warn(f"links that lead nowhere, and what they held, are left out: {some}{more}")

    def _passed(self, folder: Path) -> bool:
        """True for a folder that a glob of `exclude` leaves out as a whole."""
        name = f"{folder.relative_to(self.root).as_posix()}/"
        return any(glob.endswith("*") and fnmatch.fnmatch(name, glob) for glob in self.exclude)

    def _tell_repeats(self, base: Path, repeats: dict[Path, Path], kind: str, end: str) -> None:
        """Say once how many links of a kind lead to what is read anyway, the nearest by name."""
        ordered = sorted(repeats, key=lambda link: (len(link.parts), link))
        named = zip(ordered, self._below(ordered), strict=True)
        links = [
            link
            for link, name in named
            if not self._passed(link) and not matching(name, self.exclude)
        ]
        if links:
            told = ", ".join(f"{link} (is {repeats[link]})" for link in links[:3])
            more = f" and {len(links) - 3:,} more" if len(links) > 3 else ""
            _warn(f"{base}: links to {kind} that are read anyway are {end}: {told}{more}")

    def _once(self, image: Found, other: Found) -> Found:
        """One of two paths to the same file: the first that is not left out.

        Raises:
            UserError: neither is left out, and they are in different classes.
        """
        if other.globs or image.globs:
            kept = image if other.globs else other
            return Found(kept.path, kept.label, image.first, kept.globs)
        if image.label != other.label:
            (name,) = self._below([other.path])
            raise UserError(
                f"{other.path} is the same file as {image.path}, in another class, through a link; "
                f"take one out, or leave it out with \"dataset.exclude=['{name}']\""
            )
        return image

    def _paths(self) -> list[str]:
        """Everything below the root, left out or not."""
        walked = walk(self.root)
        return self._below([*walked.files, *walked.folders])

    def _of_split(self, split: str, fractions: dict[str, float]) -> list[Found]:
        if self._folder(TRAIN) is None:
            if split not in fractions:
                hint = no_share(split, fractions)
                raise MissingSplit(f"{self.root} has no folder {split!r}; {hint}")
            return self._made(self.root, fractions, split)
        folder = self._folder(split)
        if self._folder(VALIDATE) is None and split in (TRAIN, VALIDATE):
            return self._made(self._folder(TRAIN), {TRAIN: 0.9, VALIDATE: 0.1}, split)
        if folder is None:
            there = ", ".join(sorted(p.name for p in self.root.iterdir() if p.is_dir()))
            raise MissingSplit(f"{self.root} has no folder {split!r}; folders there: {there}")
        return self._images(folder)

    def _made(self, base: Path | None, shares: dict[str, float], split: str) -> list[Found]:
        """A split that is made here, of everything below a folder, left out or not."""
        assert base is not None
        found = self._images(base)
        if all(image.globs for image in found):
            return []
        firsts = [image.first for image in found]
        ids = self._below(firsts)
        among = [image.path.name for image in self._everything()]
        names = patients_of([path.name for path in firsts], self.pattern, among=among)
        groups = (names and tell_apart(names, ids, "patient")) or ids
        classes = [(*path.relative_to(base).parts[:-1], "")[0] for path in firsts]
        folders = [path.parent.relative_to(base).as_posix() for path in firsts]
        table_NL = of_folders(classes, folders, groups, len(shares))
        homes = automatic(groups, table_NL, shares)
        return [image for image, home in zip(found, homes, strict=True) if home == split]


@cache
def _warn(text: str) -> None:
    """Once: a split is built several times in a run."""
    console.warn(text)
