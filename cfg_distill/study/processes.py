"""The processes of a study: one for each fit, and a few long-lived workers for everything else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.study.checking import Report
from cfg_distill.study.jobs import Job, encoded

GRACE_SECONDS = 20.0
"""A stopped fit may take this long to write its checkpoint."""


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """What is asked to end cleans up first, as it does after Ctrl-C: a study stops its processes, a demo removes its merges."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StepFailed(Exception):
    """A step's process failed for a reason that is no mistake in the study file.

    Attributes:
        log: where its output is.
    """

    def __init__(self, label: str, reason: str, log: Path) -> None:
        super().__init__(f"{label}: {reason} (log: {log})")
        self.log = log


class ChildProcess:
    """A process with its output in a log file, in a group of its own, so that the study decides when it stops.

    Args:
        words: for the Python interpreter.
        log: for its output.
        threads: that it computes with.
        lock: of the study's folder; None where the folder is not locked.
        settings: of :class:`subprocess.Popen`.
    """

    def __init__(self, words: Sequence[str], log: Path, threads: int, lock: IO[str] | None, **settings: Any) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        # Every process inherits the lock: after a kill -9 of the study, the next study waits until the fits have stopped.
        with log.open("a", encoding="utf-8") as output:
            pipes: dict[str, Any] = {"stdout": output, "stdin": subprocess.DEVNULL} | settings
            self.process = subprocess.Popen(
                [sys.executable, *words],
                stderr=output,
                start_new_session=True,
                pass_fds=[] if lock is None else [lock.fileno()],
                env=environment,
                **pipes,
            )

    def stop(self) -> None:
        """Ask it to stop."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Wait until it has stopped; kill it after :data:`GRACE_SECONDS`."""
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class FitProcess(ChildProcess):
    """``cfg-distill fit ...`` as a user would type it.

    Args:
        words: of the command.
        log: for its output.
        progress: the file in which the fit reports how far it is.
        threads: that it computes with.
        lock: of the study's folder.
    """

    def __init__(self, words: Sequence[str], log: Path, progress: Path, threads: int, lock: IO[str]) -> None:
        self.progress_file = progress
        progress.unlink(missing_ok=True)
        reporter = {
            "class_path": "cfg_distill.study.progress.WriteProgress",
            "init_args": {"file": str(progress), "study": os.getpid()},
        }
        # The output is a file, so that a fit shows no bar by itself; Lightning would refuse `enable_progress_bar: false` beside
        # a bar among the recipe's own callbacks.
        extra = [f"--trainer.callbacks+={json.dumps(reporter)}"]
        super().__init__(["-m", "cfg_distill.cli", *words, *extra], log, threads, lock)

    def run(self, label: str, report: Report, poll_seconds: float = 0.5) -> float:
        """Wait for the end.

        Args:
            label: of the step.
            report: takes the optimiser steps that are done and planned.
            poll_seconds: time between two looks at the progress.

        Returns:
            The peak memory of the fit's largest process, in MB.

        Raises:
            ConfigError: the fit refused its configuration.
            StepFailed: the fit failed.
        """
        while True:
            try:
                self.process.wait(poll_seconds)
                break
            except subprocess.TimeoutExpired:
                if progress := self._progress():
                    report(progress["done"], progress["total"])
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

    def tail(self, lines: int) -> list[str]:
        """The last lines of the log that are not blank."""
        with self.log.open(encoding="utf-8", errors="replace") as stream:
            return list(deque((line.strip() for line in stream if line.strip()), maxlen=lines))


class WorkerProcess(ChildProcess):
    """A process that imports torch once and then does job after job: see :mod:`cfg_distill.study.worker`.

    Args:
        log: for its output.
        threads: that it computes with.
        lock: of the study's folder; None where the folder is not locked.
    """

    def __init__(self, log: Path, threads: int, lock: IO[str] | None) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        super().__init__(["-m", "cfg_distill.study.worker"], log, threads, lock, **pipes)

    def run(self, label: str, job: Job, report: Report) -> dict[str, Any]:
        """Do one job, and report how far it is.

        Returns:
            The answer of the worker: its peak memory, and what the job returned.

        Raises:
            ConfigError: the job met a mistake of the user.
            StepFailed: the job failed.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(encoded(job) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                answer = json.loads(line)
                if "total" in answer:
                    report(answer["done"], answer["total"])
                elif "problems" in answer:
                    raise ConfigError([Problem(**problem) for problem in answer["problems"]])
                elif "failed" in answer:
                    raise StepFailed(label, answer["failed"], self.log)
                else:
                    return answer
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


class Processes:
    """All processes of a study: they are made when they are needed, and all are stopped together.

    Args:
        logs: the folder of the log files.
        lock: of the study's folder; None where the folder is not locked.
        cores: of the machine.
        parallel: processes at once.
    """

    def __init__(self, logs: Path, lock: IO[str] | None, cores: int, parallel: int) -> None:
        self.logs = logs
        self.lock = lock
        self.cores = cores
        self.parallel = parallel
        self.idle: list[WorkerProcess] = []
        self.children: list[ChildProcess] = []
        self.guard = threading.Lock()
        self.closing = False

    def do(self, label: str, job: Job, report: Report) -> dict[str, Any]:
        """Do a job in a worker: one that is idle, or a new one. See :meth:`WorkerProcess.run`."""
        with self.guard:
            self._refuse_when_closing()
            if not self.idle:
                number = 1 + sum(isinstance(child, WorkerProcess) for child in self.children)
                self.idle.append(WorkerProcess(self._log(f"worker {number}"), self._threads(), self.lock))
                self.children.append(self.idle[-1])
            worker = self.idle.pop()
        try:
            answer = worker.run(label, job, report)
        except ConfigError:
            self.idle.append(worker)  # The worker is fine, its job was not: reuse it.
            raise
        self.idle.append(worker)
        return answer

    def fit(self, label: str, words: Sequence[str], progress: Path, report: Report) -> float:
        """Run a fit in a process of its own. See :meth:`FitProcess.run`."""
        assert self.lock is not None
        with self.guard:
            self._refuse_when_closing()
            child = FitProcess(words, self._log(label), progress, self._threads(), self.lock)
            self.children.append(child)
        return child.run(label, report)

    @contextlib.contextmanager
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that wait for processes. After an exception the processes are stopped first: the threads end with them."""
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                yield pool
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Stop every process that still runs, and wait for it."""
        with self.guard:
            self.closing = True
            children = list(self.children)
        for child in children:
            child.stop()
        for child in children:
            child.end()

    def _log(self, label: str) -> Path:
        return self.logs / f"{label.replace(' ', '_')}.log"

    def _threads(self) -> int:
        """Threads per process. With more threads than cores in all, a fit would stand still."""
        return max(self.cores // self.parallel, 1)

    def _refuse_when_closing(self) -> None:
        if self.closing:
            raise KeyboardInterrupt
