"""A signal ends a fit at the end of its step, with a checkpoint: nothing is lost, and nothing differs when it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from types import FrameType
from typing import Any, Self

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from cfg_distill.errors import Stopped

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The signals that ask for an end."""
AGAIN_SECONDS = 0.5
"""Two interrupts within this time are one: a terminal and a wrapper may both pass it on."""


class Signals:
    """Notes the first signal that asks for an end; a second Ctrl-C ends the process at once.

    A thread reads the signals. So the second Ctrl-C is heard even where Python's main thread waits inside a library, such as
    for another process that hangs. Outside of training nothing is lost by stopping, so that there the first signal is enough.

    Attributes:
        first: the number of the first signal; 0 while there is none.
        training: whether the main thread is to finish its step.
    """

    def __init__(self) -> None:
        self.first = 0
        self.training = False
        self._noted = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in ASKING}
        self.install()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)  # the thread ends

    def install(self) -> None:
        """Take the signals, also from Lightning, whose own handler waits for other processes while it handles one."""
        for number in ASKING:
            signal.signal(number, self._in_main_thread)

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if not self.training:
            raise Stopped(number)

    def _listen(self) -> None:
        while received := os.read(self._read, 1):
            if (number := received[0]) not in ASKING:
                continue
            now = time.monotonic()
            if not self.first:
                self.first, self._noted = number, now
                if self.training:
                    name = signal.Signals(number).name
                    _say(
                        f"{name}: this step is finished and saved, then the fit stops. Ctrl-C once more stops at once."
                    )
            elif number == signal.SIGINT and now - self._noted > AGAIN_SECONDS:
                os._exit(128 + number)
        os.close(self._read)


class StopAtStepEnd(Callback):
    """Save the last step of a fit, and end it after a signal: finish the step, save, then raise :class:`Stopped`.

    Lightning's ModelCheckpoint saves every so many steps, and leaves out those behind the last of them: ``last.ckpt`` of 120
    steps, saved every 25, would be of step 100. Here it is of the last step.

    It stands behind all other callbacks, those that save among them. Any rank may have got the signal; all of them stop.

    A step that an exception ends is not saved: loaders, running means and random numbers have moved by then and the weights
    have not, so a run resumed from there would be another one. Such a run goes on from its last checkpoint.

    While a validation runs, the checkpoint is one of before the validation, which is repeated when the run goes on.

    Args:
        signals: what asks for the end.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.saved = False
        self._stopping = 0
        self._asked = False
        self._last_step = -1
        self._loops: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for saver in savers(trainer):
            saver.save_on_exception = False
            saver.save_last = bool(saver.save_last)  # a link would be to the last one that was due, of an earlier step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.install()
        self.signals.training = True
        if self.signals.first:  # between the last look at it and now
            raise Stopped(self.signals.first)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._put_off(trainer):
            return  # gradients are not saved
        if self._asked:
            self._asked, trainer.should_stop = False, True
        self._loops = None
        if number := self._agreed(trainer):
            self._save(trainer, number)
        elif trainer.should_stop or trainer.global_step == trainer.max_steps:
            self._last_step = trainer.global_step
            # Now: at the end of training Lightning counts the epoch as done. Others may save behind a validation of this step.
            save_last(trainer, in_place_of_others=False)

    # Lightning logs the values of a step after the hook above: the run ends in whatever hook comes next.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()
        if not trainer.sanity_checking and self.signals.training:
            self._loops = deepcopy(trainer.fit_loop.state_dict())

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking and self.signals.training and (number := self._agreed(trainer)):
            self._save(trainer, number)
            self._end()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loops = None
        if not trainer.sanity_checking and self.signals.training:
            self._put_off(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.training = False
        if self._last_step != trainer.global_step:  # a validation or an epoch was the end
            save_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.training = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._loops is not None:
            checkpoint["loops"]["fit_loop"] = self._loops

    def _put_off(self, trainer: Trainer) -> bool:
        """Let another callback's wish to stop wait for the batches of the step; whether some are still to come."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            return False
        self._asked = self._asked or trainer.should_stop
        trainer.should_stop = False
        return True

    def _agreed(self, trainer: Trainer) -> int:
        """The signal that some rank has got; 0 without one. All ranks call this at the same moment."""
        if trainer.world_size == 1:
            return self.signals.first
        number = torch.tensor(self.signals.first, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number)

    def _save(self, trainer: Trainer, number: int) -> None:
        self._stopping = number
        self.saved = save_last(trainer)

    def _end(self) -> None:
        if self._stopping:
            self.signals.training = False
            raise Stopped(self._stopping)


def savers(trainer: Trainer) -> list[ModelCheckpoint]:
    """The callbacks that save checkpoints."""
    return [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]


def save_last(trainer: Trainer, in_place_of_others: bool = True) -> bool:
    """Write ``last.ckpt`` where a callback is to have one and it is not of this step; whether there is such a callback.

    Args:
        trainer: in a fit.
        in_place_of_others: whether Lightning then takes all checkpoints of this step for written.
    """
    lasting = [saver for saver in savers(trainer) if saver.save_last and not trainer.fast_dev_run]  # type: ignore[attr-defined]
    for saver in lasting:
        before = saver._last_global_step_saved
        if before != trainer.global_step or not saver.last_model_path:
            saver._save_last_checkpoint(trainer, saver._monitor_candidates(trainer))
            if not in_place_of_others:
                saver._last_global_step_saved = before
    return bool(lasting)


# SLURM


def requeue(number: int, call: Callable[[list[str]], int] = subprocess.call) -> str:
    """Ask SLURM to start this job anew, if the signal is the one that announces its end; returns what was asked.

    Args:
        number: of the signal.
        call: runs a command.
    """
    job = slurm_job()
    if not (SLURMEnvironment.detect() and job and number == signal.SIGUSR1):
        return ""
    try:
        code = call(["scontrol", "requeue", job])
    except OSError as error:
        return f"`scontrol requeue {job}` cannot be run: {error.strerror}."
    return f"SLURM starts job {job} anew." if code == 0 else f"`scontrol requeue {job}` ended with exit code {code}."


def slurm_job() -> str:
    """The name of this SLURM job; empty where there is none."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
