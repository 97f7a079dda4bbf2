"""One file by https: resumed where it broke off, checked, and renamed only when complete."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

from vilmedic_ssl import console
from vilmedic_ssl.data.fetching.network import Broken, Refused, network, opened
from vilmedic_ssl.data.fetching.partial import (
    Partial,
    full_size,
    number,
    start_of,
    validator_of,
)
from vilmedic_ssl.data.fetching.source import Source
from vilmedic_ssl.errors import UserError

CHUNK = 2**18  # bytes
LONGEST = 60.0  # seconds between two attempts


@dataclass(frozen=True)
class Https(Source):
    """A published file.

    Attributes:
        urls: addresses of the same file, the best first. https only; http on this machine.
        limit: bytes; a longer file is refused.
        stall: seconds without a byte after which a connection is given up.
        attempts: failures in a row, without one new byte, after which an address is given up.
        pause: seconds before the second attempt; doubled before each further one, at most a
            minute, which a server that is overloaded may ask for.
    """

    urls: tuple[str, ...] = ()
    limit: int = 2**36
    stall: float = 30.0
    attempts: int = 5
    pause: float = 1.0

    def bring(self, target: Path, *, name: str) -> None:
        partial = Partial(target.with_name(f"{target.name}.partial"))
        reasons = []
        for url in self.urls:
            console.say(f"{name}: fetching {url}")
            try:
                self._complete(url, partial, name)
            except Refused as error:
                reasons.append(f"{url}: {error}")
                continue
            partial.finish(target)
            return
        kept = partial.size()
        again = f"{kept:,} bytes are kept, the same command continues; or " if kept else ""
        raise UserError(
            f"{name}: could not be fetched ({'; '.join(reasons)}); {again}check the network, or "
            f"put the file into {target.parent} as {target.name} yourself"
        )

    def _complete(self, url: str, partial: Partial, name: str) -> None:
        """Fill `partial` with the file, from what is there of it or, if that fails the check, once
        more from the start.
        """
        for last in (False, True):
            self._stubbornly(url, partial, name)
            found = self.found(partial.path)
            if found == self.checksum:
                return
            resumed = partial.resumed
            partial.drop()
            if last or not resumed:
                break
            console.say(f"{name}: the resumed file has {found}; fetching it from the start")
        raise Refused(
            f"it has {found}, expected {self.checksum}, so it was altered or replaced, and "
            "has been thrown away"
        )

    def _stubbornly(self, url: str, partial: Partial, name: str) -> None:
        """One attempt after another until the file is whole."""
        failures, furthest = 0, partial.size()
        while True:
            try:
                return self._once(url, partial, name)
            except Broken as error:
                reached = partial.size()
                failures = 1 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures >= self.attempts:
                    raise Refused(str(error)) from error
                wait = min(LONGEST, max(error.wait, self.pause * 2 ** (failures - 1)))
                console.say(f"{name}: {error}; trying again in {wait:.0f} s")
                time.sleep(wait)

    def _once(self, url: str, partial: Partial, name: str) -> None:
        """One request, and what comes of it into `partial`."""
        if not self.checksum and not (partial.validator and partial.origin == url):
            partial.drop()  # nothing would tell whether old and new bytes belong together
        with opened(url, partial.wanted(url), self.stall) as response:
            if response.status == 416 and full_size(response) == partial.size() > 0:
                partial.resumed = True  # it had all arrived before
                return
            total = _begin(url, response, partial)
            partial.note(url, response)
            if (total or 0) > self.limit:
                partial.drop()
                raise Refused(f"it announces {total:,} bytes, more than the {self.limit:,} allowed")
            self._receive(response, partial, total, name)
        if total is not None and partial.size() != total:
            raise Broken(f"the connection ended after {partial.size():,} of {total:,} bytes")

    def _receive(
        self, response: HTTPResponse, partial: Partial, total: int | None, name: str
    ) -> None:
        size = partial.size()
        bar = console.Bar(total, desc=name, unit="B", initial=size)
        try:
            with partial.path.open("ab") as file:
                while chunk := network(lambda: response.read1(CHUNK)):
                    size += len(chunk)
                    if size > self.limit:
                        partial.drop()
                        raise Refused(f"it sends more than the {self.limit:,} bytes allowed")
                    file.write(chunk)
                    bar.advance(len(chunk))
                file.flush()
                os.fsync(file.fileno())
        finally:
            bar.close()


def _begin(url: str, response: HTTPResponse, partial: Partial) -> int | None:
    """Go on behind the kept bytes or drop them; returns the size of the whole file if known."""
    if response.status == 200:
        partial.drop()
        return number(response.headers.get("Content-Length"))
    known = partial.validator if partial.origin == url else ""
    changed = known and validator_of(response) not in ("", known)
    if response.status != 206 or start_of(response) != partial.size() or changed:
        partial.drop()
        raise Broken("it did not send the missing part of the same edition of the file")
    partial.resumed = True
    return full_size(response)
