"""Packages as archives: whatever mirror or proxy pip and npm are set up for is used, nothing is
installed, and no code of the package runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vilmedic_ssl import console
from vilmedic_ssl.data.fetching.source import Source
from vilmedic_ssl.errors import UserError


@dataclass(frozen=True)
class Package(Source):
    """One release of one package; `spec` is how its tool names it."""

    spec: str = ""
    tool: ClassVar[str] = ""

    def command(self, scratch: Path, *, name: str) -> list[str]:
        """The command that leaves the archive, and nothing else, in `scratch`."""
        raise TypeError(f"{type(self).__name__} defines no command()")

    def bring(self, target: Path, *, name: str) -> None:
        folder = target.parent
        console.say(f"{name}: fetching {self.spec} with {self.tool}")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = self.command(Path(scratch), name=name)
            done = subprocess.run(command, capture_output=True, text=True)
            files = list(Path(scratch).iterdir())
            if done.returncode or len(files) != 1:
                raise UserError(
                    f"{name}: {self.tool} could not fetch {self.spec} ({_reason(done.stderr)}); "
                    f"check the network and {self.tool}'s index, or put {self.archive} into "
                    f"{folder} yourself"
                )
            if not self.is_at(files[0]):
                raise UserError(
                    f"{name}: {files[0].name} has {self.found(files[0])}, expected "
                    f"{self.checksum}: it was altered on the way or by the index and has been "
                    "thrown away; try another index"
                )
            files[0].replace(target)


@dataclass(frozen=True)
class Pip(Package):
    """A wheel; `spec` is NAME==VERSION."""

    tool: ClassVar[str] = "pip"

    def command(self, scratch: Path, *, name: str) -> list[str]:
        options = "--no-deps --only-binary=:all: --no-input --disable-pip-version-check"
        return [
            *(sys.executable, "-m", "pip", "download", *options.split()),
            *("--progress-bar=off", f"--dest={scratch}", self.spec),
        ]


@dataclass(frozen=True)
class Npm(Package):
    """A tarball; `spec` is NAME@VERSION."""

    tool: ClassVar[str] = "npm"

    def command(self, scratch: Path, *, name: str) -> list[str]:
        npm = shutil.which("npm")
        if npm is None:
            raise UserError(
                f"{name}: npm is needed to fetch {self.spec} and is not installed; install Node.js "
                f"(https://nodejs.org, or `apt install npm`), or put {self.archive} into "
                f"{scratch.parent} yourself"
            )
        destination = f"--pack-destination={scratch}"
        return [npm, "pack", self.spec, "--silent", "--ignore-scripts", destination]


def _reason(stderr: str) -> str:
    """What the tool complained about last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    marks = ("ERROR:", "npm ERR!", "npm error")
    errors = [line.removeprefix(m).strip() for line in lines for m in marks if line.startswith(m)]
    return (errors or lines or ["no reason given"])[-1]
