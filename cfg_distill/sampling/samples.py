"""Decoded groups of samples: what rewards, metrics and callbacks see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cfg_distill.generators import Generator
from cfg_distill.guidance import Guidance
from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.rollout import Rollout, rollout


@dataclass
class Samples:
    """B prompts with G decoded samples each.

    Attributes:
        prompts: the B prompts.
        outputs: B * G texts or :class:`cfg_distill.audio.Waveform`, the samples of one prompt together.
        rollout: the tokens behind them.
    """

    prompts: list[str]
    outputs: list[Any]
    rollout: Rollout

    @property
    def group(self) -> int:
        """G, samples a prompt."""
        return len(self.outputs) // len(self.prompts)

    def groups(self) -> list[list[Any]]:
        """The outputs as B lists of G."""
        return [self.outputs[start : start + self.group] for start in range(0, len(self.outputs), self.group)]


def decoded(generator: Generator, prompts: Sequence[str], drawn: Rollout) -> Samples:
    """The decoded samples of a rollout."""
    return Samples(list(prompts), generator.decode(drawn.tokens_NKT, drawn.mask_NKT), drawn)


def draw(
    generator: Generator,
    prompts: Sequence[str],
    sampling: Sampling,
    guidance: Guidance | None = None,
    seed: int = 0,
) -> Samples:
    """Roll out and decode; the arguments are those of :func:`cfg_distill.sampling.rollout`."""
    return decoded(generator, prompts, rollout(generator, prompts, sampling, guidance, seed))
