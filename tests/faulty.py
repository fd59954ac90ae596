"""Parts of a tiny fit that break when they are told to: rewards, losses, gradients, memory."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from tiny_fits import student_of

from cfg_distill import CFGDistillation
from cfg_distill.embedders import NGramCounts
from cfg_distill.generators import HiddenStates
from cfg_distill.losses import CellTerm, LossInputs, PolicyGradient, ReverseKL
from cfg_distill.rewards import PairwiseDiversity
from cfg_distill.sampling.samples import Samples

CPU_TEXT = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"
REFUSALS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), RuntimeError(CPU_TEXT)]


class Bigrams(PairwiseDiversity):
    """A reward with a running mean, which reads every batch; broken in some of them.

    Args:
        broken: numbers of the calls that go wrong.
        what: goes wrong: ``reward`` or ``embedding``.
        value: what stands there then.
    """

    def __init__(self, broken: Any = (), what: str = "reward", value: float = torch.nan) -> None:
        super().__init__(Sick(broken, value) if what == "embedding" else NGramCounts(), baseline="running_mean")
        self.broken = broken if what == "reward" else ()
        self.value = value
        self.calls = 0

    def pairs(self, samples: Samples) -> torch.Tensor:
        pairs_BGG = super().pairs(samples)
        self.calls += 1
        if self.calls - 1 in self.broken:
            pairs_BGG[0, 0, 1] = pairs_BGG[0, 1, 0] = self.value
        return pairs_BGG


class Sick(NGramCounts):
    """An embedder one of whose vectors is no number, in some calls."""

    def __init__(self, broken: Any, value: float) -> None:
        super().__init__()
        self.broken = broken
        self.value = value
        self.calls = 0

    def embed(self, outputs: Any) -> torch.Tensor:
        found = super().embed(outputs)
        self.calls += 1
        if self.calls - 1 in self.broken:
            found[1, 0] = self.value
        return found

    def degenerate(self, outputs: Any) -> torch.Tensor:
        return torch.zeros(len(outputs), dtype=torch.bool)


class SickKL(ReverseKL):
    """A loss that is infinite in one step; ``steps`` counts the batches."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.steps = -1

    def advantage(self, samples: Samples) -> None:
        self.steps += 1

    def cells(self, inputs: LossInputs) -> CellTerm:
        own = super().cells(inputs)
        return lambda cells: own(cells) * (torch.inf if self.steps == self.step else 1.0)


class SickGradient(L.Callback):
    """Puts NaN into the gradient of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            next(p for p in pl_module.student.parameters() if p.grad is not None).grad.view(-1)[0] = torch.nan


class Counts(L.Callback):
    """`train/bad_steps` after each batch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if "train/bad_steps" in trainer.callback_metrics:
            self.seen.append(int(trainer.callback_metrics["train/bad_steps"]))


def module_with(folder: str, reward: Any, kl: Any = None, **settings: Any) -> CFGDistillation:
    losses = {"kl": kl or ReverseKL(), "diversity": PolicyGradient(reward, weight=0.5)}
    return student_of(folder, losses=losses, **settings)


# Memory


class Refusing:
    """The predictions of a student in a memory that is full at one moment, or too small for so many samples.

    Args:
        module: whose student.
        where: ``forward`` or ``backward``.
        at: the number of the call that fails.
        most: samples that fit; more of them fail at every call.
    """

    def __init__(self, module: CFGDistillation, where: str, at: int = -1, most: int = 10**9) -> None:
        module.configure_model()  # the teacher is a copy of the student as it was
        self.own = module.student.predictions
        self.where = where
        self.at = at
        self.most = most
        self.calls = 0
        self.fired = 0
        module.student.predictions = self.predictions  # type: ignore[method-assign]

    def predictions(self, prompts: Any, tokens_NKT: torch.Tensor, mask_NKT: torch.Tensor) -> HiddenStates:
        found = self.own(prompts, tokens_NKT, mask_NKT)
        assert isinstance(found, HiddenStates)
        fails = self.calls == self.at or len(tokens_NKT) > self.most
        self.calls += 1
        return HiddenStates(Refuse.apply(found.states_NTD, self, fails), found.head)

    def refuse(self, where: str, fails: bool) -> None:
        if fails and where == self.where:
            self.fired += 1
            raise REFUSALS[self.fired % 2]


class Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, memory: Refusing, fails: bool) -> torch.Tensor:
        ctx.memory, ctx.fails = memory, fails
        memory.refuse("forward", fails)
        return states * 1

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.memory.refuse("backward", ctx.fails)
        return gradient * 1, None, None
