"""Optimiser and scheduler, tried on one small weight: what they refuse is known before a model is loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from cfg_distill.errors import ConfigError, Problem

OptimizerCallable = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerCallable = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
STEPS = 3
"""Steps of the rehearsal: a division by a length of zero comes at the first or second one."""
_REFUSALS = (ValueError, ArithmeticError, IndexError)


def problems_of_steps(
    optimizer: OptimizerCallable,
    scheduler: SchedulerCallable,
) -> list[Problem]:
    """What optimiser and scheduler refuse, or would make of a weight in the first steps.

    Args:
        optimizer: from parameters to an optimiser.
        scheduler: from the optimiser to a scheduler.

    Example:
        >>> from functools import partial
        >>> wrong = partial(torch.optim.SGD, lr=-1.0)
        >>> print(*problems_of_steps(wrong, lambda made: torch.optim.lr_scheduler.ConstantLR(made)))
        Key `optimizer`: expected settings that it takes, but it refuses them: Invalid learning rate: -1.0. Change that one.
    """
    weight = nn.Parameter(torch.ones(2, 2))  # a matrix: some optimisers take no others
    try:
        made = optimizer([weight])
    except _REFUSALS as error:
        return [_refused("optimizer", error)]
    if any(group.get("lr") is None for group in made.param_groups):
        text = "expected a number, which the scheduler multiplies, but it is empty. Set it; for transformers' Adafactor also"
        return [Problem("optimizer.init_args.lr", f"{text} `relative_step: false`.")]
    if found := _refused_step(made, weight):
        return [found]
    try:
        schedule = scheduler(made)
        for _ in range(STEPS):
            rates = [group["lr"] for group in made.param_groups]
            if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
                text = f"expected learning rates of at least 0, but it makes {rates}. Change its numbers."
                return [Problem("scheduler", text)]
            if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                text = (
                    "expected a scheduler that steps with the optimiser, but ReduceLROnPlateau waits for a metric. Take"
                )
                return [Problem("scheduler", f"{text} LinearLR or CosineAnnealingLR, say.")]
            made.step()  # before the scheduler's, which else complains of the order
            schedule.step()
    except _REFUSALS as error:
        return [_refused("scheduler", error)]
    return []


def _refused_step(made: torch.optim.Optimizer, weight: nn.Parameter) -> Problem | None:
    """Of an optimiser that asks for the loss again, as LBFGS does, or for another kind of gradient."""
    text = f"expected an optimiser that steps once the gradient is there, but {type(made).__name__}"
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        return Problem("optimizer", f"{text} computes the loss again. Take AdamW, say.")
    weight.grad = torch.ones_like(weight)  # an optimiser may divide by its length
    try:
        made.step()
    except RuntimeError as error:
        return Problem("optimizer", f"{text} refuses it: {str(error).rstrip('.')}. Take AdamW, say.")
    return None


def optimizer_of(optimizer: OptimizerCallable, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of all weights that train.

    Raises:
        ConfigError: it takes weights of other shapes, as Muon takes matrices alone.
    """
    try:
        return optimizer(weights)
    except _REFUSALS as error:
        text = f"expected an optimiser of every weight that trains, but it refuses them: {str(error).rstrip('.')}."
        problem = Problem("model.optimizer", f"{text} Take AdamW, say, or train an adapter: it has matrices alone.")
        raise ConfigError([problem]) from error


def _refused(key: str, error: Exception) -> Problem:
    return Problem(
        key, f"expected settings that it takes, but it refuses them: {str(error).rstrip('.')}. Change that one."
    )
