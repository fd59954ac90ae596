"""A generator under classifier-free guidance: the teacher of the distillation, and the sampler of the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cfg_distill.generators.base import DecodingState, Generator
from cfg_distill.guidance import Guidance, guided_logits


class Guided:
    """The stream of guided logits of one generator: both branches see the same generated prefix.

    Decoding runs both branches as one batch of 2N rows; scoring runs them one after the other, which costs the same and
    holds half the activations.
    """

    def __init__(self, generator: Generator, guidance: Guidance) -> None:
        self.generator = generator
        self.guidance = guidance
        self.num_codebooks = generator.num_codebooks
        self.end_token = generator.end_token
        self.pad_token = generator.pad_token

    def _negatives(self, prompts: Sequence[str | None]) -> list[str | None]:
        return [self.guidance.negative] * len(prompts)

    def _mix(self, logits_2NKV: Tensor, position: int) -> Tensor:
        prompt_NKV, negative_NKV = logits_2NKV.float().chunk(2)
        scale = self.guidance.scale_at(torch.tensor([position], device=logits_2NKV.device))
        return guided_logits(prompt_NKV, negative_NKV, scale)

    def prefill(self, prompts: Sequence[str | None], repeats: int) -> tuple[Any, Tensor]:
        both = [*prompts, *self._negatives(prompts)]
        state, logits_2NKV = self.generator.prefill(both, repeats)
        return (state, 0), self._mix(logits_2NKV, 0)

    def step(self, state: tuple[DecodingState, int], tokens_NK: Tensor) -> tuple[Any, Tensor]:
        inner, position = state
        inner, logits_2NKV = self.generator.step(inner, tokens_NK.repeat(2, 1))
        return (inner, position + 1), self._mix(logits_2NKV, position + 1)

    def logits(self, prompts: Sequence[str | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Tensor:
        prompt_NKTV = self.generator.logits(prompts, tokens_NKT, mask_NKT).float()
        if not self.guidance.active:
            return prompt_NKTV
        negative_NKTV = self.generator.logits(self._negatives(prompts), tokens_NKT, mask_NKT).float()
        scale_T = self.guidance.scale_at(torch.arange(tokens_NKT.shape[-1], device=tokens_NKT.device))
        return guided_logits(prompt_NKTV, negative_NKTV, scale_T[:, None])
