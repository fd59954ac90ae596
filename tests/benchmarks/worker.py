"""One side of a benchmark in a process of its own, which runs when it is told to: so sides take turns, and peaks are their own.

    python tests/benchmarks/worker.py MODULE:SIDE

``SIDE`` is a function of a :class:`Channel`: whenever it has nothing to do it asks what to do next.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO


class Channel:
    """The benchmark, seen from a side."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers

    def ask(self, answer: dict[str, Any]) -> str:
        """Say what came of the last word, and wait for the next; the process ends when there is none."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
        if word := sys.stdin.readline().strip():
            return word
        os._exit(0)


class Worker:
    """The process of a side, seen from the benchmark.

    Args:
        side: ``MODULE:SIDE``.
    """

    def __init__(self, side: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def tell(self, word: str) -> dict[str, Any]:
        """Have it do something, and wait for what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process, which sees that no word will come."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A side of the benchmark ended with exit code {self.process.wait()}; see above.")
        return json.loads(line)


def main() -> None:
    """Be a side. Whatever libraries print goes to the error stream."""
    channel = Channel(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), name)(channel)


if __name__ == "__main__":
    main()
