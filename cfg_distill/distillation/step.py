"""One step of the optimiser: the micro-batches that it is cut into, and the sums and counts that it adds up.

Shapes: R ranks, L losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from cfg_distill.distillation.finite import gradient_norm, problems_of_gradient, problems_of_optimizer
from cfg_distill.errors import ConfigError
from cfg_distill.generators import PromptLike

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation

PATIENCE = 30
"""Steps in a row that a gradient scaler may skip. It begins at 2^16 and halves at each: by then float16 is not the cause."""


def micro_batches(prompts: Sequence[PromptLike], group: int, size: int) -> list[tuple[Sequence[PromptLike], slice]]:
    """Prompts and rows to be scored together, in the order of the rows.

    Args:
        prompts: of a batch.
        group: G, the rows of each.
        size: rows at once, a divisor or a multiple of G; 0 for all.

    Example:
        >>> micro_batches(["a", "b"], group=2, size=1)[:3]
        [(['a'], slice(0, 1, None)), (['a'], slice(1, 2, None)), (['b'], slice(2, 3, None))]
        >>> micro_batches(["a", "b", "c"], group=2, size=4)
        [(['a', 'b'], slice(0, 4, None)), (['c'], slice(4, 8, None))]
    """
    if not size:
        return [(prompts, slice(None))]
    if size < group:
        starts = range(0, len(prompts) * group, size)
        return [([prompts[start // group]], slice(start, start + size)) for start in starts]
    together = size // group
    return [
        (prompts[first : first + together], slice(first * group, (first + together) * group))
        for first in range(0, len(prompts), together)
    ]


class Step:
    """Sums and counts over the batches that one step of the optimiser accumulates.

    Attributes:
        count: of this rank: samples, or generated positions.
        samples: of this rank.
        sums: the unweighted sum of each loss of this rank.
        skipped: steps in a row that a gradient scaler has skipped.
    """

    def __init__(self) -> None:
        self.count = torch.zeros(())
        self.samples = 0
        self.sums: dict[str, Tensor] = {}
        self.skipped = 0

    @property
    def begins(self) -> bool:
        """Whether no batch has been added yet."""
        return bool(self.count == 0)

    def add(self, sums: Mapping[str, Tensor], count: Tensor, samples: int) -> None:
        """Add a batch."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}
        self.count = self.count.to(count.device) + count
        self.samples += samples

    def close(self, module: CFGDistillation, optimizer: torch.optim.Optimizer) -> tuple[Tensor, Tensor]:
        """The mean count and the mean number of samples of the ranks; the next step begins.

        Raises:
            ConfigError: the gradient is not finite, or a number of the optimiser; on all ranks alike.
        """
        is_finite = gradient_norm(module.student.parameters()).isfinite().to(self.count.device, self.count.dtype)
        own_3 = torch.stack([self.count, torch.full_like(self.count, self.samples), is_finite]).float()
        every_R3 = cast(Tensor, module.all_gather(own_3)).view(-1, 3)
        if every_R3[:, 2].all():
            self.skipped = 0
        else:
            self._stop_unless_skipped(module)
        if found := problems_of_optimizer(optimizer):
            raise ConfigError([problem.under("model") for problem in found])
        self.count, self.samples, self.sums = torch.zeros_like(self.count), 0, {}
        return every_R3[:, 0].mean(), every_R3[:, 1].mean()

    def _stop_unless_skipped(self, module: CFGDistillation) -> None:
        """Stop before a step with a gradient that is not finite; of a gradient scaler only when it is not to blame.

        Scaled for float16, a sound gradient may overflow. The scaler then skips the step and lowers its factor, which is how it
        finds one. A loss that is not finite has another cause, and so have many skipped steps in a row.
        """
        local_L = torch.stack([value.float() for value in self.sums.values()])
        sum_L = cast(Tensor, module.all_gather(local_L)).view(-1, len(local_L)).sum(0)
        plugin = module.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            self.skipped += 1
            if self.skipped < PATIENCE and sum_L.isfinite().all():
                return
        found = problems_of_gradient(dict(zip(self.sums, sum_L, strict=True)), module.global_step)
        raise ConfigError([problem.under("model") for problem in found])
