"""Sums over cells without whole logits: head, loss terms and their gradients, a few cells at a time.

Shapes: N rows, K codebooks, T positions, V vocabulary, D width of the states, M cells of one codebook.

The logits of a chunk of cells are made, every term is evaluated on them, and the gradients with respect to the states and the
head are taken at once, in the forward pass; then the logits go. Peak memory is a handful of ``[chunk, V]`` tensors instead of
several ``[N K T, V]``. Gradients in the forward are the way of Liger (arXiv 2410.10989); what is added is that several terms,
their weights and the guided teacher share one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cfg_distill.generators import Scored
from cfg_distill.generators.packing import product


@dataclass
class Cells:
    """Some cells of one codebook, and what both models predict there.

    Attributes:
        student_MV: raw logits of the student, with gradient.
        teacher_MV: raw guided logits of the frozen start model.
        tokens_M: the tokens the student drew.
        row_M: the sample n of each cell.
        position_M: the position t of each cell.
        codebook: k.
    """

    student_MV: Tensor
    teacher_MV: Tensor
    tokens_M: Tensor
    row_M: Tensor
    position_M: Tensor
    codebook: int

    # Half precision makes a KL negative: at least float32.

    @cached_property
    def student_log_probs_MV(self) -> Tensor:
        """Log-probabilities of the student at temperature 1."""
        return self.student_MV.to(torch.promote_types(self.student_MV.dtype, torch.float32)).log_softmax(-1)

    @cached_property
    def teacher_log_probs_MV(self) -> Tensor:
        """Log-probabilities of the guided teacher at temperature 1."""
        return self.teacher_MV.to(torch.promote_types(self.teacher_MV.dtype, torch.float32)).log_softmax(-1)


# From cells to one value each, [M].
CellTerm = Callable[[Cells], Tensor]

LOGITS_CHUNK = 2**22
"""Logits that exist at a time unless told otherwise: 16 MB of float32, 85 cells of a vocabulary of 49,152."""


def sum_over_cells(
    student: Scored,
    teacher: Scored,
    tokens_NKT: Tensor,
    mask_NKT: Tensor,
    terms: Mapping[str, CellTerm],
    weights: Mapping[str, Tensor | float],
    chunk: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of terms over all valid cells, with gradient; and the sum of each term, without.

    The result can be differentiated once. Masked cells are never read: NaN there changes neither value nor gradient.

    Args:
        student: predictions with gradient.
        teacher: predictions without.
        tokens_NKT: the tokens the student drew.
        mask_NKT: True on the cells that count.
        terms: functions of cells, by name.
        weights: of the terms that are trained; a term without weight is evaluated only.
        chunk: logits that exist at a time, cells times vocabulary; 0 makes them whole and leaves the gradient to autograd:
            the plain twin.
    """
    sums = {name: torch.zeros((), device=mask_NKT.device) for name in terms}
    totals = []
    for k in range(mask_NKT.shape[1]):
        row_M, position_M = mask_NKT[:, k].nonzero(as_tuple=True)
        tokens_M = tokens_NKT[row_M, k, position_M]
        teacher_logits = _logits_of(teacher, k, row_M, position_M)

        def evaluate(student_MV: Tensor, part: slice) -> Tensor:
            with torch.no_grad():
                teacher_MV = teacher_logits(part)  # noqa: B023 - called within this turn of the loop
            cells = Cells(student_MV, teacher_MV, tokens_M[part], row_M[part], position_M[part], k)  # noqa: B023
            return _weighted(cells, terms, weights, sums)

        if chunk and student.states_NTD is not None and student.head is not None:
            bias_V = None if student.head.bias_KV is None else student.head.bias_KV[k]
            weight_VD = student.head.weight_KVD[k]
            states_MD = student.states_NTD[row_M, position_M]
            totals.append(_ChunkedSum.apply(states_MD, weight_VD, bias_V, evaluate, max(1, chunk // len(weight_VD))))
        else:
            totals.append(evaluate(_logits_of(student, k, row_M, position_M)(slice(None)), slice(None)))
    return torch.stack(totals).sum(), sums


def _weighted(
    cells: Cells, terms: Mapping[str, CellTerm], weights: Mapping[str, Tensor | float], sums: dict[str, Tensor]
) -> Tensor:
    total = cells.student_MV.new_zeros((), dtype=torch.float32)
    # Trained terms first: log-probabilities are kept by the first who asks, with the gradient that the others need.
    for name in sorted(terms, key=lambda name: name not in weights):
        with torch.set_grad_enabled(torch.is_grad_enabled() and name in weights):
            value = terms[name](cells).sum()
        sums[name] += value.detach()
        if name in weights:
            total = total + weights[name] * value
    return total


def _logits_of(scored: Scored, k: int, row_M: Tensor, position_M: Tensor) -> Callable[[slice], Tensor]:
    """A function that makes the logits of some of the cells, ``[M, V]``."""
    if scored.states_NTD is None or scored.head is None:
        logits_NTV = scored.whole()[:, k]
        return lambda part: logits_NTV[row_M[part], position_M[part]]
    states_NTD, head = scored.states_NTD, scored.head
    return lambda part: head.logits(states_NTD[row_M[part], position_M[part]], k)


class _ChunkedSum(torch.autograd.Function):
    """Sum of a function of logits over chunks of cells; its gradients are ready when the forward pass is."""

    @staticmethod
    def forward(
        ctx: Any,
        states_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        evaluate: Callable[[Tensor, slice], Tensor],
        num_cells: int,
    ) -> Tensor:
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_states_MD = torch.empty_like(states_MD) if needs_states else None
        grad_weight_VD = torch.zeros_like(weight_VD) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V) if needs_bias and bias_V is not None else None
        total = states_MD.new_zeros((), dtype=torch.float32)
        for start in range(0, len(states_MD), num_cells):
            part = slice(start, start + num_cells)
            logits_MV = product(states_MD[part], weight_VD, bias_V)
            if not any((needs_states, needs_weight, needs_bias)):
                total += evaluate(logits_MV, part)
                continue
            with torch.enable_grad():
                value = evaluate(logits_MV.requires_grad_(), part)
                # A chunk whose terms have no gradient at all has a constant for its value.
                (grad_MV,) = torch.autograd.grad(value, logits_MV) if value.requires_grad else (None,)
            total += value.detach()
            if grad_MV is None:
                grad_MV = torch.zeros_like(logits_MV)
            del logits_MV, value
            if grad_states_MD is not None:
                grad_states_MD[part] = grad_MV @ weight_VD.to(grad_MV.dtype)
            if grad_weight_VD is not None:
                if grad_weight_VD.dtype == grad_MV.dtype == states_MD.dtype:
                    grad_weight_VD.addmm_(grad_MV.T, states_MD[part])
                else:
                    grad_weight_VD += grad_MV.T @ states_MD[part].to(grad_MV.dtype)
            if grad_bias_V is not None:
                grad_bias_V += grad_MV.sum(0)
        ctx.gradients = (grad_states_MD, grad_weight_VD, grad_bias_V)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The sum over cells can be differentiated once: its gradients were scaled in place.")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if gradient is None else gradient.mul_(grad) for gradient in gradients), None, None
