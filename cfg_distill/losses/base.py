"""The protocol of a loss. Shapes: N rows (B prompts x G samples), K codebooks, T positions, V vocabulary."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from cfg_distill.errors import ConfigError, Context, Problem, problems_of_not_negative
from cfg_distill.generators import Predictions
from cfg_distill.losses.chunked import CellTerm, sum_over_cells
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


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
        advantage_N: what :meth:`Loss.advantage` gave, for these rows; None where it gave nothing.
    """

    student: Predictions
    teacher: Predictions
    tokens_NKT: Tensor
    mask_NKT: Tensor
    sampling: Sampling
    samples: Samples
    rows: slice = field(default_factory=lambda: slice(None))
    advantage_N: Tensor | None = None

    @property
    def credit_N(self) -> Tensor | None:
        """The name of :attr:`advantage_N` until 0.1."""
        warnings.warn("`LossInputs.credit_N` is now called `advantage_N`.", FutureWarning, stacklevel=2)
        return self.advantage_N

    @cached_property
    def student_NKTV(self) -> Tensor:
        """Raw logits of the student. They take much memory, of which a loss over cells needs none: see :meth:`Loss.cells`."""
        return self.student.whole()

    @cached_property
    def teacher_NKTV(self) -> Tensor:
        """Raw guided logits of the frozen start model."""
        return self.teacher.whole()

    @property
    def length_N(self) -> Tensor:
        """Frames of each sample, the end token included."""
        return self.mask_NKT[:, 0].sum(-1)


def _no_cells(loss: Loss, inputs: LossInputs) -> CellTerm:
    """In place of :meth:`Loss.cells` in a class that overrides :meth:`Loss.forward` alone."""
    raise TypeError(f"`{type(loss).__name__}` is no sum over cells.")


class Loss(nn.Module, ABC):
    """One term of the objective: override :meth:`cells`, or :meth:`forward` where a term is no sum over cells.

    Every term is a SUM over samples and positions; the module divides all of them by one common count, of samples or of
    positions (``model.reduction``). So the terms keep their relation, beta its meaning, and a split into micro-batches
    or ranks changes nothing.

    Args:
        weight: the factor of this term; beta, for the diversity term.
        warmup_steps: optimiser steps over which the weight rises from 0 as a straight line.
    """

    weight: Tensor
    below_0 = "the student would learn the opposite of this term"  # empty where a negative weight makes sense
    """What a weight below 0 would do, for the message."""

    def __init__(self, weight: float = 1.0, warmup_steps: int = 0) -> None:
        super().__init__()
        self.warmup_steps = warmup_steps
        # A buffer, so that a calibrated weight is saved and resumed with the run.
        self.weight = nn.Buffer(torch.tensor(float(weight)))
        self.logs: dict[str, Tensor] = {}
        self.reward_BG: Tensor | None = None

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = vars(cls)
        if "credit" in own and "advantage" not in own:
            warnings.warn(f"`{cls.__name__}.credit` is now called `advantage`: rename it.", FutureWarning, stacklevel=2)
            cls.advantage = cls.credit  # type: ignore[method-assign]
        elif "advantage" in own and "credit" not in own:
            cls.credit = cls.advantage
        if "forward" in own and "cells" not in own:
            if cls.cells not in (Loss.cells, _no_cells):
                raise TypeError(
                    f"`{cls.__name__}.forward` would never be called: a fit sums `cells`. Override `cells`."
                )
            cls.cells = _no_cells  # type: ignore[assignment, method-assign]

    @property
    def is_over_cells(self) -> bool:
        """Whether the term is a sum over cells, evaluated in chunks with all other such terms of a mix."""
        return type(self).cells is not _no_cells

    def weight_at(self, step: int) -> Tensor:
        """The weight at an optimiser step counted from 0."""
        return self.weight * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""
        found = []
        if not math.isfinite(self.weight):
            found.append(Problem("weight", f"expected a finite number, but got {self.weight.item()}."))
        elif self.weight < 0 and self.below_0:
            text = f"expected a number of at least 0, but got {self.weight.item():g}: {self.below_0}."
            found.append(Problem("weight", text))
        return found + problems_of_not_negative(warmup_steps=self.warmup_steps)

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        """Why the loss cannot learn from samples of these prompts; asked before weights are loaded."""
        return []

    def load(self) -> Self:
        """Load what the loss needs; does nothing the second time."""
        return self

    def attach(self, start: StartModel) -> None:
        """Take the frozen start model of the fit, loaded; called once, behind :meth:`load` and before a checkpoint is read."""

    def advantage(self, samples: Samples) -> Tensor | None:
        """The weight of each sample's log-probability, ``[N]``; None for a loss that needs none.

        It is asked once per batch, before the batch is cut into micro-batches. A loss may return whatever else is fixed for a
        batch, with N as its first dimension: :meth:`cells` gets the rows of its micro-batch.
        """
        return None

    credit = advantage  # its name until 0.1

    def degenerate(self, samples: Samples) -> Tensor | None:
        """Which samples are empty or degenerate, ``[B, G]`` bool; None for a loss that has no opinion."""
        return None

    @abstractmethod
    def cells(self, inputs: LossInputs) -> CellTerm:
        """A function from :class:`~cfg_distill.losses.chunked.Cells` to one value each, ``[M]``, with gradient.

        It is given the cells of one codebook at a time, a chunk at a time, and must not look beyond them. All such terms of
        a mix are evaluated in one pass.
        """

    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted sum of this term over the micro-batch, a scalar with gradient."""
        return mix({"": self}, inputs, {"": 1.0})[0]


CellLoss = Loss
"""The name, until 0.1, of a loss that overrides :meth:`Loss.cells`."""


def mix(
    losses: Mapping[str, Loss],
    inputs: LossInputs,
    weights: Mapping[str, Tensor | float],
    advantages: Mapping[str, Tensor | None] | None = None,
    watched: Mapping[str, CellTerm] | None = None,
    chunk: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of losses over one micro-batch, with gradient, to be differentiated once; and each sum, without.

    Args:
        losses: the terms by name.
        inputs: the micro-batch.
        weights: of the terms.
        advantages: what :meth:`Loss.advantage` gave for the whole batch, by name; None asks now.
        watched: functions of cells that are summed too and have no part in the loss.
        chunk: logits that exist at a time; 0 makes them whole.
    """
    if advantages is None:
        advantages = {name: loss.advantage(inputs.samples) for name, loss in losses.items()}
    own = {}
    for name in losses:
        advantage_N = advantages[name]
        own[name] = replace(inputs, advantage_N=None if advantage_N is None else advantage_N[inputs.rows])
    terms = {name: loss.cells(own[name]) for name, loss in losses.items() if loss.is_over_cells}
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
            if not isinstance(value, Tensor) or value.ndim:
                found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                text = f"expected a scalar, the sum over the cells, from `forward`, but got {found}."
                raise ConfigError(Problem(f"/model.losses.{name}", text))
            total, sums[name] = total + weights[name] * value, value.detach()
    return total, sums
