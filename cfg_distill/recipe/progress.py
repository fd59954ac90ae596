"""The progress of a fit: a bar on a terminal, plain lines elsewhere; optimiser steps, not epochs, with the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cfg_distill.files.logs import clock


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


class StepLines(Callback):
    """One plain line per logging interval, for a log file: a job that runs for hours is not blind.

    Some steps measure the ratio of gradients. A line has it when it was measured since the line before.

    Example::

        step 40/120 loss 0.05 kl/token 0.031 reward 0.48 ratio 0.6 2.1 s/step 2:48 left

    Args:
        every: optimiser steps between lines; 0 for none.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._began = self._last = (0, 0.0)  # step and time: of the start of this process, and of the last line
        self._ratios: dict[str, float] = {}  # of the last line: Lightning keeps a value until there is another one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._last = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self._every
        due = every and (step % every == 0 or step == trainer.max_steps)
        if not due or step == self._last[0] or not trainer.is_global_zero:
            return
        now = time.monotonic()
        pace = (now - self._last[1]) / (step - self._last[0])
        words = [f"step {step}/{trainer.max_steps}" if trainer.max_steps > 0 else f"step {step}"]
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        ratios = {name: value for name, value in logged.items() if _is(name, "gradient_ratio/", "")}
        known, self._ratios = self._ratios, ratios
        shown = shown_values({name: value for name, value in logged.items() if known.get(name) != value})
        words += [f"{name} {value:.3g}" for name, value in shown.items()]
        words.append(f"{pace:.2g} s/step" if pace < 100 else f"{pace:.0f} s/step")
        if trainer.max_steps > 0:
            # Validations take their share of the time left, too: the pace since the start, not that of this line.
            left = (trainer.max_steps - step) * (now - self._began[1]) / (step - self._began[0])
            words.append(f"{clock(left)} left")
        self._last = step, now
        print(" ".join(words), flush=True)


def shown_values(logged: Mapping[str, Any]) -> dict[str, float]:
    """The logged values that a person watches, by short names.

    Two of a kind are told apart by the names of their losses.

    Example:
        >>> shown_values({"train/loss": 0.05, "train/kl_per_token": 0.03, "train/kl": 1.0, "gradient_ratio/diversity": 0.6})
        {'loss': 0.05, 'kl/token': 0.03, 'ratio': 0.6}
        >>> shown_values({"train/a_reward": 0.5, "train/a_per_token": 0.1, "train/b_reward": 0.6})
        {'a reward': 0.5, 'b reward': 0.6}
    """
    shown = {"loss": logged["train/loss"]} if "train/loss" in logged else {}
    for key, value in logged.items():
        if _is(key, "train/", "_per_token") and f"train/{_middle(key)}_reward" not in logged:
            shown[f"{_middle(key)}/token"] = value
    for kind, start, end in (("reward", "train/", "_reward"), ("ratio", "gradient_ratio/", "")):
        found = {_middle(key, start, end): value for key, value in logged.items() if _is(key, start, end)}
        shown |= {kind if len(found) == 1 else f"{name} {kind}": value for name, value in found.items()}
    return {name: float(value) for name, value in shown.items()}


def _is(key: str, start: str, end: str) -> bool:
    return key.startswith(start) and key.endswith(end)


def _middle(key: str, start: str = "train/", end: str = "_per_token") -> str:
    return key.removeprefix(start).removesuffix(end)
