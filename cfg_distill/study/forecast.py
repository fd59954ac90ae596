"""How far a study is, how long the rest takes, and what is under way, in words."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

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
        loaded: when it first reported.
        before: the share that an earlier run had done by then.
    """

    started: float
    done: int = 0
    total: int = 0
    loaded: float = 0.0
    before: float = 0.0

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
        """The seconds of each measured step from start to end, an earlier run's part included; estimated while it runs."""
        self.ends: dict[str, float] = {}
        """When each measured step that runs will end."""
        self.running: dict[str, Progress] = {}
        self.done: set[str] = set()
        self.skipped: set[str] = set()
        """The steps that an earlier run has done."""

    # Threads call these three while the main one reads: single operations on dicts and sets only.

    def begin(self, label: str) -> None:
        """A step begins."""
        self.running[label] = Progress(time.monotonic())

    def report(self, label: str, done: int, total: int) -> None:
        """A running step is so far. It never goes back: a fit that goes on may report its first steps again.

        What it takes to load is measured apart: it is half a minute, be it for three steps or for a thousand.
        """
        now, last = time.monotonic(), self.running[label]
        progress = replace(last, done=done, total=total)
        if not last.total:
            progress = replace(progress, loaded=now, before=progress.share)
        elif progress.share <= last.share:
            return
        self.running[label] = progress
        if (measured := progress.share - progress.before) > 0.02:
            whole = (now - progress.loaded) / measured
            self.seconds[label] = progress.loaded - progress.started + whole
            self.ends[label] = now + (1 - progress.share) * whole

    def finish(self, label: str) -> None:
        """A step is done: now, or by an earlier run."""
        progress = self.running.pop(label, None)
        if progress is None:
            self.skipped.add(label)
        elif not progress.before:  # else this run saw a part of it
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
        left, now = {}, time.monotonic()
        for step in self.steps:
            if step.label not in self.done:
                progress = self.running.get(step.label)
                begun = now if progress is None else progress.started
                end = self.ends.get(step.label, begun + step.effort * scale[step.kind])
                left[step.label] = max(end - now, 0.5)
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
