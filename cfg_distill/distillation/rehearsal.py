"""Optimiser and scheduler, tried on one small weight: what they refuse is known before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from cfg_distill.errors import Problem

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
            made.step()  # without a gradient: nothing moves, and the scheduler does not complain of its order
            schedule.step()
    except _REFUSALS as error:
        return [_refused("scheduler", error)]
    return []


def _refused(key: str, error: Exception) -> Problem:
    return Problem(
        key, f"expected settings that it takes, but it refuses them: {str(error).rstrip('.')}. Change that one."
    )
