"""Several processes end together: an exception in one of them is said at once, with its rank, and no other waits for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from cfg_distill.errors import ConfigError, Problem, Stopped
from cfg_distill.recipe.processes import STARTED_BY

_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|rendezvous|store", re.IGNORECASE)
"""What the libraries say when another process has gone."""
_MOST_PER_CORE = 4


class EndTogether(Callback):
    """End this process as soon as an exception ends its fit, if there are others.

    Lightning goes on with callbacks, checkpoints and a teardown that wait for the other processes, while those wait for this
    one. So here the exception is printed, the loggers are closed, and the process exits, with code 2 for a
    :class:`ConfigError` and 1 otherwise. Then the others end:

    - The first process kills those that it has started. They end by themselves when it is gone.
    - Lightning watches the processes that it has started, and kills the first one when another fails; torchrun and SLURM do the
      same with processes of theirs.
    - A process that waits for a lost one meets an error of its library (gloo), and says no more than that.

    With one process it does nothing. It stands in front of all other callbacks.
    """

    def __init__(self) -> None:
        self.began = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            _end_with(os.environ.get(STARTED_BY))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.world_size == 1 or isinstance(exception, Stopped | SystemExit):
            return
        children = _children(trainer)
        code = _say(exception, trainer, children, everywhere=self.began)
        for logger in trainer.loggers:
            with contextlib.suppress(Exception):
                logger.finalize("failed")
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGKILL)
        sys.stdout.flush()
        os._exit(code)


def _children(trainer: Trainer) -> list[subprocess.Popen]:
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def _say(exception: BaseException, trainer: Trainer, children: list[subprocess.Popen], everywhere: bool) -> int:
    """Print the exception; returns the exit code.

    Args:
        exception: of this process.
        trainer: knows the rank.
        children: the processes that this one has started.
        everywhere: whether each process prints its own. Before the training all meet the same problem, and the first says it.
    """
    rank = f"rank {trainer.global_rank} of {trainer.world_size}"
    if isinstance(exception, ConfigError):
        if everywhere or trainer.is_global_zero:
            print(f"cfg-distill, {rank}: {exception}", file=sys.stderr, flush=True)
        return 2
    if _is_echo(exception):
        lost = _lost(children)
        told = lost or "another process has ended, see its message"
        first = str(exception).strip().splitlines()[0]
        print(f"cfg-distill, {rank}: {told}. This process ends, too ({first}).", file=sys.stderr, flush=True)
        return next((abs(child.returncode) for child in children if child.returncode in (1, 2)), 1)
    text = "".join(traceback.format_exception(exception))
    print(f"cfg-distill, {rank}, failed:\n{text}", file=sys.stderr, flush=True)
    return 1


def _is_echo(exception: BaseException) -> bool:
    """Whether it says no more than that another process has gone."""
    return isinstance(exception, torch.distributed.DistError) or (
        type(exception) is RuntimeError and bool(_LOST.search(str(exception)))
    )


def _lost(children: list[subprocess.Popen], wait: float = 2.0) -> str:
    """Which of the started processes have ended, and how."""
    until = time.monotonic() + wait
    while children and not any(child.poll() for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    ended = [(rank, child.returncode) for rank, child in enumerate(children, start=1) if child.returncode]
    return ", ".join(
        f"local rank {rank} was killed by signal {-code}"
        if code < 0
        else f"local rank {rank} ended with exit code {code}"
        for rank, code in ended
    )


def _end_with(parent: str | None, every: float = 1.0) -> None:
    """End this process when the one that started it is gone: it may wait for that one inside a library for ever."""
    if parent is None or os.getppid() != int(parent):
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def most_processes() -> int:
    """How many processes without a GPU may share this machine."""
    return max(_MOST_PER_CORE * (os.cpu_count() or 1), 8)


def problems_of_devices(accelerator: Any, devices: Any) -> list[Problem]:
    """Why this machine lacks the GPUs that a trainer asks for, or the cores for so many processes.

    Args:
        accelerator: of the trainer, as the recipe gives it.
        devices: of the trainer, as the recipe gives them: a number, or a list of places.
    """
    there = torch.cuda.device_count()
    wants_gpus = accelerator in ("gpu", "cuda")
    if wants_gpus and not there:
        text = (
            f"expected cpu or auto, since torch finds no CUDA GPU on this machine, but got {accelerator}. Set it to cpu, or"
            " check the driver (`nvidia-smi`) and that torch is built for CUDA."
        )
        return [Problem("/trainer.accelerator", text)]
    takes_gpus = wants_gpus or (accelerator in ("auto", None) and there > 0)
    if not takes_gpus and accelerator not in ("cpu", "auto", None):
        return []
    most = there if takes_gpus else most_processes()
    asked = max((int(each) + 1 for each in devices), default=0) if isinstance(devices, list) else devices
    if not str(asked).isdigit() or int(asked) <= most or (isinstance(devices, list) and not takes_gpus):
        return []  # Lightning says that a CPU takes no list
    if not takes_gpus:
        text = (
            f"expected at most {most} processes on the {os.cpu_count() or 1} cores of this machine, but got {devices}. Each"
            f" holds a copy of student and teacher. Set it to {most} or less."
        )
    elif isinstance(devices, list):
        text = f"expected places from 0 to {most - 1}, the GPUs of this machine, but got {devices}. Name others."
    else:
        text = (
            f"expected at most {most}, the GPUs of this machine, but got {devices}. Set it to {most}, or to -1 for all."
        )
    return [Problem("/trainer.devices", text)]
