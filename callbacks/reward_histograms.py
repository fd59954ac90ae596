"""RewardHistograms: how the rewards and the advantages of training are distributed."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cfg_distill.callbacks.media import sinks
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_counts


class RewardHistograms(Callback):
    """Log histograms of the rewards and advantages of a batch: ``rewards/NAME`` and ``advantages/NAME`` of each loss.

    A mean hides two things that a histogram shows: a few samples that earn everything, and groups that earn the same, whose
    advantage is 0. TensorBoard has histograms; other loggers get a picture. Rank 0 logs its own samples.

    Example::

        trainer:
          callbacks:
            histograms: {class_path: cfg_distill.callbacks.RewardHistograms, init_args: {every_n_steps: 20}}

    Args:
        every_n_steps: optimiser steps between two of them.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._last = 0

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        return problems_of_counts(every_n_steps=self.every_n_steps)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if problems := self.problems():
            raise ConfigError([problem.under(type(self).__name__) for problem in problems])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # Several batches may make one step.
        if step == self._last or step % self.every_n_steps or not trainer.is_global_zero:
            return
        self._last = step
        for sink in sinks(trainer):
            for kind in ("rewards", "advantages"):
                for name, values_BG in outputs[kind].items():
                    sink.histogram(f"{kind}/{name}", values_BG.detach().float().cpu(), step)
