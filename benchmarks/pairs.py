"""Comparisons on a noisy machine: both sides in turn, medians, and the ratio of each pair.

Every benchmark takes `--toy`: the same code at the smallest sizes, in seconds, for the tests.
"""

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vilmedic_ssl import console  # noqa: E402

TOY = "--toy" in sys.argv or "BENCHMARK_TOY" in os.environ
if TOY:
    sys.argv = [word for word in sys.argv if word != "--toy"]
    os.environ["BENCHMARK_TOY"] = "1"  # for the processes that a benchmark starts


def sized(full: Any, toy: Any) -> Any:
    """A size of a benchmark, or with `--toy` its smallest one."""
    return toy if TOY else full


ROUNDS = sized(7, 1)


def compare(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """Medians of both measures and of their ratio, after one round that does not count."""
    pairs = []
    for i in range(rounds + 1):
        first, second = (ours, theirs) if i % 2 else (theirs, ours)
        a, b = first(), second()
        pairs.append((a, b) if i % 2 else (b, a))
        console.say(f"  pair {i} of {rounds}: {pairs[-1][0]:.4g}, {pairs[-1][1]:.4g}")
    pairs = pairs[1:]
    ratios = [a / b for a, b in pairs]
    mine, yours = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(yours), statistics.median(ratios)


def verdict(ratio: float, goal: float, *, least: bool = True) -> str:
    """How a ratio stands to its goal."""
    met = ratio >= goal if least else ratio <= goal
    return f"{'met' if met else 'MISSED'} ({'>=' if least else '<='} {goal:g})"


def resident(key: str) -> float:
    """MB of this process, now (VmRSS) or at most (VmHWM); ru_maxrss would include the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024
