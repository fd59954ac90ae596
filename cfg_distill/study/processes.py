"""The processes of a study: one for each fit, and a few long-lived workers for everything else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from cfg_distill.errors import ConfigError, Problem

GRACE_SECONDS = 20.0
"""A stopped fit may take this long to write its checkpoint."""


class StepFailed(Exception):
    """A step's process failed for a reason that is no mistake in the study file.

    Attributes:
        log: where its output is.
    """

    def __init__(self, label: str, reason: str, log: Path) -> None:
        super().__init__(f"{label}: {reason} (log: {log})")
        self.log = log


class Child:
    """A process with its output in a log file, in a group of its own, so that the study decides when it stops."""

    def __init__(self, words: Sequence[str], log: Path, threads: int, lock: IO[str], **settings: Any) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        # Who still runs holds the lock: after a kill -9 of the study, the next one waits until its fits have stopped.
        with log.open("a", encoding="utf-8") as output:
            pipes: dict[str, Any] = {"stdout": output, "stdin": subprocess.DEVNULL} | settings
            self.process = subprocess.Popen(
                [sys.executable, *words],
                stderr=output,
                start_new_session=True,
                pass_fds=[lock.fileno()],
                env=environment,
                **pipes,
            )

    def stop(self) -> None:
        """Ask it to stop."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Wait until it has stopped; kill it when it does not."""
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Fit(Child):
    """``cfg-distill fit ...`` as a user would type it."""

    def __init__(self, words: Sequence[str], log: Path, progress: Path, threads: int, lock: IO[str]) -> None:
        self.progress_file = progress
        progress.unlink(missing_ok=True)
        extra = [
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks+=cfg_distill.study.progress.WriteProgress",
            f"--trainer.callbacks.file={progress}",
            f"--trainer.callbacks.study={os.getpid()}",
        ]
        super().__init__(["-m", "cfg_distill.cli", *words, *extra], log, threads, lock)

    def run(self, label: str, report: Callable[[float], None], poll_seconds: float = 0.5) -> float:
        """Wait for the end, reporting the share done; returns the peak memory of its largest process, in MB.

        Raises:
            ConfigError: it refused its configuration.
            StepFailed: it failed.
        """
        while True:
            try:
                self.process.wait(poll_seconds)
                break
            except subprocess.TimeoutExpired:
                report(self._share())
        code = self.process.returncode
        if code == 2:
            raise ConfigError(self.tail(3))
        if code != 0:
            raise StepFailed(label, f"exit code {code}; its last words: {' | '.join(self.tail(2))}", self.log)
        progress = self._progress()
        if not progress.get("finished"):
            raise StepFailed(label, "it was stopped before its end", self.log)
        return float(progress["peak_memory_mb"])

    def _progress(self) -> dict[str, Any]:
        try:
            return json.loads(self.progress_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def _share(self) -> float:
        progress = self._progress()
        return progress["done"] / max(progress["total"], 1) if progress else 0.0

    def tail(self, lines: int) -> list[str]:
        """The last lines of the log that say something."""
        with self.log.open(encoding="utf-8", errors="replace") as stream:
            return list(deque((line.strip() for line in stream if line.strip()), maxlen=lines))


class Worker(Child):
    """A process that imports torch once and then does job after job: see :mod:`cfg_distill.study.worker`."""

    def __init__(self, log: Path, threads: int, lock: IO[str]) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        super().__init__(["-m", "cfg_distill.study.worker"], log, threads, lock, **pipes)

    def run(self, label: str, job: dict[str, Any], report: Callable[[float], None]) -> dict[str, Any]:
        """Do one job, reporting the share done; returns what the worker says at its end.

        Raises:
            ConfigError: the job met a mistake of the user.
            StepFailed: it failed.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                said = json.loads(line)
                if "share" in said:
                    report(said["share"])
                elif "problems" in said:
                    raise ConfigError([Problem(**problem) for problem in said["problems"]])
                elif "failed" in said:
                    raise StepFailed(label, said["failed"], self.log)
                else:
                    return said
        except BrokenPipeError:
            pass
        raise StepFailed(label, f"its process ended with exit code {self.process.wait()}", self.log)

    def stop(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        super().stop()

    def end(self) -> None:
        super().end()
        if self.process.stdout is not None:
            self.process.stdout.close()
