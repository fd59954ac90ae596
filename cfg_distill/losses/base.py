"""The protocol of a loss. Shapes: N rows (B prompts x G samples), K codebooks, T positions, V vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from cfg_distill.samples import Samples
from cfg_distill.sampling import Sampling


@dataclass
class LossInputs:
    """One micro-batch of the student's own samples, scored by both models.

    Attributes:
        student_NKTV: raw logits of the student, with gradient.
        teacher_NKTV: raw guided logits of the frozen start model.
        tokens_NKT: the tokens the student drew.
        mask_NKT: True on generated cells up to and including the end token; values elsewhere are arbitrary, NaN included.
        samples: the decoded groups.
        sampling: the distribution that drew the tokens.
    """

    student_NKTV: Tensor
    teacher_NKTV: Tensor
    tokens_NKT: Tensor
    mask_NKT: Tensor
    samples: Samples
    sampling: Sampling


class Loss(nn.Module, ABC):
    """One term of the objective.

    Every term is a SUM over samples and positions; the module divides all of them by one common count, of samples or of
    positions (``model.reduction``). So the terms keep their relation, beta its meaning, and a split into micro-batches
    or ranks changes nothing.

    Args:
        weight: the factor of this term; beta, for the diversity term.
        warmup_steps: optimiser steps over which the weight rises from 0 as a straight line.
    """

    weight: Tensor

    def __init__(self, weight: float = 1.0, warmup_steps: int = 0) -> None:
        super().__init__()
        self.warmup_steps = warmup_steps
        # A buffer, so that a calibrated weight is saved and resumed with the run.
        self.weight = nn.Buffer(torch.tensor(float(weight)))
        self.logs: dict[str, Tensor] = {}

    def weight_at(self, step: int) -> Tensor:
        """The weight at an optimiser step counted from 0."""
        return self.weight * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def problems(self, group: int) -> list[str]:
        """What is wrong with the settings for groups of this size, found without loading weights."""
        return []

    def load(self) -> Self:
        """Load what the loss needs; does nothing the second time."""
        return self

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted sum of this term over the micro-batch, a scalar with gradient."""
