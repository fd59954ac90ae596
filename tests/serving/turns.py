"""Numbers that vary from run to run: runs in turns, medians with their range, and whether the machine did other work meanwhile.

The worker of vLLM imports it in an environment of its own, so it needs nothing but the standard library.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

RUNS = 5
SETTLE, WATCH = 0.3, 0.7
"""Seconds before each turn: first our own idle threads come to rest, then the processors are watched."""
ALONE = 0.05
"""Other work that takes no more of the processors' time is none."""
T = TypeVar("T")


@dataclass(frozen=True)
class Turns(Generic[T]):
    """What came of the runs.

    Attributes:
        of: side -> what it returned, run by run.
        others: the largest share of the processors' time that other work took before a turn.
    """

    of: dict[str, list[T]]
    others: float

    def __str__(self) -> str:
        return f"medians of {len(next(iter(self.of.values())))} runs in turns, {beside(self.others)}"


def beside(others: float) -> str:
    """Whether the machine was alone, in words.

    Example:
        >>> beside(0.01), beside(0.634)
        ('alone on the machine', 'beside other work, which took up to 63 % of the processors')
    """
    if others <= ALONE:
        return "alone on the machine"
    return f"beside other work, which took up to {100 * others:.0f} % of the processors"


def in_turns(sides: Mapping[str, Callable[[], T]]) -> Turns[T]:
    """Run every side once, then every side again, and so on: a machine that drifts meets all sides alike."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    others = 0.0
    for _ in range(RUNS):
        others = max(others, _busy())
        for name, side in sides.items():
            found[name].append(side())
    return Turns(found, others)


def median(values: Sequence[float], form: str = ".1f", unit: str = "") -> str:
    """The median with its range.

    Example:
        >>> median([3, 1, 2.04], unit=" s")
        '2.0 s (1.0 to 3.0)'
    """
    return f"{statistics.median(values):{form}}{unit} ({min(values):{form}} to {max(values):{form}})"


def _busy() -> float:
    """The share of the processors' time that is in use while this process waits."""
    time.sleep(SETTLE)
    before = _times()
    time.sleep(WATCH)
    busy, idle = (after - earlier for after, earlier in zip(_times(), before, strict=True))
    return busy / max(busy + idle, 1)


def _times() -> tuple[int, int]:
    """The processors' time in use and idle since the machine started, in ticks."""
    user, nice, system, idle, waiting, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return user + nice + system + sum(rest), idle + waiting
