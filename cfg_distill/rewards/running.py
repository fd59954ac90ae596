"""A mean over the batches of a run, the same on all ranks, saved with the run."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, distributed, nn


def all_reduced(total: Tensor) -> Tensor:
    """The sum over ranks; the tensor itself in a single process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return total
    total = total.clone()
    distributed.all_reduce(total)
    return total


def share_of_newest(momentum: float, updates: int) -> float:
    r"""The share of a new value in a moving mean: :math:`\max(1 - m,\ 1 / (n + 1))`.

    Over the first values this is the plain mean, so that none dominates.

    Args:
        momentum: m, the part of the past that is kept; 1 takes the plain mean for ever.
        updates: n, the values before this one.

    Example:
        >>> [share_of_newest(0.75, updates) for updates in range(5)]
        [1.0, 0.5, 0.3333333333333333, 0.25, 0.25]
    """
    return max(1 - momentum, 1 / (updates + 1))


class RunningMean(nn.Module):
    """An exponential moving mean over batches, in float32; over the first ones the plain mean, so that none dominates.

    Read :attr:`value` BEFORE :meth:`update` sees the current batch, and it is independent of the batch's samples.

    Args:
        momentum: the part of the past that is kept; 1 takes the plain mean over all batches.
        shape: of the mean.
    """

    value: Tensor
    updates: Tensor

    def __init__(self, momentum: float, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.momentum = momentum
        self.value = nn.Buffer(torch.zeros(shape))
        self.updates = nn.Buffer(torch.zeros(shape, dtype=torch.long))

    def update(self, total: Tensor, count: Tensor) -> None:
        """Take in a batch: the sum and the number of its values, already summed over ranks.

        An entry without values keeps its mean. A batch with NaN or infinity leaves all as it is: the run that it stops can be
        resumed.
        """
        if not total.isfinite().all():
            return
        has_values = (count > 0).expand(self.updates.shape).to(self.value.device)
        shares = [share_of_newest(self.momentum, updates) for updates in self.updates.flatten().tolist()]
        moved = self.value.lerp((total / count).to(self.value), self.value.new_tensor(shares).view_as(self.updates))
        self.value.copy_(torch.where(has_values, moved, self.value))
        self.updates += has_values

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # In half precision a slow mean stands still: keep it in float32 when the module around it is converted.
        super()._apply(fn, recurse)
        self.value = self.value.float()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}updates"
        if key in state_dict:  # of version 0.1: one number for all entries
            state_dict[key] = state_dict[key].expand(self.updates.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
