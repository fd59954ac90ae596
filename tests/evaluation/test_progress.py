"""Where an evaluation is, off a terminal and on one."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from cfg_distill.evaluation.progress import bar_over


def told(batches: int, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two systems, the second one three times as slow: what is shown at 10 s and 30 s per batch of four."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with bar_over("evaluating", ["base", "guidance 2"], console) as begin:
        for number, seconds in enumerate((40 / batches, 120 / batches)):
            report = begin(number)
            report(0, batches)
            for done in range(batches):
                now[0] += seconds
                report(done + 1, batches)
    return console.file.getvalue()


def test_off_a_terminal_lines_say_what_runs_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(4, False, monkeypatch).splitlines() == [
        "evaluating base (1 of 2)",
        "evaluating base (1 of 2), 1:10 left",
        "evaluating base (1 of 2), 1:00 left",
        "evaluating base (1 of 2), 0:50 left",
        "evaluating guidance 2 (2 of 2), 0:40 left",
        "evaluating guidance 2 (2 of 2), 0:42 left",
        "evaluating guidance 2 (2 of 2), 0:33 left",
        "evaluating guidance 2 (2 of 2), 0:19 left",
    ]
    assert len(told(100, False, monkeypatch).splitlines()) == 10  # a tenth each, however many batches there are


def test_on_a_terminal_one_bar_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = told(4, True, monkeypatch)
    assert "evaluating guidance 2 (2 of 2)" in shown
    assert ", 0:40 left" not in shown
