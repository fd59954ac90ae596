"""NaN and infinity never reach the optimiser, nor a checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cfg_distill.checkpoints import student_weights
from cfg_distill.checkpoints.shards import whole
from cfg_distill.errors import ConfigError, Problem

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of the gradient over all parameters, a scalar: not finite exactly where some gradient is not."""
    return whole(get_total_norm([p.grad for p in parameters if p.grad is not None]))


def problems_of_gradient(
    sums: Mapping[str, Tensor], rewards: Mapping[str, Tensor], step: int, record: str
) -> list[Problem]:
    """Which loss or reward made the gradient of a step NaN or infinite.

    Args:
        sums: the unweighted sum of each loss over the batches of all devices that make up the step.
        rewards: the sum of the rewards of each loss that has one.
        step: optimiser steps before this one.
        record: a sentence that says where the samples are.
    """
    unmoved = f"Step {step} was not taken, so the student is as it was before it.{record}"
    found = [
        Problem(
            f"losses.{name}",
            f"expected a finite {what}, but got {float(value)} in step {step}. {unmoved} Look at what the loss reads: its"
            " reward or embedder, its weight, and the logits of student and teacher. Then resume the run.",
        )
        for name, what, value in not_finite_terms(sums, rewards)
    ]
    if found:
        return found
    values = ", ".join(f"`{name}` {float(value):.4g}" for name, value in sums.items())
    return [
        Problem(
            "",
            f"The gradient of step {step} is NaN or infinite, though each loss is finite (sums: {values}). {unmoved} Lower"
            " `@/model.optimizer.init_args.lr` or the weights of `@/model.losses`, set `@/trainer.gradient_clip_val`, or use"
            " `@/trainer.precision` 32-true. Then resume the run.",
        )
    ]


def not_finite_terms(sums: Mapping[str, Tensor], rewards: Mapping[str, Tensor]) -> list[tuple[str, str, Tensor]]:
    """Name, kind and value of each loss, or else its reward, that is NaN or infinite."""
    found = []
    for name, value in sums.items():
        if not value.isfinite():
            found.append((name, "loss", value))
        elif name in rewards and not rewards[name].isfinite():
            found.append((name, "reward", rewards[name]))
    return found


def problems_of_optimizer(optimizer: Optimizer) -> list[Problem]:
    """Numbers of an optimiser under which every weight becomes NaN or infinite."""
    numbers = {key: group[key] for group in optimizer.param_groups for key in ("lr", "weight_decay") if key in group}
    return [
        Problem(
            f"optimizer.init_args.{key}",
            f"expected a finite number, but got {float(value)}. Set it here, or mend `@/model.scheduler`.",
        )
        for key, value in numbers.items()
        if not math.isfinite(value)
    ]


def not_finite(weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinity where the start model does not.

    A bias of minus infinity is how some models forbid a token: it is no fault of the training.

    Args:
        weights: the student's.
        start: the start model's, by the same names where it has them.
    """
    if not weights:
        return []
    # One number per tensor, and one wait for the device.
    finite = torch.stack([whole(tensor.isfinite().all()) for tensor in weights.values()]).tolist()
    suspects = [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]
    return [name for name in suspects if name not in start or not _same_gaps(whole(weights[name]), whole(start[name]))]


def _same_gaps(one: Tensor, other: Tensor) -> bool:
    """Whether the values that are not finite are the same."""
    return torch.equal(one[~one.isfinite()], other[~other.isfinite()])


def refuse_spoilt(module: CFGDistillation) -> None:
    """Refuse to save a student that holds NaN or infinity.

    Raises:
        ConfigError: it does; the checkpoint before is the better one. Where the fit ends by an exception already, that
            exception.
    """
    start = {} if module.teacher is None else module.teacher.state_dict()
    names = not_finite(student_weights(module), {f"student.{name}": tensor for name, tensor in start.items()})
    if not names:
        return
    if (reason := sys.exception()) is not None:
        raise reason  # the cause: what follows from it must not hide it
    raise ConfigError(
        f"After {module.global_step} steps the student holds NaN or infinity ({len(names)} tensors, such as `{names[0]}`): no"
        " checkpoint was written, and the last one is as it was. Lower `model.optimizer.init_args.lr`, and resume from that"
        " checkpoint."
    )
