"""Commands in forks of this process, in which torch is loaded already: a start takes a second in place of ten."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes

from cfg_distill.cli import main
from cfg_distill.study import worker

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _stream(descriptor: int, mode: str) -> Any:
    """A standard stream of a fork; the one that it replaces does not close the descriptor."""
    return open(descriptor, mode, buffering=1, closefd=False, encoding="utf-8")


def fork(words: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] = {}) -> int:
    """Start a command in a folder, with its output in a file; returns the process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        with log.open("ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = _stream(1, "w"), _stream(2, "w")
        os.environ |= environment
        for number in ASKING:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        code = main(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class ForkedProcess:
    """What a study needs of ``subprocess.Popen``, by a fork: ``python -m cfg_distill.cli ...`` and the study's worker.

    Args:
        words: of the command, the interpreter first.
        settings: those of Popen that a study gives.
    """

    def __init__(self, words: Sequence[str], **settings: Any) -> None:
        pipes = {name: os.pipe() for name in ("stdin", "stdout") if settings.get(name) == subprocess.PIPE}
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._be(list(words), settings, pipes)
        self.stdin = self.stdout = None
        if "stdin" in pipes:
            os.close(pipes["stdin"][0])
            self.stdin = os.fdopen(pipes["stdin"][1], "w")
        if "stdout" in pipes:
            os.close(pipes["stdout"][1])
            self.stdout = os.fdopen(pipes["stdout"][0])

    def _be(self, words: list[str], settings: dict[str, Any], pipes: dict[str, tuple[int, int]]) -> None:
        code = 1
        try:
            os.setsid()
            reads = pipes["stdin"][0] if "stdin" in pipes else os.open(os.devnull, os.O_RDONLY)
            writes = pipes["stdout"][1] if "stdout" in pipes else settings["stdout"].fileno()
            says = settings["stderr"].fileno()
            for place, descriptor in enumerate((reads, writes, says)):
                os.dup2(descriptor, place)
            # Nothing is closed: files of the parent still write to their numbers, which another file would get.
            null = os.open(os.devnull, os.O_RDWR)
            kept = {0, 1, 2, null, *settings["pass_fds"]}
            for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - kept:
                with contextlib.suppress(OSError):
                    os.fstat(descriptor)
                    os.dup2(null, descriptor)
            sys.stdin, sys.stdout, sys.stderr = _stream(0, "r"), _stream(1, "w"), _stream(2, "w")
            os.environ |= settings["env"]
            for number in ASKING:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            if words[2] == "cfg_distill.study.worker":
                worker.main()
            code = main(words[3:])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            time.sleep(0.01)
        return code


def wait(processes: Sequence[int], seconds: float) -> list[int | None]:
    """The exit codes, -N after signal N; None for a process that still ran after the time, and was killed."""
    codes: dict[int, int] = {}
    until = time.monotonic() + seconds
    while len(codes) < len(processes) and time.monotonic() < until:
        for process in set(processes) - codes.keys():
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for process in set(processes) - codes.keys():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return [codes.get(process) for process in processes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ranks(number: int) -> list[dict[str, str]]:
    """The environments in which torchrun would start the processes of one run."""
    port = free_port()
    return [
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "RANK": str(rank),
         "NODE_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number),
         "TORCHELASTIC_RUN_ID": "test"}
        for rank in range(number)
    ]  # fmt: skip


def in_ranks(work: Callable[..., None], *arguments: Any, number: int = 2) -> None:
    """Run ``work(rank, *arguments)`` in each process of one run; an exception of one is raised here, and ends the others."""
    assert not torch.distributed.is_initialized(), (
        "an earlier test has left a group of processes, which its forks would join"
    )
    start_processes(_as_rank, (work, ranks(number), arguments), nprocs=number, start_method="fork")


def _as_rank(
    rank: int, work: Callable[..., None], environments: list[dict[str, str]], arguments: Sequence[Any]
) -> None:
    os.environ |= environments[rank]
    torch.set_num_threads(1)
    warnings.simplefilter(
        "ignore"
    )  # Lightning's own of what torch has deprecated; a fork makes errors of them, as pytest does
    work(rank, *arguments)
