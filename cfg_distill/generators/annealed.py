"""Annealed guidance: a sample begins by one model and ends by another. Shapes: N rows, K codebooks, T positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cfg_distill.errors import Problem
from cfg_distill.generators.base import Generator
from cfg_distill.generators.predictions import Logits, Predictions
from cfg_distill.generators.predictor import AcceptsScored, Predictor
from cfg_distill.guidance import Guidance, Schedule, guided_logits
from cfg_distill.prompt import PromptLike


@dataclass
class _Pair:
    """The states of decoding of both predictors, at one position."""

    start: Any
    tuned: Any
    position: int


class Annealed(AcceptsScored):
    r"""From the predictions of a start model to the predictions of a model that was tuned from it, as a sample is written.

    .. math:: z_n = z_\text{start} + w_n (z_\text{tuned} - z_\text{start})

    where the weight w_n rises from 0 to 1 over the positions n. So the opening has the variety of the start model, and the rest
    is the tuned model's. It is the formula of guidance, with two models in the place of two prompts. So for a student that has
    learnt guidance of scale gamma perfectly, this is guidance of scale 1 + w_n (gamma - 1), at the same cost of two passes. And
    that can be distilled: ``guidance: {scale: 1, final_scale: gamma, schedule: power}``. Source: arXiv 2409.06493, on
    diffusion, where each step refines a whole image; here no token is ever revised.

    A sampler, and no way to train: its samples are not the student's own.

    Args:
        start: the start model.
        tuned: the model that was tuned from it, with the same vocabulary.
        schedule: w, from 0 to 1.
    """

    def __init__(self, start: Predictor, tuned: Predictor, schedule: Schedule = Schedule()) -> None:
        self.start = start
        self.tuned = tuned
        self.schedule = schedule
        self.parts = (*tuned.parts, *start.parts)
        self.passes = tuned.passes + start.passes
        self.delays = tuned.delays
        self.end_tokens = tuned.end_tokens
        self.end_codebooks = tuned.end_codebooks
        self.pad_token = tuned.pad_token

    def _mix(self, start: Predictions, tuned: Predictions, position_T: Tensor) -> Predictions:
        # Two models have two heads, so logits are mixed and not states.
        weight_T1 = self.schedule.at(position_T)[:, None]
        return Logits(guided_logits(tuned.whole().float(), start.whole().float(), weight_T1))

    def _mix_at(self, start: Predictions, tuned: Predictions, position: int) -> Predictions:
        return self._mix(start, tuned, torch.full((1,), position, device=self.parts[0].device))

    def prefill(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[_Pair, Predictions]:
        (start_state, start), (tuned_state, tuned) = (
            each.prefill(prompts, repeats) for each in (self.start, self.tuned)
        )
        return _Pair(start_state, tuned_state, 0), self._mix_at(start, tuned, 0)

    def step(self, state: _Pair, tokens_NK: Tensor) -> tuple[_Pair, Predictions]:
        position = state.position + 1
        start_state, start = self.start.step(state.start, tokens_NK)
        tuned_state, tuned = self.tuned.step(state.tuned, tokens_NK)
        return _Pair(start_state, tuned_state, position), self._mix_at(start, tuned, position)

    def deepen(self, state: _Pair, tokens_NJ: Tensor) -> tuple[_Pair, Predictions]:
        start_state, start = self.start.deepen(state.start, tokens_NJ)
        tuned_state, tuned = self.tuned.deepen(state.tuned, tokens_NJ)
        return _Pair(start_state, tuned_state, state.position), self._mix_at(start, tuned, state.position)

    def negatives(self, prompts: Sequence[PromptLike | None], guidance: Guidance) -> list[PromptLike | None]:
        return self.tuned.negatives(prompts, guidance)

    def keep(self, state: _Pair, rows_M: Tensor) -> _Pair:
        return _Pair(self.start.keep(state.start, rows_M), self.tuned.keep(state.tuned, rows_M), state.position)

    def predictions(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        start, tuned = (each.predictions(prompts, tokens_NKT, mask_NKT) for each in (self.start, self.tuned))
        return self._mix(start, tuned, torch.arange(tokens_NKT.shape[-1], device=tokens_NKT.device))


def problems_of_mixing(start: Generator, tuned: Generator) -> list[Problem]:
    """Why the predictions of two generators without other problems cannot be mixed, found without loading weights."""
    ours, theirs = tuned.layout, start.layout
    if other := [name for name in ours if ours[name] != theirs.get(name)]:
        text = f"expected a model with the {' and the '.join(other)} of `{tuned.path}`, but `{start.path}` has others."
        return [Problem("", f"{text} Name the model that it was trained from.")]
    return []
