"""How a student's next-token distribution develops: its entropy, and its distance to the teacher.

A training step logs the same quantities: :mod:`cfg_distill.losses.watched`. Shapes: V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from cfg_distill.losses import entropy, reverse_kl


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
