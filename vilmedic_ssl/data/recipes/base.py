"""The kinds of data sets that can be asked for by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vilmedic_ssl import console
from vilmedic_ssl.data.fetching.http import Https
from vilmedic_ssl.data.fetching.source import Source
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.locks import only_one

STAMP = ".complete.json"
CACHE = ".cache"  # of the root: archives stay there and are fetched once


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A name, and what to do when it is asked for.

    Attributes:
        size: of the download, in words.
        about: what it makes, in a few words.
        place: folder below the root; "" is the name.
        listed: the name of the family in the listing, where one line stands for several names.
    """

    name: str
    size: str
    licence: str
    source: str
    about: str
    place: str = ""
    listed: str = ""

    def row(self) -> tuple[str, ...]:
        """Its line in the listing."""
        return (self.listed or self.name, self.size, self.licence, self.about, self.source)

    def folder(self, root: Path) -> Path:
        return root / (self.place or self.name)

    def make(self, root: Path) -> Path:
        """Make the data set below `root` unless it is there; returns its folder or file.

        Raises:
            UserError: it cannot be had, or something else is in its place.
        """
        raise TypeError(f"{type(self).__name__} defines no make()")


@dataclass(frozen=True, kw_only=True)
class Drawn(Recipe):
    """Needs nothing from elsewhere; `draw(folder)` is atomic by itself."""

    draw: Callable[[Path], object]

    def make(self, root: Path) -> Path:
        folder = self.folder(root)
        self.draw(folder)
        console.say(f"{self.name}: ready in {folder}")
        return folder


@dataclass(frozen=True, kw_only=True)
class Built(Recipe):
    """Made from archives, complete or not at all.

    Attributes:
        build: `build(*archives, folder)` fills an empty folder and returns (number of images, text
            of the card).
        sources: the archives.
        pictures: the folder of the images, below that of the data set.
        foreign: globs; a folder with such files and no stamp is someone's own copy, taken as it is.
        version: raise it when the finished files change.
    """

    build: Callable[..., tuple[int, str]]
    sources: tuple[Source, ...]
    pictures: str = "images"
    foreign: tuple[str, ...] = ()
    version: int = 1

    def make(self, root: Path) -> Path:
        folder = self.folder(root)
        if not self._is_there(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with only_one(folder, f"making {self.name}"):
                if not self._is_there(folder):
                    self._make(root, folder)
        return folder

    def _is_there(self, folder: Path) -> bool:
        """True, and told, when there is nothing to make."""
        if self.is_complete(folder):
            console.say(f"{self.name}: already there, in {folder}")
            return True
        own = any(next(folder.glob(pattern), None) for pattern in self.foreign)
        if own and not (folder / STAMP).exists():
            console.say(f"{self.name}: ready in {folder}, a copy that was not made here")
            return True
        return False

    def _make(self, root: Path, folder: Path) -> None:
        """Fill a folder beside `folder` and rename it; nobody else does so meanwhile."""
        if folder.exists():
            raise UserError(
                f"{self.name}: {folder} exists but is not a complete data set of this recipe "
                f"(version {self.version}); move it away or delete it, then run again"
            )
        archives = [source.fetch(root / CACHE, name=self.name) for source in self.sources]
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        images, card = self.build(*archives, partial)
        (partial / "README.txt").write_text(f"{card}\n{self._origin()}", encoding="utf-8")
        (partial / STAMP).write_text(json.dumps(self._stamp(images)) + "\n")
        partial.rename(folder)
        made = f"{images} images in {folder}" if images else f"ready in {folder}"
        console.say(f"{self.name}: {made} (licence: {self.licence})")

    def is_complete(self, folder: Path) -> bool:
        """True when the stamp names this recipe and its archives, and all images are there."""
        try:
            stamp = json.loads((folder / STAMP).read_text())
        except (OSError, ValueError):
            return False
        return stamp == self._stamp(len(list((folder / self.pictures).glob("*.png"))))

    def _stamp(self, images: int) -> dict[str, object]:
        archives = "+".join(source.sha256 for source in self.sources)
        return {"recipe": self.version, "sha256": archives, "images": images}

    def _origin(self) -> str:
        """The end of the card."""
        files = "".join(
            f"          {s.archive} {s.checksum or '(no checksum published)'}\n"
            for s in self.sources
        )
        return f"Licence   {self.licence}\nSource    {self.source}\n{files}"


@dataclass(frozen=True, kw_only=True)
class Published(Recipe):
    """One file that is used as its publisher made it."""

    file: Https

    def make(self, root: Path) -> Path:
        folder = self.folder(root)
        path = folder / self.file.archive
        if path.exists():  # asked first: another process may be about to put it there, whole
            if self.file.is_at(path):
                console.say(f"{self.name}: already there, {path}")
                return path
            raise UserError(
                f"{self.name}: {path} exists but has {self.file.found(path)}, not the published "
                f"{self.file.checksum}; move it away or delete it, then run again"
            )
        self.file.fetch(folder, name=self.name)
        console.say(f"{self.name}: ready, {path} (licence: {self.licence})")
        return path


@dataclass(frozen=True, kw_only=True)
class Elsewhere(Recipe):
    """Not for us to fetch: what to do by hand, and whether it is done.

    Attributes:
        needs: globs below `place`, each of which must match a file.
        was: what the name stood for.
        now: where the data is today, and the steps to get it.
        layout: which files are expected below the root.
        then: the command that uses them.
    """

    needs: tuple[str, ...]
    was: str
    now: str
    layout: str
    then: str

    def make(self, root: Path) -> Path:
        folder = self.folder(root)
        missing = [pattern for pattern in self.needs if not next(folder.glob(pattern), None)]
        if not missing:
            console.say(f"{self.name}: ready in {folder}; {self.then}")
            return folder
        some = f" (there, but incomplete: {', '.join(missing)})" if folder.exists() else ""
        raise UserError(
            f"{self.name} is not fetched{some}: {self.was}\n"
            f"  get it   {self.now}\n"
            f"  layout   {self.layout.replace('data/', f'{root}/')}\n"
            f"  then     {self.then}"
        )
