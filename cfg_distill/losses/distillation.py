"""Distillation terms: a divergence from the guided teacher, summed over the positions of the student's own samples."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cfg_distill.errors import Context, Problem
from cfg_distill.generators import DepthStates
from cfg_distill.losses.base import Loss, LossInputs
from cfg_distill.losses.chunked import LOGITS_CHUNK, Cells, CellTerm, sum_over_cells
from cfg_distill.losses.divergences import (
    entropy_aware_cells,
    forward_kl_cells,
    jensen_shannon_cells,
    reverse_kl_cells,
)
from cfg_distill.losses.policy_gradient import token_log_probs


class Divergence(Loss):
    """A divergence per position, summed over positions and codebooks.

    Args:
        weight: the factor of this term.
        warmup_steps: optimiser steps over which the weight rises from 0.
        temperature: divides both models' logits before they are compared, whatever the sampling temperature is.
        score_term: add the gradient through the sampling, which the default truncates as GKD does (arXiv 2306.13649):
            ``sum_n (sum_{m>n} KL_m) grad log student(y_n)``. With it the gradient is that of the sequence divergence, exact
            and noisier. Use it for samples of a few tokens: those of 80 drove a student from its teacher (docs/method.md).
        codebook_weights: a factor for each codebook; empty for 1 each.
    """

    below_0 = "it would train the student away from its teacher"

    def __init__(
        self,
        weight: float = 1.0,
        warmup_steps: int = 0,
        temperature: float = 1.0,
        score_term: bool = False,
        codebook_weights: Sequence[float] = (),
    ) -> None:
        super().__init__(weight, warmup_steps)
        self.temperature = temperature
        self.score_term = score_term
        self.codebook_weights = tuple(codebook_weights)

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if not 0 < self.temperature < math.inf:
            found.append(Problem("temperature", f"expected a number above 0, but got {self.temperature}. Use 1."))
        if not all(0 <= weight < math.inf for weight in self.codebook_weights):
            found.append(
                Problem("codebook_weights", f"expected numbers of at least 0, but got {list(self.codebook_weights)}.")
            )
        return found

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of log-probabilities ``[M, V]``, one value per cell ``[M]``."""

    def _values(self, cells: Cells) -> Tensor:
        student_MV, teacher_MV = cells.student_log_probs_MV, cells.teacher_log_probs_MV
        if self.temperature != 1:
            student_MV, teacher_MV = (
                (log_probs_MV / self.temperature).log_softmax(-1) for log_probs_MV in (student_MV, teacher_MV)
            )
        values_M = self.divergence(student_MV, teacher_MV)
        return values_M * self.codebook_weights[cells.codebook] if self.codebook_weights else values_M

    def cells(self, inputs: LossInputs) -> CellTerm:
        if not self.score_term:
            return self._values
        later_NKT = self._later(inputs)

        def exact(cells: Cells) -> Tensor:
            log_probs_M = token_log_probs(cells, inputs.sampling, inputs.samples.rollout.opening)
            # It has a gradient and no value: the logged loss stays the divergence.
            score_M = later_NKT[cells.row_M, cells.codebook, cells.position_M] * (log_probs_M - log_probs_M.detach())
            return self._values(cells) + score_M

        return exact

    @torch.no_grad()
    def _later(self, inputs: LossInputs) -> Tensor:
        """The divergence of all cells that depend on the token of each cell, ``[N, K, T]``.

        They are the cells of later positions and, in a model with a depth decoder, of later codebooks at the same position.
        """
        value_NKT = torch.zeros(inputs.mask_NKT.shape, device=inputs.mask_NKT.device)

        def gather(cells: Cells) -> Tensor:
            values_M = self._values(cells)
            value_NKT[cells.row_M, cells.codebook, cells.position_M] = values_M.to(value_NKT)
            return values_M

        sum_over_cells(
            inputs.student, inputs.teacher, inputs.tokens_NKT, inputs.mask_NKT, {"": gather}, {}, LOGITS_CHUNK
        )
        later_N1T = _behind(value_NKT.sum(1, keepdim=True), dim=2)
        if not isinstance(inputs.student, DepthStates):
            return later_N1T.expand_as(value_NKT)
        return later_N1T + _behind(value_NKT, dim=1)


def _behind(values: Tensor, dim: int) -> Tensor:
    """At each place the sum of the values behind it."""
    return values.flip(dim).cumsum(dim).flip(dim) - values


class ReverseKL(Divergence):
    """KL(student || guided teacher): the paper's term (Cideron et al., ICLR 2025, Eq. 2). Arguments: :class:`Divergence`."""

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return reverse_kl_cells(student, teacher)


class ForwardKL(Divergence):
    """KL(guided teacher || student). Arguments: :class:`Divergence`."""

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return forward_kl_cells(student, teacher)


class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence divided by b (1 - b); see :func:`jensen_shannon`.

    Args:
        mixture: b in [0, 1]: 0 is forward KL, 1 reverse KL.
        common: see :class:`Divergence`.
    """

    def __init__(self, mixture: float = 0.5, **common: Any) -> None:
        super().__init__(**common)
        self.mixture = mixture

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if not 0 <= self.mixture <= 1:
            found.append(Problem("mixture", f"expected a number in [0, 1], but got {self.mixture}."))
        return found

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return jensen_shannon_cells(student, teacher, self.mixture)


class EntropyAwareKL(Divergence):
    """Reverse KL, plus forward KL where the teacher is uncertain; see :func:`entropy_aware_kl`.

    Args:
        threshold: teacher entropy in nats above which forward KL is added.
        common: see :class:`Divergence`.
    """

    def __init__(self, threshold: float = 2.0, **common: Any) -> None:
        super().__init__(**common)
        self.threshold = threshold

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if math.isnan(self.threshold):
            found.append(Problem("threshold", "expected a number, but got nan."))
        return found

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return entropy_aware_cells(student, teacher, self.threshold)


class CrossEntropy(Loss):
    r"""The negative log-likelihood of samples of the guided teacher: fine-tuning on guided samples, a baseline.

    .. math:: L = - \sum_{i=1}^{N} \sum_{k, t} \log \text{student}(y_{ikt} \mid y_{i, <t})

    with y_i the N samples, drawn by the guided teacher (``model.off_policy``), under the student at temperature 1. In
    expectation it is the forward KL of sequences plus a constant; :class:`ForwardKL` has less variance, for two more passes of
    the teacher.

    Args:
        weight: the factor of this term.
        warmup_steps: optimiser steps over which the weight rises from 0.
    """

    def cells(self, inputs: LossInputs) -> CellTerm:
        return lambda cells: -cells.student_log_probs_MV.gather(-1, cells.tokens_M.unsqueeze(-1)).squeeze(-1)
