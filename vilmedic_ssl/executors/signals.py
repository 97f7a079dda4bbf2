"""Ctrl-C and SIGTERM between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
from typing import Any


class Signals:
    """Remembers that SIGINT or SIGTERM arrived; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def catch(self) -> None:
        """From now on; without effect outside the main thread, where whoever runs us handles
        signals.
        """
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        except ValueError:
            self._old = {}

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt  # asked twice: something hangs
        self.asked = True
