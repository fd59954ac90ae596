"""Throughput: generated tokens per second, where the time goes, and the peak of memory."""

from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.evaluation.measure import now
from cfg_distill.files import resident_peak


class Throughput(Callback):
    """Log how fast samples are made and learnt from. It changes nothing in the model.

    Every training step logs, over the last ``window`` batches:

    - ``throughput/tokens_per_second``: generated positions of all processes, up to and including end tokens, over the
      time of whole batches. Lightning's ThroughputMonitor counts the batch instead, which here is a list of prompts.
    - ``throughput/seconds_forward``, ``_backward``, ``_optimizer``, ``_batch``: of one batch, its micro-batches added
      up. Forward is the rollout and the scoring by both models, and what is measured of gradients.
    - ``throughput/memory_gib``: the peak so far, of the GPU, or of the process where there is none.

    On a GPU the phases are told apart by waiting for the device before and after each backward pass and at both ends of a
    batch, which costs next to nothing beside a rollout.

    Args:
        window: batches to average over.
    """

    def __init__(self, window: int = 20) -> None:
        self.window = window
        self._batches: deque[dict[str, float]] = deque(maxlen=max(window, 1))
        self._seconds: dict[str, float] = {}
        self._start = self._last = 0.0

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        return [] if self.window >= 1 else [Problem("window", f"expected at least 1 batch, but got {self.window}.")]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if problems := self.problems():
            raise ConfigError([problem.under(type(self).__name__) for problem in problems])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seconds = {}
        self._start = self._last = now(pl_module.device)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._lap("forward", pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap("backward", pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._lap("optimizer", pl_module)
        if set(self._seconds) != {"forward", "backward", "optimizer"}:
            return
        tokens = float(outputs["samples"].rollout.mask_BGKT.any(2).sum())
        self._batches.append({"tokens": tokens, "batch": self._last - self._start, **self._seconds})
        totals = {name: sum(batch[name] for batch in self._batches) for name in self._batches[0]}
        rate = totals["tokens"] / totals["batch"]
        pl_module.log("throughput/tokens_per_second", rate, on_step=True, sync_dist=True, reduce_fx="sum")
        for name in ("forward", "backward", "optimizer", "batch"):
            pl_module.log(f"throughput/seconds_{name}", totals[name] / len(self._batches), on_step=True)
        pl_module.log("throughput/memory_gib", peak_memory_gib(pl_module.device), on_step=True)

    def _lap(self, phase: str, module: LightningModule) -> None:
        """The time since the last reading belongs to this phase."""
        before, self._last = self._last, now(module.device)
        self._seconds[phase] = self._seconds.get(phase, 0.0) + self._last - before


def peak_memory_gib(device: torch.device) -> float:
    """The most memory so far: what torch held on a GPU, else the resident set of the process (NaN on Windows)."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()
    return peak / 2**30
