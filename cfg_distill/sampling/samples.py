"""Decoded groups of samples, the input of rewards, metrics and callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cfg_distill.generators import Generator, Guidance, Predictor, Prompt, PromptLike
from cfg_distill.sampling.conditioning import Conditioner
from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.rollout import Rollout, rollout
from cfg_distill.sampling.seeds import Seeds


@dataclass
class Samples:
    """B prompts with G decoded samples each.

    Attributes:
        prompts: the texts of the B prompts.
        outputs: B * G texts or :class:`cfg_distill.audio.Waveform`, the samples of one prompt together.
        rollout: the tokens behind the outputs.
        asked: the B prompts as a generator takes them, with their conditions; empty stands for the texts alone.
        start: B * G samples of the start model, each with the opening of the sample at its place; empty without openings.
    """

    prompts: list[str]
    outputs: list[Any]
    rollout: Rollout
    asked: list[PromptLike] = field(default_factory=list)
    start: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.asked = self.asked or list(self.prompts)

    @property
    def group(self) -> int:
        """G, samples per prompt."""
        return len(self.outputs) // len(self.prompts)

    def groups(self) -> list[list[Any]]:
        """The outputs as B lists of G."""
        return [self.outputs[start : start + self.group] for start in range(0, len(self.outputs), self.group)]


def decoded(generator: Generator, prompts: Sequence[PromptLike], drawn: Rollout) -> Samples:
    """The decoded samples of a rollout."""
    texts = [Prompt.of(prompt).text for prompt in prompts]
    return Samples(texts, generator.decode(drawn.tokens_NKT, drawn.mask_NKT), drawn, list(prompts))


def draw(
    predictor: Predictor,
    prompts: Sequence[PromptLike],
    sampling: Sampling,
    guidance: Guidance | None = None,
    seed: int | Seeds = 0,
    conditioner: Conditioner | None = None,
    opening: Tensor | None = None,
) -> Samples:
    """Roll out and decode. Arguments: see :func:`cfg_distill.sampling.rollout`."""
    drawn = rollout(predictor, prompts, sampling, guidance, seed, conditioner, opening)
    return decoded(predictor.parts[0], prompts, drawn)
