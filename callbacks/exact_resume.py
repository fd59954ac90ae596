"""ExactResume: a resumed run draws the random numbers that an unbroken one would, and misses no validation."""

import random
import sys
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from cfg_distill.checkpoints import RANDOM_STATES


@runtime_checkable
class _Dealt(Protocol):
    """Data whose place in the epoch is the same for any number of processes: :class:`cfg_distill.data.PromptData`."""

    def upcoming(self) -> Any: ...


@runtime_checkable
class TakesSettings(Protocol):
    """A module that gives a restored optimiser what the recipe has changed."""

    def take_changed_settings(self) -> None:
        """Do so; nothing the second time."""


class ExactResume(Callback):
    """Save the state of every random number generator, of every process, and go on from it.

    Lightning's checkpoints hold none of it. With this callback, and a data loader that goes on in the middle of an
    epoch (:class:`cfg_distill.data.PromptData` has one), a run stopped after a checkpoint and resumed from it takes the
    same steps as one never stopped: on one device to the bit. Rollouts do not depend on it: the random numbers of a sample
    are made of the recipe's seed, the step, the place of its prompt in the batch of all devices, and its number. Dropout, and
    whatever a reward or a callback of yours draws, do.

    A checkpoint holds the states of python, numpy, torch and the CUDA device of all processes, as they were at the end
    of the last batch, behind all callbacks that save nothing, wherever this one stands in the list. Validation leaves
    the generators as it found them: whether it has run or not when a run is resumed, training draws the same numbers.

    A run may go on with another number of processes, prompts per batch, or accumulated batches. With as many prompts per step
    as before it takes the steps that it would have taken, up to rounding and these states: they belong to processes, and are
    left as they are when the number of processes has changed. With more or fewer prompts per step it goes on at the same
    place of the epoch, rounded down to a whole step. All this needs :class:`cfg_distill.data.PromptData`: a loader of your own
    carries no place over. The callback says what is kept.

    A loader that has no generator of its own draws a number from torch whenever an iterator of it is made, between
    epochs: give it one (``DataLoader(..., generator=torch.Generator())``), as :class:`cfg_distill.data.PromptData`
    does.

    A checkpoint that is written at the end of a step comes before the validation that is due there. Lightning takes that
    validation for done when the run goes on. This callback notes that it is due, and runs it first.

    Lightning logs the values of a step after its checkpoint. So a process that is killed in between would leave a gap in the
    curve. This callback puts these values into the checkpoint, and a resumed run logs them again.

    The states of all processes are gathered. So in several processes there is no checkpoint while an exception ends the fit:
    the other processes may wait elsewhere, and the exception itself is raised.

    It cannot help a checkpoint taken between the micro-batches of one accumulated step: gradients are not saved.

    Example::

        trainer:
          callbacks:
            - class_path: cfg_distill.callbacks.ExactResume
    """

    def __init__(self) -> None:
        self._batch_end: dict[str, Any] | None = None
        self._loaded: list[dict[str, Any]] | None = None
        self._epoch_then: tuple[float, int] | None = None
        self._was_limited = False
        self._trainer: Trainer | None = None
        self._validation_is_due = False
        self._is_logged = True
        self._values: dict[str, float] = {}
        self._values_step = 0

    @property
    def state_key(self) -> str:
        """The same for a subclass, so that a resumed run knows that its states are kept."""
        return RANDOM_STATES

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        # Other callbacks may draw: the states are restored before the first of them, and taken behind the last one.
        others = [each for each in trainer.callbacks if each is not self and not isinstance(each, _Restoring)]  # type: ignore[attr-defined]
        place = next((n for n, each in enumerate(others) if isinstance(each, Checkpoint)), len(others))
        trainer.callbacks = [_Restoring(self), *others[:place], self, *others[place:]]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is None:
            return
        if self._values:
            for logger in trainer.loggers:
                logger.log_metrics(self._values, self._values_step)
            self._values = {}
        epoch = _epoch_of(trainer, self._was_limited)
        then = self._epoch_then or epoch
        if said := _said(len(self._loaded), then, epoch, trainer):
            rank_zero_info(said)
        _go_on_in_epoch(trainer, then[0], epoch)
        if len(self._loaded) == trainer.world_size:
            self._batch_end = self._loaded[trainer.global_rank]
        else:
            self._loaded = None
        if self._validation_is_due:
            # Lightning asks the module behind all callbacks, and this validation may save a checkpoint.
            if isinstance(pl_module, TakesSettings):
                pl_module.take_changed_settings()
            _validate(trainer)

    def restore(self) -> None:
        """Restore the loaded states, once. Called as the first batch begins."""
        # Not before: a resumed run makes the iterators of its loaders anew, and may or may not validate first.
        if self._loaded is not None and self._batch_end is not None:
            set_random_states(self._batch_end)
        self._loaded = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch_end = random_states()
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        self._validation_is_due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        # Callbacks behind this one may log in this hook too: the values are read when a checkpoint asks for them.
        self._is_logged = loop.epoch_loop._should_accumulate()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_logged = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_logged = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation_is_due = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._batch_end is not None:
            set_random_states(self._batch_end)

    def state_dict(self) -> dict[str, Any]:
        own = self._batch_end or random_states()
        world = self._trainer.world_size if self._trainer is not None else 1
        every: list[Any] = [own] * world
        if world > 1:
            if (reason := sys.exception()) is not None:
                raise reason
            torch.distributed.all_gather_object(every, own)
        state = {"processes": every, "validation_is_due": self._validation_is_due}
        if self._trainer is None:
            return state
        values = {} if self._is_logged else _values_of_step(self._trainer)
        step = self._trainer.fit_loop.epoch_loop._batches_that_stepped if values else 0
        return state | {"dealt": _epoch_of(self._trainer), "values": values, "values_step": step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["processes"]
        # Older checkpoints say nothing of these.
        self._validation_is_due = state_dict.get("validation_is_due", False)
        self._epoch_then = state_dict.get("dealt", state_dict.get("epoch"))
        self._was_limited = "dealt" not in state_dict
        self._values, self._values_step = state_dict.get("values", {}), state_dict.get("values_step", 0)


class _Restoring(Callback):
    """The first of all callbacks: in its place the states are restored.

    Args:
        resume: that holds them.
    """

    def __init__(self, resume: ExactResume) -> None:
        self.resume = resume

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.resume.restore()


def _values_of_step(trainer: Trainer) -> dict[str, float]:
    """What Lightning will log of this step."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    values = {name: float(value) for name, value in connector.metrics["log"].items()}
    return values | {"epoch": float(trainer.current_epoch)}  # as Lightning does


def _epoch_of(trainer: Trainer, limited: bool = False) -> tuple[float, int]:
    """The batches that a process is dealt in an epoch (infinite where a loader does not say), and those that make a step.

    ``limit_train_batches`` does not count, as it does not for the place of the loader. Older checkpoints have it in their
    number: ``limited``.
    """
    combined = trainer.fit_loop._combined_loader
    loaders = [] if combined is None or limited else combined.flattened
    try:
        (batches,) = map(len, loaders)
    except (TypeError, ValueError):  # a loader without a length, none, or several
        return trainer.num_training_batches, trainer.accumulate_grad_batches
    return batches, trainer.accumulate_grad_batches


def _said(processes: int, epoch_then: tuple[float, int], epoch_now: tuple[float, int], trainer: Trainer) -> str:
    """What is kept and what is not, for a run that goes on with another number of processes or of prompts per step."""
    now, then = trainer.world_size, processes
    steps_now, steps_then = (batches / accumulate for batches, accumulate in (epoch_now, epoch_then))
    if now == then and steps_now == steps_then:
        return ""
    kept, lost = ["weights, averages, optimiser and schedule", "the step"], []
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, _Dealt):  # Lightning gives every process the state that the loader of the first one had
        kind = f"`{type(data).__name__}`" if data is not None else "the loader"
        lost.append(f"the place in the epoch and the prompts of a step, which {kind} does not carry over")
    elif steps_now == steps_then:
        kept += ["the place in the epoch", "the prompts and the samples of every step"]
    else:
        kept.append("the place in the epoch")
        lost.append(f"the prompts per step: an epoch has {steps_now:g} steps, where it had {steps_then:g}")
    if now != then:
        lost.append("the random states of dropout, and of rewards that draw")
    processes_now = f"{now} process{'es' * (now > 1)}"
    return f"Going on with {processes_now}, where {then} began. Kept: {', '.join(kept)}. Not kept: {'; '.join(lost)}."


def _go_on_in_epoch(trainer: Trainer, batches_then: float, epoch_now: tuple[float, int]) -> None:
    """Count the batches of this epoch as a run would that had been split like this from the beginning.

    Lightning goes on from the number of batches of the run before; the loader from the place in the epoch
    (:class:`cfg_distill.data.batches.PromptBatches` rounds it in the same way).
    """
    batches_now, accumulate_now = epoch_now
    if batches_now == batches_then or float("inf") in (batches_now, batches_then):
        return
    current: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    done = int(batches_now * current.ready // batches_then) // accumulate_now * accumulate_now
    open_ = current.ready - current.completed  # 1 for a checkpoint that is written before its batch counts as completed
    current.ready = current.started = current.processed = done
    current.completed = done - open_


def _validate(trainer: Trainer) -> None:
    """Run the validation of the last step, as the training loop does behind a step."""
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
    first = connector._first_loop_iter
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def random_states() -> dict[str, Any]:
    """The states of this process's generators, as plain values and tensors: checkpoints load with ``weights_only``."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached_gaussian),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restore the states of :func:`random_states`; CUDA's only where there is a device."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
