"""The progress of a study on the screen: a bar on a terminal, and elsewhere one line per step."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from cfg_distill.study.forecast import Forecast

LINE_EVERY_SHARE = 0.1
"""Off a terminal, a line is printed when a step begins, when the time left is first known, and when this share more is done."""


class _Bar(Progress):
    """A bar with a line of text beneath it: beside the bar, there would be no room for the text."""

    doing = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.doing)


class Display:
    """Shows a forecast. Use it as a context; call :meth:`show` often."""

    def __init__(self, forecast: Forecast, console: Console | None = None) -> None:
        self.forecast = forecast
        self.console = console or Console(stderr=True)
        self.shown = 0.0
        """The share that the bar shows."""
        self.told: set[str] = set()
        """Steps that have been announced."""
        self.told_share = 0.0
        self.told_time = False
        columns = (TextColumn("study"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
        self.bar = _Bar(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("study", total=1.0, left="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def show(self) -> None:
        """Bring the bar up to date; off a terminal, print a line when one is due."""
        self.shown = max(self.shown, self.forecast.share())
        left, doing = self.forecast.time_left(), self.forecast.doing()
        if not self.forecast.done and not doing:
            doing = "checking"
        self.bar.doing = doing
        self.bar.update(self.task, completed=self.shown, left=left)
        if self.console.is_terminal or not doing:
            return
        begun = (set(self.forecast.running) or {"checking"}) - self.told
        first_time = bool(left) and not self.told_time
        if begun or first_time or self.shown - self.told_share >= LINE_EVERY_SHARE:
            self.told |= begun
            self.told_share, self.told_time = self.shown, bool(left)
            done = f"{self.shown:4.0%}, {left}" if left else f"{self.shown:4.0%}"
            self.say(f"study {done}: {doing}")
