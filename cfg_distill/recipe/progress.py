"""The progress bar of a fit: optimiser steps, not epochs, with the time left."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StepProgress(ProgressBar):
    """Steps done of ``max_steps``, time gone and left, and the logged values of the progress bar.

    Lightning's own bar shows an epoch, which for a few dozen prompts is over in seconds and says nothing of the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._bar: Progress | None = None

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._shown:
            return
        self._bar = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left {task.fields[values]}"),
        )
        self._bar.start()
        self._bar.add_task("training", total=trainer.max_steps, completed=trainer.global_step, values="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            values = self.get_metrics(trainer, pl_module)
            values.pop("v_num", None)
            shown = " ".join(f"{name}={value:.3g}" for name, value in values.items() if isinstance(value, float))
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, values=shown)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._describe("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._describe("training")

    def _describe(self, description: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=description)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
