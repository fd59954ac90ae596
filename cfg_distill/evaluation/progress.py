"""The progress of sampling several systems: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cfg_distill.files.logs import clock

LINE_EVERY = 0.1
"""Off a terminal, a line is printed when a system begins, and when this share of the whole more is done."""


@contextmanager
def bar_over(
    doing: str, systems: Sequence[str], console: Console | None = None
) -> Iterator[Callable[[int], Callable[[int, int], None]]]:
    """Show how far the batches of all systems are, and the time left by their pace until now.

    Off a terminal a line says ``evaluating base, guidance 2 (2 of 4), 4:05 left``.

    Args:
        doing: what is done to a system: ``evaluating``.
        systems: their names, in their order.
        console: where it is shown; None for stderr.

    Yields:
        A function to call with the number of a system, from 0, when it begins. It returns the one that
        takes how many of its batches are done, and how many there are.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("left"))
    began, told = time.monotonic(), 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=float(len(systems)))

        def of_system(number: int) -> Callable[[int, int], None]:
            text = f"{doing} {systems[number]} ({number + 1} of {len(systems)})"
            progress.update(task, description=text)

            def say(share: float) -> None:
                nonlocal told
                told = share
                left = f", {clock((time.monotonic() - began) * (1 - share) / share)} left" if share else ""
                if not console.is_terminal:
                    console.print(text + left, highlight=False, soft_wrap=True)

            def report(done: int, total: int) -> None:
                share = (number + done / total) / len(systems)
                progress.update(task, completed=share * len(systems))
                if told + LINE_EVERY <= share < 1 and done < total:  # the next system's own line follows at once
                    say(share)

            say(number / len(systems))
            return report

        yield of_system
