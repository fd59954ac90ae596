"""A study: its steps, several at once, in order of need, each skipped when its inputs are unchanged."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import write_text
from cfg_distill.study.check import command_of, guidances_of, problems_of
from cfg_distill.study.config import Study, read_study
from cfg_distill.study.display import Display, Forecast, clock
from cfg_distill.study.processes import Child, Fit, Worker
from cfg_distill.study.record import changes, prepare, record_of
from cfg_distill.study.steps import Ledger, Step, last_checkpoint, plan

RECORD = "study.json"
LOCK = ".lock"
WRITTEN_WHILE_CHECKING = (LOCK, "logs", "steps")
"""What a study has written before its checks end, and so before there is a record. The lock comes first."""
LOCK_SECONDS = 60.0
"""How long to wait for the fits of a killed study to notice that it is gone."""


def run_study(path: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Run a study file, or go on with it; prints progress, then the table.

    Args:
        path: the study file.
        out: the folder of the results; None takes the file's ``out``.
        overwrite: accept that the study or the code changed since it was begun, and remake what depends on the change.

    Returns:
        The folder of the results.

    Raises:
        ConfigError: problems of the file, all at once; or the file changed since the study was begun.
        StepFailed: a step's process failed.
        KeyboardInterrupt: interrupted; processes were stopped, and the same command goes on.
    """
    study = read_study(path)
    problems = problems_of(study)
    if problems:
        raise ConfigError(problems)
    folder = Path(out or study.out)
    record = record_of(study)
    _compare(folder, record, overwrite)
    prepare(record)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as lock, _sigterm_as_interrupt():
        runner = Runner(study, folder, lock, overwrite)
        try:
            with runner.display:
                if _read(folder / RECORD) != record:
                    runner.check()
                    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
                runner.run()
        except KeyboardInterrupt:
            runner.display.say(f"Stopped. To go on: cfg-distill study {path}" + (f" --out {out}" if out else ""))
            raise
        finally:
            runner.close()
    print((folder / "table.txt").read_text(encoding="utf-8"))
    print(f"Wrote {folder}: front.json, front.png, table.txt, timings.json, students/, merges/, samples/.")
    return folder


def _compare(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Refuse to go on with a study that changed, and to write among strange files."""
    begun = folder / RECORD
    if overwrite or not folder.exists():
        return
    if not begun.is_file():
        if _strangers(folder):
            raise ConfigError(
                Problem("out", f"`{folder}` holds files, but no study. Name another folder, or pass --overwrite.")
            )
        return
    found = changes(json.loads(begun.read_text(encoding="utf-8")), record)
    if found:
        raise ConfigError(
            f"The study in `{folder}` was begun with other settings; expected additions only, but these differ:\n    "
            + "\n    ".join(found)
            + "\n  Undo them to go on, pass --overwrite to remake what depends on them, or name another --out."
        )


def said_by(who: str, problems: Sequence[Problem]) -> list[Problem]:
    """Problems of a recipe or a step, as they stand there, with its name in front.

    Example:
        >>> print(said_by("fits.quality", [Problem("model.seed", "expected a whole number, but got 1.5.")])[0])
        fits.quality: Key `model.seed`: expected a whole number, but got 1.5.
    """
    return [Problem("", f"{who}: {problem}") for problem in problems]


def _strangers(folder: Path) -> list[str]:
    """The files and folders in a folder without a record that no study made.

    A study that was stopped while it checked leaves its lock and its logs. Without the lock, a folder `logs` is the user's.
    """
    names = [path.name for path in folder.iterdir() if not path.name.startswith(f".{RECORD}.")]
    return [name for name in names if LOCK not in names or name not in WRITTEN_WHILE_CHECKING]


class Runner:
    """Runs the steps of one study.

    Args:
        study: the study.
        folder: of the results.
        lock: held open, and passed to every process.
        overwrite: steps made by other code are remade.
    """

    def __init__(self, study: Study, folder: Path, lock: IO[str], overwrite: bool) -> None:
        self.study = study
        self.folder = folder
        self.lock = lock
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.parallel = study.parallel or self.cores
        self.steps = plan(study, folder)
        self.ledger = Ledger(folder, under_other_code=not overwrite)
        self.forecast = Forecast(self.steps, self.parallel)
        self.display = Display(self.forecast)
        self.started = time.monotonic()
        self.earlier = _read(folder / "timings.json").get("wall_seconds", 0.0)
        self.idle: list[Worker] = []
        self.children: list[Child] = []
        self.guard = threading.Lock()
        self.closing = False

    def check(self) -> None:
        """Ask what takes torch to know, before anything runs: metrics, models and every recipe.

        Raises:
            ConfigError: all problems of all of them.
        """
        given = self.study.evaluation
        models = [
            p.model for p in self.study.points().values() if p.model not in (*self.study.fits, *self.study.merges)
        ]
        headline = {name: getattr(given.headline, name) for name in ("quality", "diversity", "independent")}
        job = {"do": "check", "metrics": given.metrics, "headline": headline, "models": sorted(set(models))}
        job |= {name: getattr(given, name) for name in ("max_new_tokens", "prompts", "field")}
        jobs: list[tuple[str, dict[str, Any]]] = [("evaluation", job | {"guidances": guidances_of(self.study)})]
        jobs += [
            (f"fits.{name}", {"do": "check_fit", "words": command_of(fit)}) for name, fit in self.study.fits.items()
        ]
        problems: list[Problem] = []
        with self._pool(self.parallel) as pool:
            futures = [(name, pool.submit(self._in_worker, f"check {name}", each)) for name, each in jobs]
            self._wait_for([future for _, future in futures])
            for name, future in futures:
                try:
                    future.result()
                except ConfigError as error:
                    problems += error.problems if name == "evaluation" else said_by(name, error.problems)
        if problems:
            raise ConfigError(problems)

    def run(self) -> None:
        """Run every step that is not done."""
        finished: set[str] = set()
        if not self.study.parallel and not self._all_done():
            # Two processes on one accelerator would fight for its memory.
            with self._pool(1) as pool:
                asked = pool.submit(self._in_worker, "start", {"do": "accelerator"})
                self._wait_for([asked])
                self.parallel = self.forecast.parallel = 1 if asked.result()["accelerator"] else self.parallel
        running: dict[Future[None], Step] = {}
        with self._pool(self.parallel) as pool:
            while len(finished) < len(self.steps):
                for step in self._ready(finished, {each.label for each in running.values()}):
                    if self.ledger.is_done(step):
                        finished.add(step.label)
                        self.forecast.finish(step.label)
                        break
                    if len(running) < self.parallel:
                        running[pool.submit(self._run_step, step)] = step
                        break
                else:
                    done = self._wait_for(list(running), FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        finished.add(running.pop(future).label)
                    self._write_timings()
        self._write_timings()
        if self.ledger.other_code:
            self.display.say(
                f"Note: kept {len(self.ledger.other_code)} steps that an earlier state of cfg_distill's code made;"
                " --overwrite remakes them."
            )

    @contextmanager
    def _pool(self, threads: int) -> Iterator[ThreadPoolExecutor]:
        """Threads that wait for processes; after an exception these are stopped first, or they would wait on."""
        with ThreadPoolExecutor(threads) as pool:
            try:
                yield pool
            except BaseException:
                self.close()
                raise

    def _all_done(self) -> bool:
        """Whether no step is left: an entry of a step exists once the steps it needs are done."""
        return all(self.ledger.entry(step.label).get("state") == "done" for step in self.steps)

    def _ready(self, finished: set[str], running: set[str]) -> list[Step]:
        """Steps that could run now, those that others wait for first."""
        ready = [
            s for s in self.steps if s.label not in finished | running and all(need in finished for need in s.needs)
        ]
        return sorted(ready, key=lambda step: step.kind == "evaluate")

    def _wait_for(self, futures: list[Future[Any]], when: str = "ALL_COMPLETED") -> set[Future[Any]]:
        while True:
            done, waiting = wait(futures, timeout=0.25, return_when=when)
            self.display.show()
            if not waiting or (done and when == FIRST_COMPLETED):
                return done

    def _run_step(self, step: Step) -> None:
        began = time.monotonic()
        self.ledger.begin(step)
        self.forecast.share(step.label, 0.0)
        try:
            peak = self._fit(step) if step.kind == "fit" else self._in_worker(step.label, step.job)["peak_memory_mb"]
        except BaseException as error:
            self.ledger.pause(step, time.monotonic() - began)
            if isinstance(error, ConfigError):
                raise ConfigError(said_by(step.label, error.problems)) from error
            raise
        self.ledger.finish(step, time.monotonic() - began, peak)
        self.forecast.finish(step.label)

    def _fit(self, step: Step) -> float:
        folder = step.outputs[0].parent
        progress = self.folder / "steps" / f"{step.label}.progress"
        with self.guard:
            self._refuse_when_closing()
            fit = Fit(step.job["words"], self._log(step.label), progress, self._threads(), self.lock)
            self.children.append(fit)
        peak = fit.run(step.label, lambda share: self.forecast.share(step.label, share))
        write_text(step.outputs[0], json.dumps(last_checkpoint(folder)) + "\n")
        return peak

    def _in_worker(self, label: str, job: dict[str, Any]) -> dict[str, Any]:
        with self.guard:
            self._refuse_when_closing()
            if not self.idle:
                log = self._log(f"worker {1 + sum(isinstance(child, Worker) for child in self.children)}")
                self.idle.append(Worker(log, self._threads(), self.lock))
                self.children.append(self.idle[-1])
            worker = self.idle.pop()
        try:
            answer = worker.run(label, job, lambda share: self.forecast.share(label, share))
        except ConfigError:
            self.idle.append(worker)  # it is well; what it was given is not
            raise
        self.idle.append(worker)
        return answer

    def _log(self, label: str) -> Path:
        return self.folder / "logs" / f"{label.replace(' ', '_')}.log"

    def _threads(self) -> int:
        """Threads of each process. More than cores in all would have them wait for each other: a fit then stands still."""
        return max(self.cores // self.parallel, 1)

    def _refuse_when_closing(self) -> None:
        if self.closing:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Stop every process that still runs, and wait for it."""
        with self.guard:
            self.closing = True
            children = list(self.children)
        for child in children:
            child.stop()
        for child in children:
            child.end()

    def _write_timings(self) -> None:
        wall = self.earlier + time.monotonic() - self.started
        entries = {step.label: self.ledger.entry(step.label) for step in self.steps}
        steps = {
            label: {key: entry[key] for key in ("seconds", "peak_memory_mb")}
            for label, entry in entries.items()
            if entry.get("state") == "done"
        }
        timings = {"wall_seconds": round(wall, 1), "wall": clock(wall), "cores": self.cores, "parallel": self.parallel}
        write_text(self.folder / "timings.json", json.dumps(timings | {"steps": steps}, indent=1) + "\n")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """Let one study at a time into a folder; the fits of a killed one count until they have stopped."""
    with (folder / LOCK).open("w") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"Key `out`: another study still works in `{folder}`. Wait for it, or name another folder."
                    ) from error
                time.sleep(0.5)
        yield lock


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A study that is asked to end stops its processes first."""
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
