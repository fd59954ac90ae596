"""Distillation terms: a divergence from the guided teacher, summed over the positions of the student's own samples."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from cfg_distill.losses.base import Loss, LossInputs
from cfg_distill.losses.divergences import (
    entropy_aware_cells,
    forward_kl_cells,
    jensen_shannon_cells,
    reverse_kl_cells,
)
from cfg_distill.losses.policy_gradient import token_log_probs


class Divergence(Loss):
    """A divergence a position, summed over positions and codebooks.

    Args:
        weight: the factor of this term.
        warmup_steps: optimiser steps over which the weight rises from 0.
        temperature: divides both models' logits before they are compared, whatever the sampling temperature is.
        score_term: add the gradient through the sampling, which the default truncates as GKD does (arXiv 2306.13649):
            ``sum_n (sum_{m>n} KL_m) grad log student(y_n)``. With it the gradient is that of the sequence divergence, exact
            and noisier.
    """

    def __init__(
        self, weight: float = 1.0, warmup_steps: int = 0, temperature: float = 1.0, score_term: bool = False
    ) -> None:
        super().__init__(weight, warmup_steps)
        self.temperature = temperature
        self.score_term = score_term

    def problems(self, group: int) -> list[str]:
        if self.temperature > 0:
            return []
        return [f"Key `temperature` of a divergence: expected a number above 0, but got {self.temperature}. Use 1."]

    @abstractmethod
    def cells(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of log-probabilities ``[M, V]``, a value a cell ``[M]``."""

    def forward(self, inputs: LossInputs) -> Tensor:
        mask_NKT = inputs.mask_NKT
        student_MV, teacher_MV = (
            (logits_NKTV[mask_NKT].float() / self.temperature).log_softmax(-1)
            for logits_NKTV in (inputs.student_NKTV, inputs.teacher_NKTV)
        )
        cells_M = self.cells(student_MV, teacher_MV)
        total = cells_M.sum()
        self.logs = {"per_token": total.detach() / mask_NKT.sum()}
        if self.score_term:
            total = total + self._score_term(cells_M.detach(), inputs)
        return total

    def _score_term(self, cells_M: Tensor, inputs: LossInputs) -> Tensor:
        cells_NKT = torch.zeros(inputs.mask_NKT.shape, device=cells_M.device).masked_scatter(inputs.mask_NKT, cells_M)
        position_NT = cells_NKT.sum(1)
        after_NT = position_NT.flip(-1).cumsum(-1).flip(-1) - position_NT
        log_probs_NKT = token_log_probs(inputs.student_NKTV, inputs.tokens_NKT, inputs.mask_NKT, inputs.sampling)
        surrogate = (after_NT * log_probs_NKT.sum(1)).sum()
        # It has a gradient and no value: the logged loss stays the divergence.
        return surrogate - surrogate.detach()


class ReverseKL(Divergence):
    """KL(student || guided teacher): the paper's term (Cideron et al., ICLR 2025, Eq. 2). Arguments: :class:`Divergence`."""

    def cells(self, student: Tensor, teacher: Tensor) -> Tensor:
        return reverse_kl_cells(student, teacher)


class ForwardKL(Divergence):
    """KL(guided teacher || student). Arguments: :class:`Divergence`."""

    def cells(self, student: Tensor, teacher: Tensor) -> Tensor:
        return forward_kl_cells(student, teacher)


class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence divided by b (1 - b); see :func:`jensen_shannon`.

    Args:
        mixture: b in [0, 1]: 0 is forward KL, 1 reverse KL.
        weight: see :class:`Divergence`.
        warmup_steps: see :class:`Divergence`.
        temperature: see :class:`Divergence`.
        score_term: see :class:`Divergence`.
    """

    def __init__(
        self,
        mixture: float = 0.5,
        weight: float = 1.0,
        warmup_steps: int = 0,
        temperature: float = 1.0,
        score_term: bool = False,
    ) -> None:
        super().__init__(weight, warmup_steps, temperature, score_term)
        self.mixture = mixture

    def problems(self, group: int) -> list[str]:
        found = super().problems(group)
        if not 0 <= self.mixture <= 1:
            found.append(f"Key `mixture` of JensenShannon: expected a number in [0, 1], but got {self.mixture}.")
        return found

    def cells(self, student: Tensor, teacher: Tensor) -> Tensor:
        return jensen_shannon_cells(student, teacher, self.mixture)


class EntropyAwareKL(Divergence):
    """Reverse KL, plus forward KL where the teacher is uncertain; see :func:`entropy_aware_kl`.

    Args:
        threshold: teacher entropy in nats above which forward KL is added.
        weight: see :class:`Divergence`.
        warmup_steps: see :class:`Divergence`.
        temperature: see :class:`Divergence`.
        score_term: see :class:`Divergence`.
    """

    def __init__(
        self,
        threshold: float = 2.0,
        weight: float = 1.0,
        warmup_steps: int = 0,
        temperature: float = 1.0,
        score_term: bool = False,
    ) -> None:
        super().__init__(weight, warmup_steps, temperature, score_term)
        self.threshold = threshold

    def cells(self, student: Tensor, teacher: Tensor) -> Tensor:
        return entropy_aware_cells(student, teacher, self.threshold)
