"""StudentEMA: validate with a moving average of the student's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cfg_distill.callbacks.weights import aliases
from cfg_distill.checkpoints import AVERAGES, student_weights, write_student
from cfg_distill.checkpoints.shards import sharded_like
from cfg_distill.errors import (
    ConfigError,
    Context,
    Problem,
    problems_of_counts,
    problems_of_not_negative,
    problems_of_shares,
)


class StudentEMA(Callback):
    r"""Keep a moving average of the student, and of nothing else, and validate with it.

    .. math:: \bar\theta \leftarrow m_t \bar\theta + (1 - m_t)\, \theta, \qquad m_t = \min(m, \tfrac{1 + t}{10 + t})

    with t the updates so far; the first update copies the weights. Averages are float32 whatever the student is, of its
    trainable parameters and floating buffers: teacher and embedders are neither copied nor saved.

    Updates count optimiser steps, not batches. From the first update on, the averages stand in the student while it is
    validated, also after an exception inside; before it nothing is swapped. Training always goes on with the live
    weights, and the fit ends with them: ``cfg-distill export --weights ema`` and :class:`CheckpointMerging` take the
    averages from the checkpoint or from here.

    A checkpoint holds the live weights in ``state_dict`` and the averages in ``callbacks["StudentEMA"]["weights"]``,
    both under the same names. A sharded student (FSDP2) is averaged shard by shard.

    Example::

        trainer:
          callbacks:
            - class_path: cfg_distill.callbacks.StudentEMA
              init_args: {decay: 0.99}

    Args:
        decay: m, in [0, 1).
        update_every: optimiser steps between updates.
        start_step: optimiser steps before the first update.
        warmup: begin with the smaller :math:`m_t`, so that the first weights are soon forgotten; else m throughout.
    """

    def __init__(self, decay: float = 0.999, update_every: int = 1, start_step: int = 0, warmup: bool = True) -> None:
        self.decay = decay
        self.update_every = update_every
        self.start_step = start_step
        self.warmup = warmup
        self.updates = 0
        self._step = 0
        self._averages: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}
        self._placed = True

    @property
    def state_key(self) -> str:
        """The same for a subclass, so that an export finds the averages."""
        return AVERAGES

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        found = problems_of_shares(decay=self.decay) + problems_of_counts(update_every=self.update_every)
        return found + problems_of_not_negative(start_step=self.start_step)

    # When

    def should_update(self, step: int) -> bool:
        """Whether to update after this optimiser step, counted from 1. Override for another schedule."""
        past = step - self.start_step
        return past >= 1 and (past - 1) % self.update_every == 0

    def decay_at(self, updates: int) -> float:
        """The decay of the next update, after this many."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    # What

    def averages(self, module: LightningModule) -> dict[str, Tensor]:
        """The averages, named as in a checkpoint, float32; empty before the first update."""
        self._place(module)
        return {name: self._averages[first] for name, first in self._names(module).items()} if self.updates else {}

    def update(self, module: LightningModule) -> None:
        """Take the student's weights into the average."""
        self._place(module)
        with self._plain_tensors():
            weights = student_weights(module)
            firsts = _firsts(weights)
            if not self.updates:
                self._averages = {name: weights[name].float().clone() for name in firsts}
            else:
                share = 1 - self.decay_at(self.updates)
                for name, average in self._averages.items():
                    new = weights[name].float()
                    if average.ndim < 2:  # a bias of minus infinity has no mean with itself
                        average.copy_(torch.where(average == new, average, torch.lerp(average, new, share)))
                    else:
                        average.lerp_(new, share)
        self.updates += 1

    def swap_in(self, module: LightningModule) -> None:
        """Let the averages stand in the student, unless they do or there are none."""
        if self._live or not self.updates:
            return
        self._place(module)
        with self._plain_tensors():
            weights = student_weights(module)
            self._live = {name: weights[name].clone() for name in self._averages}
            write_student(module, self._averages)

    def swap_out(self, module: LightningModule) -> None:
        """Give the student its live weights back, to the bit, if the averages stand there."""
        if not self._live:
            return
        with self._plain_tensors():
            write_student(module, self._live)
        self._live = {}

    # The life of a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if problems := self.problems():
            raise ConfigError([problem.under(type(self).__name__) for problem in problems])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Under gradient accumulation most batches end without a step of the optimiser.
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            if self.should_update(self._step):
                self.update(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.swap_out(pl_module)

    # State

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "step": self._step, "weights": dict(self._averages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self._step = state_dict["updates"], state_dict["step"]
        self._averages = dict(state_dict["weights"])
        self._live = {}
        # The student may be neither on its device nor sharded yet.
        self._placed = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        names = self._names(pl_module)
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved and self.updates:
            saved["weights"] = {name: saved["weights"][first] for name, first in names.items()}
        if self._live:
            # Saved in the middle of a validation: `state_dict` is the live student all the same.
            state = checkpoint["state_dict"]
            for name, first in names.items():
                if name in state:
                    state[name] = self._live[first]

    def _names(self, module: LightningModule) -> dict[str, str]:
        return aliases(student_weights(module))

    def _place(self, module: LightningModule) -> None:
        if not self._placed:
            with self._plain_tensors():
                weights = student_weights(module)
                firsts = _firsts(weights)
                missing = [name for name in firsts if name not in self._averages]
                if self.updates and missing:
                    raise ConfigError(
                        f"The checkpoint's StudentEMA fits another student: it lacks {', '.join(missing[:5])}."
                    )
                loaded = self._averages if self.updates else {}
                self._averages = {name: sharded_like(loaded[name], weights[name]).float().clone()
                                  for name in firsts if name in loaded}  # fmt: skip
        self._placed = True

    @staticmethod
    @contextmanager
    def _plain_tensors() -> Iterator[None]:
        # Lightning validates in inference mode; tensors made there could not be updated while training.
        with torch.inference_mode(False), torch.no_grad():
            yield


def _firsts(weights: dict[str, Tensor]) -> list[str]:
    """One name a tensor, in one order on every process: what is sharded is gathered in that order."""
    return list(dict.fromkeys(aliases(weights).values()))
