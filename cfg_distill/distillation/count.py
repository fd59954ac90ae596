"""What the terms of a step are divided by: its samples, or the positions to expect of as many samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cfg_distill.rewards.running import RunningMean


class Count(nn.Module):
    r"""The count of a step, under a reduction.

    - ``sum``: the number of samples, N.
    - ``mean``: N times :math:`\bar\ell`, the mean length in the steps BEFORE this one.

    The number of the step's own positions, C, is no good divisor. It depends on the samples whose terms it divides: short
    samples have other rewards than long ones. So E[L / C] is not E[L] / E[C], the less so the fewer prompts a step has. At one
    prompt per step beta was off by a third (``tests/distillation/test_count.py`` enumerates it). The mean length of the past is
    independent of the step's samples: it scales all terms alike. The first step has no past, and takes C.

    The mean is saved with the run, and the same on all ranks.

    Args:
        reduction: ``sum`` or ``mean``.
    """

    def __init__(self, reduction: Literal["sum", "mean"]) -> None:
        super().__init__()
        self.reduction = reduction
        self.length = RunningMean(momentum=0.95)

    def of_rows(self, mask_NKT: Tensor) -> Tensor:
        """C, or N, of some rows."""
        if self.reduction == "sum":
            return torch.tensor(len(mask_NKT), device=mask_NKT.device)
        return mask_NKT[:, 0].sum()

    def of_step(self, count: Tensor, samples: Tensor) -> Tensor:
        """The divisor of a step: N, or N times the mean length before it.

        Args:
            count: of the step's rows, by :meth:`of_rows`, summed over ranks.
            samples: N, summed over ranks. (A mean over ranks in place of both sums gives the mean divisor.)
        """
        if self.reduction == "sum" or self.length.updates == 0:
            return count
        return samples * self.length.value

    def close(self, count: Tensor, samples: Tensor) -> Tensor:
        """:meth:`of_step`, once per step: the mean length then takes the step in."""
        divisor = self.of_step(count, samples)
        if self.reduction == "mean":
            self.length.update(count, samples)
        return divisor
