"""The frozen start model of a fit, as its losses and rewards see it. Shapes: K codebooks, V vocabulary."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfg_distill.generators import Generator, Guidance, Prompt, PromptLike
from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.samples import Samples, draw


@dataclass(frozen=True)
class StartModel:
    """The start model of a fit: what is distilled, and what the student began as.

    Attributes:
        generator: loaded and frozen; it moves to the device of the fit later.
        sampling: of the fit.
    """

    generator: Generator
    sampling: Sampling

    def draw(
        self, prompt: PromptLike, samples: int, guidance: Guidance | None = None, opening: Tensor | None = None
    ) -> Samples:
        """Samples of one prompt. They are the same whenever, wherever and beside whatever they are drawn.

        Args:
            prompt: its text and conditions are the seed, and it is alone in its batch.
            samples: how many.
            guidance: draw as the guided teacher, which may read more than the prompt; None for the model as it is.
            opening: tokens that they begin with, as of :func:`cfg_distill.sampling.rollout`; None for none.
        """
        asked = Prompt.of(prompt)
        seed = zlib.crc32(repr((asked.text, sorted(asked.conditions.items()))).encode())
        sampling = replace(self.sampling, samples=samples)
        read = [prompt] if guidance is None else guidance.of_teacher([prompt])
        return draw(self.generator, read, sampling, guidance, seed, opening=opening)

    @torch.no_grad()
    def vocabulary(self) -> tuple[int, int]:
        """K and V, the number of different tokens: one forward pass."""
        first = self.generator.prefill([None], 1)[1].whole()
        return len(self.generator.delays), first.shape[-1]
