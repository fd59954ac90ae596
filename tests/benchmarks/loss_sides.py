"""The distillation loss with its head, forward and backward, as four libraries write it. Reverse KL over 1,536 positions."""

from __future__ import annotations

from functools import partial

import torch
from measure import DEVICE, DTYPE, QUICK, now, peak, reset_peak, use_threads
from torch import Tensor
from worker import Channel

POSITIONS, WIDTH, VOCABULARY = (256 if QUICK else 1536), 576, 49_152
ROWS = 32


class Inputs:
    """States of student and teacher, and their heads; the student's take gradients."""

    def __init__(self) -> None:
        use_threads()
        random = torch.Generator(DEVICE).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=DEVICE, generator=random).to(DTYPE)

        self.teacher_MD, self.teacher_VD = normal(POSITIONS, WIDTH), normal(VOCABULARY, WIDTH) / 8
        self.student_MD = (self.teacher_MD + normal(POSITIONS, WIDTH) / 4).requires_grad_()
        self.student_VD = self.teacher_VD.clone().requires_grad_()
        self.tokens_M = torch.randint(VOCABULARY, (POSITIONS,), device=DEVICE, generator=random)


def naive(given: Inputs) -> Tensor:
    """All logits, all log-probabilities, autograd."""
    student = (given.student_MD @ given.student_VD.T).float().log_softmax(-1)
    teacher = (given.teacher_MD @ given.teacher_VD.T).float().log_softmax(-1)
    return (student.exp() * (student - teacher)).sum()


def ours(given: Inputs) -> Tensor:
    """What a training step calls, with its defaults."""
    from cfg_distill.generators.predictions import Head, HiddenStates
    from cfg_distill.losses import LOGITS_CHUNK
    from cfg_distill.losses.chunked import sum_over_cells
    from cfg_distill.losses.divergences import reverse_kl_cells

    student, teacher = (
        HiddenStates(states_MD.view(ROWS, -1, WIDTH), Head([weight_VD]))
        for states_MD, weight_VD in ((given.student_MD, given.student_VD), (given.teacher_MD, given.teacher_VD))
    )
    tokens_NKT = given.tokens_M.view(ROWS, 1, -1)
    mask_NKT = torch.ones_like(tokens_NKT, dtype=torch.bool)
    terms = {"kl": lambda cells: reverse_kl_cells(cells.student_log_probs_MV, cells.teacher_log_probs_MV)}
    return sum_over_cells(student, teacher, tokens_NKT, mask_NKT, terms, {"kl": 1.0}, LOGITS_CHUNK)[0]


def trl(given: Inputs) -> Tensor:
    """What TRL's DistillationTrainer calls: Triton on a GPU, torch elsewhere."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones(ROWS, POSITIONS // ROWS, device=DEVICE)
    states = (states_MD.view(ROWS, -1, WIDTH) for states_MD in (given.student_MD, given.teacher_MD))
    return _chunked_divergence_loss(*states, given.student_VD, given.teacher_VD, mask, beta=1.0, num_items_in_batch=1)[
        0
    ]


def liger(given: Inputs) -> Tensor:
    """Liger's chunked JSD at b = 1, which is reverse KL; its own chunks, uncompiled on a CPU."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=1.0, compiled=DEVICE == "cuda")
    mean = loss(given.student_MD, given.student_VD, given.teacher_MD, given.teacher_VD, given.tokens_M)
    return mean * POSITIONS


SIDES = {"ours": ours, "naive": naive, "trl": trl, "liger": liger}


def _serve(name: str, channel: Channel) -> None:
    given = Inputs()
    answer: dict[str, float] = {}
    while channel.ask(answer):
        # Twice a turn: while the others had theirs, this one's memory went cold, which a training step's is not.
        for _ in range(2):
            given.student_MD.grad = given.student_VD.grad = None
            before, began = reset_peak(), now()
            value = SIDES[name](given)
            value.backward()
            seconds = now() - began
        assert given.student_MD.grad is not None
        gradient = given.student_MD.grad.float().norm().item()
        answer = {"seconds": seconds, "extra": peak() - before, "value": value.item(), "gradient": gradient}


def floor_side(channel: Channel) -> None:
    """The four products that every library needs, and nothing else: logits of student and teacher, and both gradients."""
    from cfg_distill.generators.linear import product, times_weight

    given = Inputs()
    answer: dict[str, float] = {}
    with torch.no_grad():
        while channel.ask(answer):
            for _ in range(2):
                began = now()
                logits_MV = product(given.student_MD, given.student_VD, None)
                product(given.teacher_MD, given.teacher_VD, None)
                times_weight(logits_MV, given.student_VD)
                torch.mm(logits_MV.T, given.student_MD)
                answer = {"seconds": now() - began}


# For `worker`.
ours_side, naive_side, trl_side, liger_side = (partial(_serve, name) for name in ("ours", "naive", "trl", "liger"))
