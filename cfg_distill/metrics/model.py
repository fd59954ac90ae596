"""How a student's next-token distribution develops: its entropy, and its distance to the teacher.

The same quantities twice over one pure function each: as terms of a mix, which a training step logs, and as torchmetrics
classes. Shapes: M cells, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from cfg_distill.losses import CellTerm, entropy, reverse_kl
from cfg_distill.losses.divergences import entropy_cells, reverse_kl_cells

ENTROPIES: dict[str, CellTerm] = {
    "entropy_student": lambda cells: entropy_cells(cells.student_log_probs_MV),
    "entropy_teacher": lambda cells: entropy_cells(cells.teacher_log_probs_MV),
}
"""Of student and guided teacher, one value per cell; see :class:`Entropy`."""

DISTANCE: dict[str, CellTerm] = {
    "kl_per_token": lambda cells: reverse_kl_cells(cells.student_log_probs_MV, cells.teacher_log_probs_MV),
}
"""KL(student || teacher), one value per cell; see :class:`KLToTeacher`."""


class _CellMean(Metric):
    """A sum over generated cells and their number, kept apart until the end."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, total: Tensor, count: Tensor) -> None:
        self.total += total.detach()
        self.count += count

    def compute(self) -> Tensor:
        """The mean over all cells seen, by all processes."""
        return self.total / self.count


class Entropy(_CellMean):
    """Mean entropy of a next-token distribution in nats. Falling towards 0, it announces a collapse."""

    higher_is_better = None

    def update(self, logits: Tensor, mask: Tensor | None = None) -> None:
        """Take in logits ``[..., V]`` where the mask ``[...]`` is true."""
        self._add(*entropy(logits, mask))


class KLToTeacher(_CellMean):
    """Mean KL(student || teacher) per cell in nats: how much of the guidance is still to be learnt."""

    higher_is_better = False

    def update(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> None:
        """Take in logits of student and teacher ``[..., V]`` where the mask ``[...]`` is true."""
        self._add(*reverse_kl(student, teacher, mask))
