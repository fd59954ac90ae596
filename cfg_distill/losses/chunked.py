"""Sums over cells without whole logits: head, loss terms and their gradients, a few cells at a time.

Shapes: N rows, K codebooks, T positions, V vocabulary, D width of the states, M cells of one codebook.

The logits of a chunk of cells are made, every term is evaluated on them, and the gradients with respect to the states and the
head are taken at once, in the forward pass; then the logits go. Peak memory is a handful of ``[chunk, V]`` tensors instead of
several ``[N K T, V]``. Liger takes gradients in the forward pass too (arXiv 2410.10989). Here several terms, their weights and
the guided teacher share that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.generators import DepthStates, HiddenStates, Predictions
from cfg_distill.generators.linear import product, times_weight
from cfg_distill.losses.divergences import at_least_float32


@dataclass
class Cells:
    """Some cells of one codebook, and what both models predict there.

    Attributes:
        student_log_probs_MV: log-probabilities of the student at temperature 1, float32 or better, with gradient.
        teacher: makes :attr:`teacher_log_probs_MV`.
        tokens_M: the tokens the student drew.
        row_M: the sample n of each cell.
        position_M: the position t of each cell.
        codebook: k.
    """

    student_log_probs_MV: Tensor
    teacher: Callable[[], Tensor]
    tokens_M: Tensor
    row_M: Tensor
    position_M: Tensor
    codebook: int

    @cached_property
    def teacher_log_probs_MV(self) -> Tensor:
        """Log-probabilities of the guided teacher at temperature 1, made for the first term that reads them."""
        with torch.no_grad():
            return self.teacher()


# From cells to one value each, [M].
CellTerm = Callable[[Cells], Tensor]

LOGITS_CHUNK = 3 * 2**20
"""Logits of one model that exist at a time unless told otherwise: 13 MB of float32, 64 cells of a vocabulary of 49,152."""

LEAST_CELLS = 512
"""Cells of a chunk on an accelerator. A chunk costs passes over the whole head (casts, the sum of its gradient), however few
its cells: 24 cells of a vocabulary of 128,256 would make the loss the longest part of a step."""

PARTS = 8
"""Parts of a chunk on which a CPU evaluates terms one by one: a product is fastest on many cells, intermediates on few."""

_turns: ContextVar[Callable[[Sequence[int]], Iterable[int]]] = ContextVar("turns", default=iter)


@contextmanager
def turns_by(choose: Callable[[Sequence[int]], Iterable[int]]) -> Iterator[None]:
    """Until the context ends, sums take the chunks that ``choose`` gives of the starts of all: a plan needs no equal ones."""
    token = _turns.set(choose)
    try:
        yield
    finally:
        _turns.reset(token)


_target: ContextVar[str] = ContextVar("target", default="")


@contextmanager
def as_on(device: str) -> Iterator[None]:
    """Until the context ends, sums are cut as on another kind of device: a plan runs on the CPU."""
    token = _target.set(device)
    try:
        yield
    finally:
        _target.reset(token)


def chunk_on(device: str, chunk: int, vocabulary: int) -> int:
    """Logits of a chunk: as asked; on an accelerator at least :data:`LEAST_CELLS`, unless less than the default was asked.

    Example:
        >>> [chunk_on(device, LOGITS_CHUNK, 100_000) // 100_000 for device in ("cpu", "cuda")]
        [31, 512]
        >>> chunk_on("cuda", 2**20, 100_000) // 100_000
        10
    """
    return max(chunk, LEAST_CELLS * vocabulary) if device != "cpu" and chunk >= LOGITS_CHUNK else chunk


def sum_over_cells(
    student: Predictions,
    teacher: Predictions,
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
        chunked = student if chunk and isinstance(student, HiddenStates | DepthStates) else None

        def teacher_logits(part: slice) -> Tensor:
            return teacher.at(k, row_M[part], position_M[part])  # noqa: B023 - called within this turn of the loop

        logits_of: Callable[[slice], Tensor] = teacher_logits
        if chunked is not None:
            vocabulary = len(chunked.head.weight_KVD[k])
            num_cells = max(1, chunk_on(_target.get() or mask_NKT.device.type, chunk, vocabulary) // vocabulary)
            logits_of = _made_in_chunks(teacher_logits, num_cells)

        def evaluate(student_log_probs_MV: Tensor, part: slice) -> Tensor:
            def teacher_log_probs() -> Tensor:
                return _normalized_(logits_of(part))  # noqa: B023

            cells = Cells(student_log_probs_MV, teacher_log_probs, tokens_M[part], row_M[part], position_M[part], k)  # noqa: B023
            return _weighted(cells, terms, weights, sums)

        if chunked is not None:
            weight_VD = chunked.head.weight_KVD[k]
            bias_V = None if chunked.head.bias_KV is None else chunked.head.bias_KV[k]
            if not torch.is_grad_enabled():  # which autograd does not tell _ChunkedSum
                weight_VD, bias_V = weight_VD.detach(), None if bias_V is None else bias_V.detach()
            states_MD = chunked.states(k)[row_M, position_M]
            totals.append(_ChunkedSum.apply(states_MD, weight_VD, bias_V, evaluate, num_cells))
        else:
            logits_MV = student.at(k, row_M, position_M)
            totals.append(evaluate(at_least_float32(logits_MV).log_softmax(-1), slice(None)))
    return torch.stack(totals).sum(), sums


def _weighted(
    cells: Cells, terms: Mapping[str, CellTerm], weights: Mapping[str, Tensor | float], sums: dict[str, Tensor]
) -> Tensor:
    total = cells.student_log_probs_MV.new_zeros((), dtype=torch.float32)
    for name, term in terms.items():
        with torch.set_grad_enabled(torch.is_grad_enabled() and name in weights):
            value_M = term(cells)
            if not isinstance(value_M, Tensor) or value_M.shape != cells.row_M.shape:
                raise ConfigError(_not_one_each(name, value_M, len(cells.row_M)))
            value = value_M.sum()
        sums[name] += value.detach()
        if name in weights:
            total = total + weights[name] * value
    return total


def _not_one_each(name: str, got: Any, cells: int) -> Problem:
    found = f"a tensor of shape {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
    text = f"expected one value per cell, a tensor of shape ({cells},), but got {found}. Sum over the vocabulary alone."
    return Problem(f"/model.losses.{name}", text)


def _normalized_(logits_MV: Tensor) -> Tensor:
    """Log-probabilities, at least float32, in the memory of the logits where they are that already."""
    logits_MV = at_least_float32(logits_MV)
    return logits_MV.sub_(logits_MV.logsumexp(-1, keepdim=True))


def _made_in_chunks(logits: Callable[[slice], Tensor], num_cells: int) -> Callable[[slice], Tensor]:
    """The same logits, part by part in their order, from products of a whole chunk."""
    made: dict[int, Tensor] = {}

    def part_of(part: slice) -> Tensor:
        start = part.start // num_cells * num_cells
        if start not in made:
            made.clear()  # before the next is made
            made[start] = logits(slice(start, start + num_cells))
        return made[start][part.start - start : part.stop - start]

    return part_of


# One chunk of m cells, and the only [m, V] tensors that live as long as it:
#
#   states [m, D] --product--> logits [m, V]          one piece of memory, three meanings in turn
#                              log-probs [m, V]       normalized in place
#                                  |  terms(log-probs), a part of the rows at a time on a CPU: their intermediates
#                                  |  stay small, while the products above and below have all m rows
#                                  v
#                              d total / d log-probs  by autograd over the terms alone, a part at a time
#                              d total / d logits     = g - softmax * sum(g), written over the log-probs
#   d states [m, D] <--product-- |
#   d weight [V, D] += (d logits)^T states
#
# So the whole gradient exists when the forward pass ends, and backward only scales it.
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
        is_half = states_MD.dtype == torch.float16
        kept_dtype = torch.float32 if is_half else states_MD.dtype
        grad_states_MD = torch.empty_like(states_MD, dtype=kept_dtype) if needs_states else None
        grad_weight_VD = torch.zeros_like(weight_VD) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V) if needs_bias and bias_V is not None else None
        total = states_MD.new_zeros((), dtype=torch.float32)
        needs_gradient = needs_states or needs_weight or needs_bias
        # An accelerator would rather have few large kernels.
        num_together = -(-num_cells // PARTS) if (_target.get() or states_MD.device.type) == "cpu" else num_cells
        turns = _turns.get()
        for start in turns(range(0, len(states_MD), num_cells)):
            chunk = slice(start, min(start + num_cells, len(states_MD)))
            # The logits' memory holds log-probabilities next, and then the gradient.
            grad_MV = product(states_MD[chunk], weight_VD, bias_V)
            largest = None  # of the gradients of a chunk in float16
            in_part = len(grad_MV) if grad_MV.dtype == torch.float16 else num_together
            for first in turns(range(chunk.start, chunk.stop, in_part)):
                part = slice(first, min(first + in_part, chunk.stop))
                part_MV = grad_MV[part.start - start : part.stop - start]
                log_probs_MV = _normalized_(part_MV).detach()
                if not needs_gradient:
                    total += evaluate(log_probs_MV, part)
                    continue
                with torch.enable_grad():
                    value = evaluate(log_probs_MV.requires_grad_(), part)
                    # Terms without any gradient have a constant for their value.
                    (grad,) = torch.autograd.grad(value, log_probs_MV) if value.requires_grad else (None,)
                total += value.detach()
                del value
                if grad is None:
                    part_MV.zero_()
                    continue
                # From log-probabilities to logits.
                probs_MV = log_probs_MV.detach().exp_()
                torch.addcmul(grad, probs_MV, grad.sum(-1, keepdim=True), value=-1, out=probs_MV)
                if part_MV.dtype == torch.float16:
                    # It keeps nothing below 6e-8, and the scale of 16-mixed comes in backward, too late for these products.
                    largest = probs_MV.abs().amax().clamp(min=1e-30)
                    probs_MV /= largest
                if probs_MV.dtype != part_MV.dtype:
                    part_MV.copy_(probs_MV)
                del grad, log_probs_MV, probs_MV
            if not needs_gradient:
                continue
            if grad_states_MD is not None:
                grad_states_MD[chunk] = _times(times_weight(grad_MV, weight_VD), largest)
            if grad_weight_VD is not None:
                if largest is None and grad_weight_VD.dtype == grad_MV.dtype == states_MD.dtype:
                    grad_weight_VD.addmm_(grad_MV.T, states_MD[chunk])
                else:
                    grad_weight_VD += _times(grad_MV.T @ states_MD[chunk].to(grad_MV.dtype), largest)
            if grad_bias_V is not None:
                grad_bias_V += _times(grad_MV.sum(0), largest)
            del grad_MV, part_MV  # before the next chunk's logits are made
        ctx.gradients = (grad_states_MD, grad_weight_VD, grad_bias_V)
        ctx.dtypes = (states_MD.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The sum over cells can be differentiated once: its gradients were scaled in place.")
        gradients, ctx.gradients = ctx.gradients, None
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return *(None if each is None else each.mul_(grad).to(dtype) for each, dtype in pairs), None, None


def _times(values: Tensor, number: Tensor | None) -> Tensor:
    """The values times a number, in float32; as they are where there is none."""
    return values if number is None else values.float() * number
