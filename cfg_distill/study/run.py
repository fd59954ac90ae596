"""A study: its steps, several at once, in order of need, each skipped when its inputs are unchanged."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.files import expanded, lock, problems_of_place, write_text
from cfg_distill.files.logs import clock
from cfg_distill.study.check import problems_of, without_echoes
from cfg_distill.study.checking import each_once, jobs_of_checks, said_by
from cfg_distill.study.config import Study, load_study
from cfg_distill.study.display import Display
from cfg_distill.study.forecast import Forecast
from cfg_distill.study.jobs import FindAccelerator
from cfg_distill.study.ledger import Ledger
from cfg_distill.study.processes import Processes, sigterm_as_interrupt
from cfg_distill.study.record import RECORD, begun_with, changes, inputs_of, prepare, record_of
from cfg_distill.study.steps import Step, last_checkpoint, plan

LOCK = ".lock"
WRITTEN_WHILE_CHECKING = (LOCK, "logs", "steps")
"""The names that a study has written before its checks end, and so before there is a record. The lock comes first."""
LOCK_SECONDS = 60.0
"""How long to wait for the fits of a killed study to notice that it is gone."""


def run_steps(
    path: str | Path, out: str | Path | None = None, overwrite: bool = False, remake: Collection[str] = ()
) -> Path:
    """Run the steps of a study, or go on with them; print progress, then the table.

    :func:`cfg_distill.report.run_study` also writes the choice and the page.

    Args:
        path: the study file.
        out: the folder of the results; None takes the file's ``out``.
        overwrite: accept that the study changed since it was begun, and remake what depends on the change.
        remake: kinds of steps to make again, although they are done, and what depends on them: ``evaluate``, say.

    Returns:
        The folder of the results.

    Raises:
        ConfigError: problems of the file, all at once; or the file changed since the study was begun.
        StepFailed: a step's process failed.
        KeyboardInterrupt: interrupted; processes were stopped, and the same command goes on.
    """
    study, problems = load_study(path)
    problems = without_echoes(problems, problems_of(study))
    if problems:
        raise ConfigError(problems + _problems_that_workers_find(study, problems))
    folder = expanded(out or study.out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(Problem("out", f"expected a folder, but `{folder}` is a file. Name another folder."))
    if problems := problems_of_place(folder):
        raise ConfigError(problems)
    record = record_of(study)
    _compare(folder, record, overwrite)
    steps, ledger = plan(study, folder), Ledger(folder)
    problems = ledger.problems_of_outputs(steps, inputs_of(path, record))
    if problems:
        raise ConfigError(problems)
    prepare(record)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as lock, sigterm_as_interrupt():
        _compare(folder, record, overwrite)  # again: another study may have begun here while this one waited
        for step in steps:
            if step.kind in remake:
                ledger.reopen(step)
        runner = Runner(study, steps, ledger, folder, lock)
        try:
            with runner.display:
                if begun_with(folder) != record:
                    runner.check()
                    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
                runner.run()
        except KeyboardInterrupt:
            runner.display.say(f"Stopped. To go on: cfg-distill study {path}" + (f" --out {out}" if out else ""))
            raise
        finally:
            runner.processes.close()
    print((folder / "table.txt").read_text(encoding="utf-8"))
    print(f"Wrote {folder}: front.json, front.png, table.txt, timings.json, students/, merges/, samples/.")
    return folder


def _compare(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Refuse to go on with a study that changed, and to write among strange files."""
    if not folder.exists():
        return
    begun = begun_with(folder)
    if overwrite:
        return
    if begun is None:
        if _strangers(folder):
            raise ConfigError(
                Problem("out", f"`{folder}` holds files, but no study. Name another folder, or pass --overwrite.")
            )
        return
    found = changes(begun, record)
    if found:
        raise ConfigError(
            f"The study in `{folder}` was begun with other settings; expected additions only, but these differ:\n    "
            + "\n    ".join(found)
            + "\n  Undo them to go on, pass --overwrite to remake what depends on them, or name another --out."
        )


def _strangers(folder: Path) -> list[str]:
    """The files and folders in a folder without a record that no study made.

    A study that was stopped while it checked leaves its lock and its logs. Without the lock, a folder `logs` is the user's.
    """
    names = [path.name for path in folder.iterdir() if not path.name.startswith(f".{RECORD}.")]
    return [name for name in names if LOCK not in names or name not in WRITTEN_WHILE_CHECKING]


def _problems_that_workers_find(study: Study, known: Sequence[Problem]) -> list[Problem]:
    """The problems that take torch to see, of those parts of a study that have no problem yet."""
    with tempfile.TemporaryDirectory() as logs:
        processes = Processes(Path(logs), None, _cores(), study.parallel or _cores())
        try:
            found = problems_in_workers(study, processes, known, _wait)
        finally:
            processes.close()
    return without_echoes(known, found)[len(known) :]


def problems_in_workers(
    study: Study, processes: Processes, known: Sequence[Problem], wait_for: Callable[[list[Future[Any]]], object]
) -> list[Problem]:
    """The problems that take torch to see: metrics, models, every recipe.

    Args:
        study: the study.
        processes: that check.
        known: problems that are known already; the parts that have one are not checked.
        wait_for: waits for all futures.
    """
    found: dict[Problem, list[str]] = {}
    with processes.threads() as pool:
        asked = [
            (name, pool.submit(processes.do, f"check {name}", job, lambda done, total: None))
            for name, job in jobs_of_checks(study, known).items()
        ]
        wait_for([future for _, future in asked])
        for name, future in asked:
            try:
                future.result()
            except ConfigError as error:
                for problem in error.problems:
                    found.setdefault(problem, []).append(name)
    return each_once(found)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Runner:
    """Runs the steps of one study.

    Args:
        study: the study.
        steps: its plan.
        ledger: the steps that are done.
        folder: of the results.
        lock: held, and passed to every process.
    """

    def __init__(self, study: Study, steps: list[Step], ledger: Ledger, folder: Path, lock: IO[str]) -> None:
        self.study = study
        self.steps = steps
        self.ledger = ledger
        self.folder = folder
        self.processes = Processes(folder / "logs", lock, _cores(), study.parallel or _cores())
        self.forecast = Forecast(steps, self.processes.parallel)
        self.display = Display(self.forecast)
        self.started = time.monotonic()
        self.began_one = False
        self.earlier = _read(folder / "timings.json").get("wall_seconds", 0.0)

    def check(self) -> None:
        """Let workers check metrics, models and every recipe, before anything runs.

        Raises:
            ConfigError: all problems.
        """
        problems = problems_in_workers(self.study, self.processes, [], self._wait_for)
        if problems:
            raise ConfigError(problems)

    def run(self) -> None:
        """Run every step that is not done."""
        finished: set[str] = set()
        running: dict[Future[None], Step] = {}
        with self.processes.threads() as pool:
            while len(finished) < len(self.steps):
                if self._begin_one(pool, finished, running):
                    continue
                for future in self._wait_for(list(running), FIRST_COMPLETED):
                    future.result()
                    finished.add(running.pop(future).label)
                self._write_timings()
        # Where nothing was made they stay as they are: the page, which shows them, would change.
        if self.began_one or not (self.folder / "timings.json").is_file():
            self._write_timings()
        if self.ledger.other_code:
            self.display.say(
                f"Note: kept {len(self.ledger.other_code)} steps that an earlier state of cfg_distill's code made;"
                " --remake makes them again: all evaluations with `--remake evaluate`."
            )

    def _share_accelerator(self) -> None:
        """Run one process at a time where there is an accelerator, unless asked otherwise: two would fight for its memory."""
        if self.study.parallel:
            return
        with self.processes.threads() as pool:
            asked = pool.submit(self.processes.do, "start", FindAccelerator(), lambda done, total: None)
            self._wait_for([asked])
            if asked.result()["accelerator"]:
                self.processes.parallel = self.forecast.parallel = 1

    def _begin_one(self, pool: ThreadPoolExecutor, finished: set[str], running: dict[Future[None], Step]) -> bool:
        """Skip a step that is done, or begin one; False when there is none for now."""
        for step in self._ready(finished, {each.label for each in running.values()}):
            if self.ledger.is_done(step):
                finished.add(step.label)
                self.forecast.finish(step.label)
                return True
            if not self.began_one:
                self.began_one = True
                self._share_accelerator()
            if len(running) < self.processes.parallel:
                running[pool.submit(self._run_step, step)] = step
                return True
        return False

    def _ready(self, finished: set[str], running: set[str]) -> list[Step]:
        """Steps that could run now, those that others wait for first."""
        ready = [
            step
            for step in self.steps
            if step.label not in finished | running and all(need in finished for need in (*step.needs, *step.after))
        ]
        return sorted(ready, key=lambda step: step.kind == "evaluate")

    def _wait_for(self, futures: list[Future[Any]], when: str = "ALL_COMPLETED") -> set[Future[Any]]:
        return _wait(futures, when, self.display.show)

    def _run_step(self, step: Step) -> None:
        began = time.monotonic()
        self.ledger.begin(step)
        self.forecast.begin(step.label)
        try:
            peak = self._work(step)
        except ConfigError as error:
            self.ledger.pause(step, time.monotonic() - began)
            raise ConfigError(said_by(step.label, error.problems)) from error
        except BaseException:
            self.ledger.pause(step, time.monotonic() - began)
            raise
        self.ledger.finish(step, time.monotonic() - began, peak)
        self.forecast.finish(step.label)

    def _work(self, step: Step) -> float:
        """Do the work of a step; returns the peak memory of its process, in MB."""

        def report(done: int, total: int) -> None:
            self.forecast.report(step.label, done, total)

        if not isinstance(step.work, list):
            return self.processes.do(step.label, step.work, report)["peak_memory_mb"]
        progress = self.folder / "steps" / f"{step.label}.progress"
        peak = self.processes.fit(step.label, step.work, progress, report)
        (done,) = step.outputs
        write_text(done, json.dumps(last_checkpoint(done.parent)) + "\n")
        return peak

    def _write_timings(self) -> None:
        wall = self.earlier + time.monotonic() - self.started
        entries = {step.label: self.ledger.entry(step.label) for step in self.steps}
        steps = {
            label: {key: entry[key] for key in ("seconds", "peak_memory_mb")}
            for label, entry in entries.items()
            if entry.get("state") == "done"
        }
        timings = {"wall_seconds": round(wall, 1), "wall": clock(wall)}
        timings |= {"cores": self.processes.cores, "parallel": self.processes.parallel}
        write_text(self.folder / "timings.json", json.dumps(timings | {"steps": steps}, indent=1) + "\n")


def _wait(
    futures: list[Future[Any]], when: str = "ALL_COMPLETED", show: Callable[[], None] = lambda: None
) -> set[Future[Any]]:
    """Wait for all futures or the first one; call ``show`` often."""
    while True:
        done, waiting = wait(futures, timeout=0.25, return_when=when)
        show()
        if not waiting or (done and when == FIRST_COMPLETED):
            return done


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """Let one study at a time into a folder; the fits of a killed one count until they have stopped."""
    with (folder / LOCK).open("w") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                lock(file.fileno(), wait=False)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        Problem("out", f"another study still works in `{folder}`. Wait for it, or name another folder.")
                    ) from error
                time.sleep(0.5)
        yield file
