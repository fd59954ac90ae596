"""The protocol of a loss. Shapes: N rows (B prompts x G samples), K codebooks, T positions, V vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from cfg_distill.generators import Predictions
from cfg_distill.losses.chunked import CellTerm, sum_over_cells
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples


@dataclass
class LossInputs:
    """One micro-batch of the student's own samples, scored by both models.

    Attributes:
        student: predictions of the student, with gradient.
        teacher: guided predictions of the frozen start model, without.
        tokens_NKT: the tokens the student drew.
        mask_NKT: True on the cells that exist; values elsewhere are arbitrary, NaN included.
        sampling: the distribution that drew the tokens.
        samples: the decoded groups of the whole batch.
        rows: which of their samples this micro-batch holds.
        credit_N: what :meth:`Loss.credit` gave, for these rows; None where it gave nothing.
    """

    student: Predictions
    teacher: Predictions
    tokens_NKT: Tensor
    mask_NKT: Tensor
    sampling: Sampling
    samples: Samples
    rows: slice = field(default_factory=lambda: slice(None))
    credit_N: Tensor | None = None

    @cached_property
    def student_NKTV(self) -> Tensor:
        """Raw logits of the student. They take much memory: a :class:`CellLoss` needs none of it."""
        return self.student.whole()

    @cached_property
    def teacher_NKTV(self) -> Tensor:
        """Raw guided logits of the frozen start model."""
        return self.teacher.whole()

    @property
    def length_N(self) -> Tensor:
        """Frames of each sample, the end token included."""
        return self.mask_NKT[:, 0].sum(-1)


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

    def credit(self, samples: Samples) -> Tensor | None:
        """What each sample of a batch is worth, ``[N]``, asked once a batch, before micro-batches; None when not needed."""
        return None

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted sum of this term over the micro-batch, a scalar with gradient."""


class CellLoss(Loss):
    """A term that is a sum over cells: all such terms of a mix are evaluated in one pass, chunk by chunk."""

    @abstractmethod
    def cells(self, inputs: LossInputs) -> CellTerm:
        """A function from :class:`~cfg_distill.losses.chunked.Cells` to one value each, ``[M]``, with gradient.

        It is given the cells of one codebook at a time, a chunk at a time, and must not look beyond them.
        """

    def forward(self, inputs: LossInputs) -> Tensor:
        return mix({"": self}, inputs, {"": 1.0})[0]


def mix(
    losses: Mapping[str, Loss],
    inputs: LossInputs,
    weights: Mapping[str, Tensor | float],
    credits: Mapping[str, Tensor | None] | None = None,
    watched: Mapping[str, CellTerm] | None = None,
    chunk: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of losses over one micro-batch, with gradient, to be differentiated once; and each sum, without.

    Args:
        losses: the terms by name.
        inputs: the micro-batch.
        weights: of the terms.
        credits: what :meth:`Loss.credit` gave for the whole batch, by name; None asks now.
        watched: functions of cells that are summed too and have no part in the loss.
        chunk: logits that exist at a time; 0 makes them whole.
    """
    if credits is None:
        credits = {name: loss.credit(inputs.samples) for name, loss in losses.items()}
    own = {}
    for name in losses:
        credit_N = credits[name]
        own[name] = replace(inputs, credit_N=None if credit_N is None else credit_N[inputs.rows])
    terms = {name: loss.cells(own[name]) for name, loss in losses.items() if isinstance(loss, CellLoss)}
    total, sums = sum_over_cells(
        inputs.student,
        inputs.teacher,
        inputs.tokens_NKT,
        inputs.mask_NKT,
        terms | dict(watched or {}),
        {name: weights[name] for name in terms},
        chunk,
    )
    for name, loss in losses.items():
        if name not in terms:
            value = loss(own[name])
            total, sums[name] = total + weights[name] * value, value.detach()
    return total, sums
