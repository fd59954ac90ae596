"""The progress of a study: one bar with the time left, or a line now and then where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cfg_distill.study.steps import Step

EVERY_SECONDS = 15.0


class Forecast:
    """How long the rest takes, from what was measured so far.

    The guesses of a plan are in the right relation only within a kind of step: those of a kind are scaled by what the
    finished and running ones of that kind took.

    Args:
        steps: the whole plan.
        parallel: processes at once.
    """

    def __init__(self, steps: Iterable[Step], parallel: int) -> None:
        self.steps = list(steps)
        self.parallel = parallel
        self.seconds: dict[str, float] = {}
        """What each measured step takes in all, estimated while it runs."""
        self.running: dict[str, tuple[float, float]] = {}
        """Start and share done of the running steps."""
        self.done: set[str] = set()

    def share(self, label: str, share: float) -> None:
        """A running step is so far."""
        # Threads call this while the main one reads: single dict operations only.
        started = self.running.get(label, (time.monotonic(), 0.0))[0]
        self.running[label] = (started, share)
        if share > 0.02:
            self.seconds[label] = (time.monotonic() - started) / share

    def finish(self, label: str) -> None:
        """A step is done, now or long ago."""
        started, _ = self.running.pop(label, (None, 0.0))
        if started is not None:
            self.seconds[label] = time.monotonic() - started
        self.done.add(label)

    def remaining(self) -> dict[str, float]:
        """Seconds that each open step still takes."""
        scale = {}
        for kind in {step.kind for step in self.steps}:
            measured = [step for step in self.steps if step.kind == kind and step.label in self.seconds]
            effort = sum(step.effort for step in measured)
            scale[kind] = sum(self.seconds[step.label] for step in measured) / effort if effort else 1.0
        left = {}
        for step in self.steps:
            if step.label not in self.done:
                whole = self.seconds.get(step.label, step.effort * scale[step.kind])
                now = time.monotonic()
                ran = now - self.running.get(step.label, (now, 0.0))[0]
                left[step.label] = max(whole - ran, 0.5)
        return left

    def seconds_left(self) -> float:
        """No less than the longest chain of steps that wait for each other, or than all work shared by processes."""
        left = self.remaining()
        chain: dict[str, float] = {}
        for step in self.steps:
            chain[step.label] = left.get(step.label, 0.0) + max((chain[need] for need in step.needs), default=0.0)
        return max(max(chain.values(), default=0.0), sum(left.values()) / self.parallel)


class Display:
    """Shows a forecast. Use as a context; call :meth:`show` often."""

    def __init__(self, forecast: Forecast, console: Console | None = None) -> None:
        self.forecast = forecast
        self.console = console or Console(stderr=True)
        self.started = time.monotonic()
        self.last_line = -EVERY_SECONDS
        columns = (
            TextColumn("study"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}"),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("starting", total=1.0, left="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def show(self) -> None:
        """Bring the bar up to date; without a terminal, print a line when it is time."""
        elapsed, left = time.monotonic() - self.started, self.forecast.seconds_left()
        share = elapsed / (elapsed + left) if elapsed else 0.0
        doing = ", ".join(_described(self.forecast.running))
        self.bar.update(self.task, completed=share, description=doing, left=f"{clock(left)} left")
        if not self.console.is_terminal and elapsed - self.last_line >= EVERY_SECONDS:
            self.last_line = elapsed
            self.say(f"study {share:4.0%}, {clock(left)} left: {doing or 'starting'}")


def _described(running: Mapping[str, tuple[float, float]]) -> list[str]:
    return [f"{label} {share:.0%}" for label, (_, share) in sorted(running.items())]


def clock(seconds: float) -> str:
    """``4:05``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
