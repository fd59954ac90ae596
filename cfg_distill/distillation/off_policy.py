"""Off-policy distillation: the student learns from samples of the guided teacher, and not from its own.

It is the usual way to put guidance into weights, and a baseline of this package. Fine-tuning on guided samples is
``off_policy`` with :class:`~cfg_distill.losses.CrossEntropy`; distillation of whole distributions on them is ``off_policy``
with :class:`~cfg_distill.losses.ForwardKL`. Every step draws new samples: it is one pass over a large file of guided samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from cfg_distill.errors import Problem
from cfg_distill.generators import Guided, Predictions, Prompt, PromptLike
from cfg_distill.losses import CrossEntropy, Divergence, PolicyGradient
from cfg_distill.sampling import Opening
from cfg_distill.sampling.samples import Samples, draw
from cfg_distill.sampling.seeds import Seeds

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation


def to_learn_from(module: CFGDistillation, prompts: Sequence[PromptLike], seed: int | Seeds) -> Samples:
    """The samples that a training step learns from: the student's own or, off-policy, those of the guided teacher."""
    if module.off_policy:
        return of_start(module, prompts, seed, guided=True)
    return module.draw(prompts, seed) if module.opening is None else opened(module, prompts, seed, module.opening)


def opened(module: CFGDistillation, prompts: Sequence[PromptLike], seed: int | Seeds, opening: Opening) -> Samples:
    """Samples of the student that go on from the beginnings of samples of the start model."""
    seeds = Seeds.of(seed, len(prompts))
    # Other random numbers than the student's: the two must be independent behind the opening.
    start = of_start(module, prompts, replace(seeds, words=(*seeds.words, 1)), guided=False)
    given_BGKt = start.rollout.beginning(opening.tokens)
    samples = draw(module.student, prompts, module.sampling, None, seeds, module.conditioner, given_BGKt)
    return replace(samples, start=start.outputs)


def of_start(module: CFGDistillation, prompts: Sequence[PromptLike], seed: int | Seeds, guided: bool) -> Samples:
    """Samples of the start model: as it is, or as the guided teacher, which may read more than the prompt."""
    assert module.teacher is not None
    if not guided:
        return draw(module.teacher, prompts, module.sampling, seed=seed)
    drawn = draw(module.teacher, module.guidance.of_teacher(prompts), module.sampling, module.guidance, seed)
    return replace(drawn, prompts=[Prompt.of(prompt).text for prompt in prompts], asked=list(prompts))


def of_teacher(
    module: CFGDistillation, prompts: Sequence[PromptLike], tokens_NKT: Tensor, mask_NKT: Tensor
) -> Predictions:
    """Predictions of the guided teacher, without gradient. Off-policy they are made when they are first read, or never."""
    assert module.teacher is not None
    guided, asked = Guided(module.teacher, module.guidance), module.guidance.of_teacher(prompts)

    @torch.no_grad()
    def predict() -> Predictions:
        return guided.predictions(asked, tokens_NKT, mask_NKT)

    return cast(Predictions, OnDemand(predict)) if module.off_policy else predict()


class OnDemand:
    """Predictions that are made when a loss first reads them: cross entropy reads none of the teacher's."""

    def __init__(self, predict: Callable[[], Predictions]) -> None:
        self._predict = predict

    @cached_property
    def _made(self) -> Predictions:
        return self._predict()

    def whole(self) -> Tensor:
        """All logits, ``[N, K, T, V]``."""
        return self._made.whole()

    def at(self, k: int, row_M: Tensor, position_M: Tensor) -> Tensor:
        """The logits of some cells of codebook k, ``[M, V]``."""
        return self._made.at(k, row_M, position_M)


def problems_of_policy(module: CFGDistillation) -> list[Problem]:
    """Losses that need samples of the student, and cross entropy on samples of the student, which teaches nothing."""
    found = []
    if module.off_policy and module.conditioner is not None:
        text = "expected none under `@/model.off_policy`: the teacher draws the samples, and reads no label. Remove it."
        found.append(Problem("conditioner", text))
    if module.off_policy and module.opening is not None:
        text = (
            "expected none under `@/model.off_policy`: the teacher draws the samples from their beginning. Remove it."
        )
        found.append(Problem("opening", text))
    if module.opening is not None and not module.sampler.is_own_loop:
        text = (
            "expected none where an engine is the `@/model.sampler`: its samples begin at their beginning. Remove it."
        )
        found.append(Problem("opening", text))
    for name, loss in module.mix.items():
        why = _wrong(loss, module.off_policy)
        if why:
            found.append(Problem(f"losses.{name}", why))
    return found


def _wrong(loss: Any, off_policy: bool) -> str:
    if isinstance(loss, CrossEntropy) and not off_policy:
        return (
            "expected `@/model.off_policy` to be true, since on the student's own samples the expected gradient of cross"
            " entropy is 0. Set it."
        )
    if not off_policy:
        return ""
    if isinstance(loss, PolicyGradient):
        return "expected no reward under `@/model.off_policy`: its gradient is that of the student's own samples. Remove it."
    if isinstance(loss, Divergence) and loss.score_term:
        return "expected no `score_term` under `@/model.off_policy`: the teacher drew the samples. Set it to false."
    return ""
