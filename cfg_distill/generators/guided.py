"""A generator under classifier-free guidance: the teacher of the distillation, and the sampler of the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.generators.base import Generator
from cfg_distill.generators.predictions import Logits, Predictions
from cfg_distill.generators.predictor import AcceptsScored, Predictor
from cfg_distill.guidance import Guidance, guided_logits, guided_states
from cfg_distill.prompt import PromptLike


@dataclass
class _Branches:
    """The state of decoding under guidance: rows 0 to N are the prompts' branch, rows N to 2N the negative branch."""

    both: Any
    position: int
    num_rows: int


def problems_of_drop(generator: Generator, guidance: Guidance) -> list[Problem]:
    """Why a generator without other problems does not drop prompts as the guidance says, found without loading weights."""
    if guidance.drop == "prompt" or generator.takes_tail:
        return []
    text = (
        "expected `prompt` as `drop` of the guidance, since only language models without a chat template begin at the"
        f" last token of a prompt, but `{generator.path}` is none. Leave `drop` out. If it has a"
        " template, `chat_template: false` does without."
    )
    return [Problem("", text)]


def under(predictor: Predictor, guidance: Guidance | None) -> Predictor:
    """The predictor under guidance; the predictor itself where guidance needs no second pass."""
    return predictor if guidance is None or not guidance.active else Guided(predictor, guidance)


def with_negatives(
    predictor: Predictor, prompts: Sequence[PromptLike | None], guidance: Guidance
) -> list[PromptLike | None]:
    """The prompts of both branches as one batch: B of the prompts, then B of the negative branch."""
    negatives = predictor.negatives(prompts, guidance)
    return [*prompts, *negatives * (len(prompts) // len(negatives))]


class Guided(AcceptsScored):
    """The guided predictions of a generator, or of another predictor: both branches see the same generated prefix.

    Decoding runs both branches as one batch of 2N rows. :meth:`predictions` runs them one after the other, at the same cost
    and with half the activations.
    """

    def __init__(self, generator: Predictor, guidance: Guidance) -> None:
        if found := [each for part in generator.parts for each in problems_of_drop(part, guidance)]:
            raise ConfigError(found)
        self.generator = generator
        self.parts = generator.parts
        self.passes = 2 * generator.passes
        self.guidance = guidance
        self.delays = generator.delays
        self.end_tokens = generator.end_tokens
        self.end_codebooks = generator.end_codebooks
        self.pad_token = generator.pad_token

    def _mix(self, prompt: Predictions, negative: Predictions, position_T: Tensor) -> Predictions:
        scale_T1 = self.guidance.scale_at(position_T)[:, None]
        if self.guidance.mix_states and not isinstance(prompt, Logits) and not isinstance(negative, Logits):
            # The formula is affine, and so is the head: mixed states give mixed logits, for one head product instead of two.
            return prompt.mixed(negative, lambda one, other: guided_states(one.float(), other.float(), scale_T1))
        return Logits(guided_logits(prompt.whole().float(), negative.whole().float(), scale_T1))

    def _mix_halves(self, both: Predictions, position: int, device: torch.device) -> Predictions:
        half = both.num_rows // 2
        return self._mix(
            both.rows(slice(half)), both.rows(slice(half, None)), torch.full((1,), position, device=device)
        )

    def prefill(self, prompts: Sequence[PromptLike | None], repeats: int) -> tuple[_Branches, Predictions]:
        state, both = self.generator.prefill(with_negatives(self.generator, prompts, self.guidance), repeats)
        return _Branches(state, 0, len(prompts) * repeats), self._mix_halves(both, 0, self.parts[0].device)

    def step(self, state: _Branches, tokens_NK: Tensor) -> tuple[_Branches, Predictions]:
        both_rows, both = self.generator.step(state.both, tokens_NK.repeat(2, 1))
        position = state.position + 1
        return replace(state, both=both_rows, position=position), self._mix_halves(both, position, tokens_NK.device)

    def deepen(self, state: _Branches, tokens_NJ: Tensor) -> tuple[_Branches, Predictions]:
        both_rows, both = self.generator.deepen(state.both, tokens_NJ.repeat(2, 1))
        return replace(state, both=both_rows), self._mix_halves(both, state.position, tokens_NJ.device)

    def negatives(self, prompts: Sequence[PromptLike | None], guidance: Guidance) -> list[PromptLike | None]:
        return self.generator.negatives(prompts, guidance)

    def keep(self, state: _Branches, rows_M: Tensor) -> _Branches:
        both = self.generator.keep(state.both, torch.cat([rows_M, rows_M + state.num_rows]))
        return replace(state, both=both, num_rows=len(rows_M))

    def predictions(self, prompts: Sequence[PromptLike | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        prompt = self.generator.predictions(prompts, tokens_NKT, mask_NKT)
        if not self.guidance.active:
            return prompt
        # A negative prompt that serves all rows is read once, not once per prompt.
        negative = self.generator.predictions(self.generator.negatives(prompts, self.guidance), tokens_NKT, mask_NKT)
        return self._mix(prompt, negative, torch.arange(tokens_NKT.shape[-1], device=tokens_NKT.device))
