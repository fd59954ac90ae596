"""Commands in forks of this process, in which torch is loaded already: a start takes a second in place of ten."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from cfg_distill.cli import main


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
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.environ |= environment
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
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
