"""Runs cases, each in a fork of one process that has imported everything: an import takes longer than most cases."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fuzz.case import Case, Outcome

CPU_SECONDS = 30
"""A case that takes more of the processor hangs. The time of a clock would depend on what else the machine does."""
WALL_SECONDS = 300
"""For one that waits for ever."""
MEMORY = 6 * 2**30
"""A case may use as much beyond what the parent has."""
OURS = ("out", "runs", "samples", "__pycache__", "lightning_logs")


def warm() -> None:
    """Import what the cases need."""
    import cfg_distill.callbacks
    import cfg_distill.evaluation.generating
    import cfg_distill.evaluation.models
    import cfg_distill.evaluation.requests
    import cfg_distill.evaluation.validating
    import cfg_distill.merging
    import cfg_distill.recipe.command_line
    import cfg_distill.report
    import cfg_distill.study.run
    import cfg_distill.tunes.metrics
    import cfg_distill.tunes.renderer

    cfg_distill.study.run.Processes = Here  # type: ignore[misc, assignment]
    cfg_distill.study.run.Runner.run = _accepted  # type: ignore[method-assign]


class Here:
    """In place of the processes of a study: its checks run in this one."""

    parallel, cores = 1, 1

    def __init__(self, *settings: Any) -> None:
        pass

    @contextlib.contextmanager
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(1) as pool:
            yield pool

    def do(self, label: str, job: Any, report: Any) -> dict[str, Any]:
        return job.run(report)

    def close(self) -> None:
        pass


def _accepted(runner: Any) -> None:
    """In place of the steps of a study whose checks found nothing."""
    raise SystemExit(0)


def run(case: Case, folder: Path) -> Outcome:
    """Run a case in a folder of its own, and clear that away."""
    folder.mkdir(parents=True)
    try:
        prepare(case, folder)
        before = _digests(folder)
        code, hung, seconds = _in_child(case, folder)
        out, err = ((folder.parent / f"{folder.name}.{name}") for name in ("out", "err"))
        after = _digests(folder)
        new = [folder / name for name in after.keys() - before.keys()]
        outcome = Outcome(
            code,
            hung,
            out.read_text(errors="replace"),
            err.read_text(errors="replace"),
            sorted(name for name in before if after.get(name) != before[name]),
            [str(file.relative_to(folder)) for file in new if code != 2 and _is_spoilt(file)],
            [str(file.relative_to(folder)) for file in new if file.relative_to(folder).parts[0] not in OURS],
            seconds,
        )
        for file in (out, err):
            file.unlink()
        return outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare(case: Case, folder: Path) -> None:
    """Write the files of a case."""
    for name, content in case.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    if case.make is not None:
        case.make(folder)


def _in_child(case: Case, folder: Path) -> tuple[int, bool, float]:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_the_child(case, folder)
    began = time.monotonic()
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            seconds = used.ru_utime + used.ru_stime
            return code, seconds >= CPU_SECONDS, seconds
        if time.monotonic() - began > WALL_SECONDS:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return -9, True, CPU_SECONDS
        time.sleep(0.005)


def _be_the_child(case: Case, folder: Path) -> None:
    code = 99
    try:
        files = [os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT) for name in ("out", "err")]
        null = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate([null, *files]):
            os.dup2(file, number)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), "utf-8", write_through=True) for n in (1, 2))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        os.environ.pop("CFG_DISTILL_RUN_VERSION", None)
        sys.path.insert(0, str(folder))
        from cfg_distill.cli import main

        code = main(list(case.words))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _digests(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _is_spoilt(file: Path) -> bool:
    """Whether a file of weights holds NaN or infinity."""
    import torch
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        tensors: Sequence[Any] = list(load_file(file).values())
    elif file.suffix == ".ckpt":
        tensors = list(torch.load(file, map_location="cpu", weights_only=True)["state_dict"].values())
    else:
        return False
    return not all(tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point())
