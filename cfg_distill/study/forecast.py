"""How far a study is, how long the rest takes, and what is under way, in words."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass

from cfg_distill.files.logs import clock
from cfg_distill.study.steps import Step, StepKind

UNSURE = 3.0
"""A guess of seconds, scaled by other kinds of steps, may be wrong by this factor until a step of its kind was measured."""
NOUNS: dict[StepKind, tuple[str, str, str]] = {
    "fit": ("fit", "fits", "step"),
    "export": ("export", "exports", ""),
    "merge": ("merge", "merges", ""),
    "evaluate": ("evaluation", "evaluations", "batch"),
}
"""One step, several, and the parts in which a step reports its progress."""
SAID: dict[StepKind, str] = {
    "ladder": "scoring real and degenerate samples",
    "time": "measuring seconds per sample",
    "front": "drawing the front",
}
"""Steps of which there is one."""
COUNTED: tuple[StepKind, ...] = ("fit", "merge", "evaluate")
"""The kinds that are announced; the others take seconds."""
LONG: Set[StepKind] = {"fit", "evaluate"}
"""The kinds that take the time of a study."""


@dataclass(frozen=True)
class Progress:
    """How far a running step is.

    Attributes:
        started: when, by the monotonic clock.
        done: parts done: optimiser steps of a fit, batches of an evaluation.
        total: all parts; 0 until the step has reported.
    """

    started: float
    done: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 0.0


class Forecast:
    """The progress of a plan.

    The share done is a share of the work, not of the time: sum_i e_i s_i / sum_i e_i over the steps i of this run, with the
    guessed seconds e_i of a step and the share s_i of it that is done. The guesses stay as they are and no s_i falls, so the
    share never falls, however wrong the guesses are.

    The time left uses measurements: guesses know neither model nor machine, and are right within a kind of step only. So they
    are scaled, kind by kind, by the seconds of its measured steps; a kind without any, roughly, by those of fits and
    evaluations. Before one of these was measured nothing is said.

    Args:
        steps: the whole plan.
        parallel: processes at once.
    """

    def __init__(self, steps: Iterable[Step], parallel: int) -> None:
        self.steps = list(steps)
        self.parallel = parallel
        self.seconds: dict[str, float] = {}
        """The seconds of each measured step from start to end, estimated while it runs."""
        self.running: dict[str, Progress] = {}
        self.done: set[str] = set()
        self.skipped: set[str] = set()
        """The steps that an earlier run has done."""

    # Threads call these three while the main one reads: single operations on dicts and sets only.

    def begin(self, label: str) -> None:
        """A step begins."""
        self.running[label] = Progress(time.monotonic())

    def report(self, label: str, done: int, total: int) -> None:
        """A running step is so far. It never goes back: a fit that goes on may report its first steps again."""
        before = self.running[label]
        now = Progress(before.started, done, total)
        if now.share < before.share:
            return
        self.running[label] = now
        if now.share > 0.02:
            self.seconds[label] = (time.monotonic() - now.started) / now.share

    def finish(self, label: str) -> None:
        """A step is done: now, or by an earlier run."""
        progress = self.running.pop(label, None)
        if progress is None:
            self.skipped.add(label)
        else:
            self.seconds[label] = time.monotonic() - progress.started
        self.done.add(label)

    def share(self) -> float:
        """The share of this run's work that is done."""
        work = {step.label: step.effort for step in self.steps if step.label not in self.skipped}
        if not work:
            return 1.0
        running = dict(self.running)
        shares = {
            label: 1.0 if label in self.done else running[label].share if label in running else 0.0 for label in work
        }
        return sum(work[label] * share for label, share in shares.items()) / sum(work.values())

    def remaining(self, unsure: float = 1.0) -> dict[str, float]:
        """The seconds that each step still takes.

        Args:
            unsure: a factor on the guesses of kinds of which no step was measured.
        """
        rough = unsure * (self._scale(LONG) or 1.0)
        scale = {kind: self._scale({kind}) or rough for kind in {step.kind for step in self.steps}}
        left = {}
        for step in self.steps:
            if step.label not in self.done:
                whole = self.seconds.get(step.label, step.effort * scale[step.kind])
                progress = self.running.get(step.label)
                ran = time.monotonic() - progress.started if progress is not None else 0.0
                left[step.label] = max(whole - ran, 0.5)
        return left

    def _scale(self, kinds: Set[StepKind]) -> float:
        """Measured seconds per guessed second of some kinds of steps; 0 where none was measured."""
        measured = [step for step in self.steps if step.kind in kinds and step.label in self.seconds]
        effort = sum(step.effort for step in measured)
        return sum(self.seconds[step.label] for step in measured) / effort if effort else 0.0

    def seconds_left(self, unsure: float = 1.0) -> float:
        """The longest chain of steps that wait for each other, or all work shared by the processes: the longer one."""
        left = self.remaining(unsure)
        chain: dict[str, float] = {}
        for step in self.steps:
            chain[step.label] = left.get(step.label, 0.0) + max(
                (chain[need] for need in (*step.needs, *step.after)), default=0.0
            )
        return max(max(chain.values(), default=0.0), sum(left.values()) / self.parallel)

    def time_left(self) -> str:
        """``4:05 left``; ``1:20 to 12:00 left`` while a kind of step was not measured yet; empty before any was."""
        if not self._scale(LONG) and len(self.done) < len(self.steps):
            return ""
        low, high = (self.seconds_left(factor) for factor in (1 / UNSURE, UNSURE))
        return f"{clock(self.seconds_left())} left" if high - low < 10 else f"{clock(low)} to {clock(high)} left"

    def doing(self) -> str:
        """``fit 1 of 2 quality, step 4/20; then 5 evaluations``; empty while nothing runs."""
        running = dict(self.running)
        now = [self._described(step, running[step.label]) for step in self.steps if step.label in running]
        waiting = Counter(step.kind for step in self.steps if step.label not in running and step.label not in self.done)
        then = [f"{waiting[kind]} {NOUNS[kind][waiting[kind] > 1]}" for kind in COUNTED if waiting[kind]]
        return ", ".join(now) + (f"; then {', '.join(then)}" if now and then else "")

    def _described(self, step: Step, progress: Progress) -> str:
        if step.kind in SAID:
            return SAID[step.kind]
        same = [each.label for each in self.steps if each.kind == step.kind]
        noun, _, part = NOUNS[step.kind]
        name = f"{noun} {same.index(step.label) + 1} of {len(same)} {step.subject}"
        if not part:
            return name
        return f"{name}, {part} {progress.done}/{progress.total}" if progress.total else f"{name}, loading"
