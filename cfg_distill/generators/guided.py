"""A generator under classifier-free guidance: the teacher of the distillation, and the sampler of the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfg_distill.generators.base import DecodingState, Generator
from cfg_distill.generators.scored import Scored
from cfg_distill.guidance import Guidance, guided_logits, guided_states


@dataclass
class _Branches:
    """Decoding under guidance: rows 0 to N are the prompts' branch, rows N to 2N the negative one."""

    both: DecodingState
    position: int
    num_rows: int


class Guided:
    """The stream of guided predictions of one generator: both branches see the same generated prefix.

    Decoding runs both branches as one batch of 2N rows; scoring runs them one after the other, which costs the same and
    holds half the activations.
    """

    def __init__(self, generator: Generator, guidance: Guidance) -> None:
        self.generator = generator
        self.guidance = guidance
        self.delays = generator.delays
        self.end_tokens = generator.end_tokens
        self.pad_token = generator.pad_token

    def _mix(self, prompt: Scored, negative: Scored, position_T: Tensor) -> Scored:
        scale_T1 = self.guidance.scale_at(position_T)[:, None]
        if prompt.states_NTD is None or negative.states_NTD is None or not self.guidance.mix_states:
            return Scored(logits_NKTV=guided_logits(prompt.whole().float(), negative.whole().float(), scale_T1))
        # The formula is affine, and so is the head: mixed states give mixed logits, for one head product instead of two.
        states_NTD = guided_states(prompt.states_NTD.float(), negative.states_NTD.float(), scale_T1)
        return Scored(states_NTD.to(prompt.states_NTD.dtype), prompt.head)

    def _mix_halves(self, both: Scored, position: int, device: torch.device) -> Scored:
        half = both.num_rows // 2
        return self._mix(both.rows(slice(half)), both.rows(slice(half, None)), torch.tensor([position], device=device))

    def prefill(self, prompts: Sequence[str | None], repeats: int) -> tuple[_Branches, Scored]:
        negatives = self.guidance.negatives(prompts)
        state, both = self.generator.prefill([*prompts, *negatives * (len(prompts) // len(negatives))], repeats)
        return _Branches(state, 0, len(prompts) * repeats), self._mix_halves(both, 0, self.generator.device)

    def step(self, state: _Branches, tokens_NK: Tensor) -> tuple[_Branches, Scored]:
        both_rows, both = self.generator.step(state.both, tokens_NK.repeat(2, 1))
        position = state.position + 1
        return replace(state, both=both_rows, position=position), self._mix_halves(both, position, tokens_NK.device)

    def keep(self, state: _Branches, rows_M: Tensor) -> _Branches:
        both = self.generator.keep(state.both, torch.cat([rows_M, rows_M + state.num_rows]))
        return replace(state, both=both, num_rows=len(rows_M))

    def scored(self, prompts: Sequence[str | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Scored:
        prompt = self.generator.scored(prompts, tokens_NKT, mask_NKT)
        if not self.guidance.active:
            return prompt
        # A negative for all rows is read once, not once a prompt.
        negative = self.generator.scored(self.guidance.negatives(prompts), tokens_NKT, mask_NKT)
        return self._mix(prompt, negative, torch.arange(tokens_NKT.shape[-1], device=tokens_NKT.device))
