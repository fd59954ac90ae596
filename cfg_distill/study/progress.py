"""How far a fit is, in a file that the study reads."""

import json
import math
import os
from pathlib import Path
from typing import Any

import lightning as L

from cfg_distill.files import write_text
from cfg_distill.study.worker import peak_memory_mb


class WriteProgress(L.Callback):
    """Write the optimiser steps that are done and planned (0 where only time ends the fit) into a small JSON file after each.

    A study adds this callback to its fits; a fit of your own shows the usual bar. A study that is killed cannot stop its
    fits, so a fit stops by itself when its study is gone. Otherwise the study, started again, would have two fits in one
    folder.

    Args:
        file: where to write.
        study: the process id of the study.
    """

    def __init__(self, file: str, study: int) -> None:
        self.file = Path(file)
        self.study = study

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop_without_study(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._write(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A fit that was asked to end does not come here, although its exit code may be 0.
        self._write(trainer, finished=True)

    def _write(self, trainer: L.Trainer, finished: bool = False) -> None:
        if not trainer.is_global_zero:
            return
        self._stop_without_study(trainer)
        total = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
        # Lightning estimates infinity, or -1 for data without a length, where neither steps nor epochs end the fit.
        total = int(total) if 0 < total < math.inf else 0
        progress = {"done": trainer.global_step, "total": total, "peak_memory_mb": peak_memory_mb()}
        progress["finished"] = finished
        write_text(self.file, json.dumps(progress), durable=False)

    def _stop_without_study(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and os.getppid() != self.study:
            raise SystemExit("The study that started this fit is gone, so the fit stops. Run the study again to go on.")
