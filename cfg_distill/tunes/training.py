"""Common to the trainings of the shipped models: the schedule, and writing the best weights as a folder."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import OptimizerCallable

from cfg_distill.errors import ConfigError, Problem, problems_of_counts


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate: linear to 1 in ``warmup`` steps, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))


class FolderTraining(lightning.LightningModule, ABC):
    """Trains a model that :meth:`write` writes at the end of a fit.

    The weights are the best of the trainer's ModelCheckpoint; without one, the last.

    Args:
        optimizer: of the parameters that are trained.
        out: the folder to write.
        overwrite: write even when the folder holds a model.
        warmup_steps: steps until the learning rate has risen to its full value.
        decay_steps: the step at which the learning rate has fallen to 0.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        out: str = "runs/tunes/model",
        overwrite: bool = False,
        warmup_steps: int = 50,
        decay_steps: int = 1000,
    ) -> None:
        super().__init__()
        self.optimizer, self.out, self.overwrite = optimizer, out, overwrite
        self.warmup_steps, self.decay_steps = warmup_steps, decay_steps

    @abstractmethod
    def write(self, folder: str) -> None:
        """Write the model that was trained."""

    def trainable(self) -> Iterable[Any]:
        """The parameters that the optimiser moves, or groups of them."""
        return self.parameters()

    def problems(self) -> list[Problem]:
        """What is wrong with the settings, found before the model is made."""
        return problems_of_counts(decay_steps=self.decay_steps)

    def setup(self, stage: str) -> None:
        if problems := self.problems():
            raise ConfigError([problem.under("model.init_args") for problem in problems])

    def on_fit_start(self) -> None:
        if not self.overwrite and (Path(self.out) / "config.json").exists():
            raise ConfigError(
                Problem(
                    "model.init_args.out",
                    f"expected a folder without a model, but `{self.out}` holds one. Name another, or set"
                    " `@/model.init_args.overwrite` to true.",
                )
            )

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trainable())
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.warmup_steps, self.decay_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        callback = self.trainer.checkpoint_callback
        best = callback.best_model_path if isinstance(callback, ModelCheckpoint) else ""
        if best:
            self.load_state_dict(torch.load(best, map_location=self.device, weights_only=True)["state_dict"])
        self.write(self.out)
