"""Divergences between two next-token distributions, as pure functions that return (sum, count).

All of them take raw logits ``[..., V]`` and a mask ``[...]`` of the cells that count, work in float32 or better (half
precision makes a KL negative), and never read a masked cell: NaN there changes neither value nor gradient.

A logit of minus infinity forbids a token. Each divergence takes its limit there: ``p (log p - log q)`` is 0 where p is 0. So a
token that student and teacher both forbid adds nothing to value or gradient. A token with mass in p and none in q makes the
divergence infinite, and its gradient too: such a student cannot be trained by it, and the fit stops (the generalised
Jensen-Shannon divergence stays finite).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# From log-probabilities of student and teacher, [M, V] each, to one value per cell, [M].
CellDivergence = Callable[[Tensor, Tensor], Tensor]


def at_least_float32(logits: Tensor) -> Tensor:
    """The logits in float32 or better: half precision makes a KL negative."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_probs(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Log-probabilities of the valid cells, at least float32: ``[..., V]`` to ``[M, V]``."""
    valid = logits.flatten(0, -2) if mask is None else logits[mask.bool()]
    return at_least_float32(valid).log_softmax(-1)


def reverse_kl_cells(student: Tensor, teacher: Tensor) -> Tensor:
    r"""KL of log-probabilities ``[M, V]``, one value per cell ``[M]``: :math:`\sum_v s_v (\log s_v - \log t_v)`.

    s are the student's probabilities, t the teacher's. It can be differentiated once.
    """
    return _ReverseKL.apply(student, teacher)


class _ReverseKL(torch.autograd.Function):
    """``(exp(s) (s - t)).sum(-1)`` with half the memory of autograd: the probabilities are made again where they are needed."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        difference = student - teacher
        ctx.save_for_backward(student, difference)
        # Products in the memory of the probabilities: einsum is a matrix product, and MKL's takes four times as long.
        if student.device.type == "cpu":
            value_M = student.exp().mul_(difference).sum(-1)
            if value_M.isfinite().all():
                return value_M
        # A forbidden token gives -inf - -inf, or 0 times infinity: its limit is 0. A CPU looks for such tokens in the M values,
        # which costs nothing; an accelerator would have to be waited for, and masks always.
        probs = student.exp()
        difference.masked_fill_(probs == 0, 0.0)
        return probs.mul_(difference).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, Tensor | None]:
        student, difference = ctx.saved_tensors
        needs_student, needs_teacher = ctx.needs_input_grad
        probs = student.exp().mul_(grad_M.unsqueeze(-1))
        grad_teacher = -probs if needs_teacher else None
        return torch.addcmul(probs, probs, difference, out=probs) if needs_student else None, grad_teacher


def forward_kl_cells(student: Tensor, teacher: Tensor) -> Tensor:
    r"""KL of log-probabilities ``[M, V]``, one value per cell ``[M]``: :math:`\sum_v t_v (\log t_v - \log s_v)`."""
    return reverse_kl_cells(teacher, student)


def jensen_shannon_cells(student: Tensor, teacher: Tensor, weight: float = 0.5) -> Tensor:
    """JSD(b) / (b (1 - b)) of log-probabilities ``[M, V]``, one value per cell ``[M]``; at 0 and 1 its limits."""
    if weight == 0:
        return forward_kl_cells(student, teacher)
    if weight == 1:
        return reverse_kl_cells(student, teacher)
    mixture = _log_sum(teacher + math.log(weight), student + math.log1p(-weight))
    divergence = weight * reverse_kl_cells(teacher, mixture) + (1 - weight) * reverse_kl_cells(student, mixture)
    return divergence / (weight * (1 - weight))


def _log_sum(a: Tensor, b: Tensor) -> Tensor:
    """``log(exp(a) + exp(b))``: minus infinity, without a gradient, where both are (torch's gradient there is NaN)."""
    sum_MV = torch.logaddexp(a, b)
    # A look at the values would wait for an accelerator at every chunk.
    if not sum_MV.numel() or (sum_MV.device.type == "cpu" and sum_MV.detach().amin() > -torch.inf):
        return sum_MV
    both = sum_MV.detach().isneginf()
    return torch.logaddexp(a.masked_fill(both, 0.0), b.masked_fill(both, 0.0)).masked_fill(both, -torch.inf)


def entropy_cells(log_probs: Tensor) -> Tensor:
    r"""Entropy in nats of log-probabilities ``[M, V]``, one value per cell ``[M]``: :math:`-\sum_v p_v \log p_v`."""
    value_M = -(log_probs.exp() * log_probs).sum(-1)
    if value_M.device.type == "cpu" and value_M.isfinite().all():
        return value_M
    return -(log_probs.exp() * log_probs.masked_fill(log_probs.isneginf(), 0.0)).sum(-1)  # 0 log 0 = 0


def entropy_aware_cells(student: Tensor, teacher: Tensor, threshold: float) -> Tensor:
    """Reverse KL, plus forward KL where the teacher's entropy exceeds the threshold; one value per cell ``[M]``."""
    uncertain_M = entropy_cells(teacher) > threshold
    # where, and no product: elsewhere forward KL may be infinite.
    return reverse_kl_cells(student, teacher) + torch.where(uncertain_M, forward_kl_cells(student, teacher), 0.0)


def _sum_and_count(
    cells: CellDivergence, student: Tensor, teacher: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Expected `student` and `teacher` of one shape but got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    values = cells(_log_probs(student, mask), _log_probs(teacher, mask))
    return values.sum(), torch.tensor(values.numel(), device=values.device)


def reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Sum over cells of the full-vocabulary :math:`\mathrm{KL}(\text{student} \| \text{teacher})`, and the number of cells.

    .. math:: \sum_{m} \sum_{v=1}^{V} s_{mv} \, (\log s_{mv} - \log t_{mv})

    with s the softmax of the student's logits and t that of the teacher's, at each cell m that the mask counts.

    Mode-seeking; the paper's choice on the student's own samples. Source: Cideron et al., ICLR 2025, Eq. 2.

    Args:
        student: logits, ``[..., V]``.
        teacher: logits, ``[..., V]``.
        mask: True on the cells that count, ``[...]``; None counts all.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> value, count = reverse_kl(student, teacher)
        >>> round(value.item(), 4), count.item()
        (0.1201, 1)
    """
    return _sum_and_count(reverse_kl_cells, student, teacher, mask)


def forward_kl(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Sum over cells of :math:`\mathrm{KL}(\text{teacher} \| \text{student})`, and the number of cells.

    .. math:: \sum_{m} \sum_{v=1}^{V} t_{mv} \, (\log t_{mv} - \log s_{mv})

    with s the softmax of the student's logits and t that of the teacher's, at each cell m that the mask counts.

    Mass-covering. Arguments and errors as in :func:`reverse_kl`.
    """
    return _sum_and_count(forward_kl_cells, student, teacher, mask)


def jensen_shannon(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, weight: float = 0.5
) -> tuple[Tensor, Tensor]:
    r"""Sum over cells of the generalised Jensen-Shannon divergence, divided by b (1 - b), and the number of cells.

    .. math:: \frac{b\,\mathrm{KL}(t \| m) + (1-b)\,\mathrm{KL}(s \| m)}{b (1-b)}, \qquad m = b\,t + (1-b)\,s

    The divisor makes forward KL the limit at b = 0 and reverse KL the limit at b = 1, so that beta keeps its meaning
    whatever b is. Source: Agarwal et al., arXiv 2306.13649, Eq. 1 (there without the divisor).

    Args:
        student: logits, ``[..., V]``.
        teacher: logits, ``[..., V]``.
        mask: True on the cells that count, ``[...]``; None counts all.
        weight: b, in [0, 1].

    Raises:
        ValueError: shapes differ, or b outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"Expected argument `weight` in [0, 1] but got {weight}.")
    return _sum_and_count(lambda s, t: jensen_shannon_cells(s, t, weight), student, teacher, mask)


def entropy_aware_kl(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, threshold: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Sum over cells of reverse KL, plus forward KL where the teacher's entropy exceeds ``threshold`` nats, and the
    number of cells.

    Where the teacher is sure the student seeks its mode; where it is not, the student must cover it. Arguments and errors
    as in :func:`reverse_kl`.
    """
    return _sum_and_count(lambda s, t: entropy_aware_cells(s, t, threshold), student, teacher, mask)
