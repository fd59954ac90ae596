"""Diversity and adherence in an embedding space. Shapes: B prompts, G samples per prompt, D embedding width."""

from __future__ import annotations

import torch
from torch import Tensor

from cfg_distill.metrics.base import EmbeddingMetric
from cfg_distill.rewards import pairwise_diversity
from cfg_distill.rewards.sample import prompt_similarity
from cfg_distill.rewards.sets import vendi_score
from cfg_distill.sampling.samples import Samples


class PairwiseCosineDiversity(EmbeddingMetric):
    """Mean cosine distance between the samples of a prompt: :func:`cfg_distill.rewards.pairwise_diversity`, averaged.

    Under the embedder of the reward it shows what was trained; report it under another one too. A pair with an empty or
    degenerate sample counts 0. NaN for a group of one.
    """

    axis = "diversity"

    def score(self, samples: Samples) -> Tensor:
        if samples.group < 2:
            return torch.full((len(samples.prompts),), torch.nan)
        return pairwise_diversity(self.embedded(samples)).mean(-1)


class VendiScore(EmbeddingMetric):
    """The effective number of different samples of a prompt; see :func:`vendi_score`.

    It grows with G: compare at one G only.
    """

    axis = "diversity"

    def score(self, samples: Samples) -> Tensor:
        return vendi_score(self.embedded(samples))


class PromptAdherence(EmbeddingMetric):
    """Mean cosine of the outputs of a prompt with the prompt, under a text encoder that reads both; 0 for an empty output."""

    axis = "quality"

    def score(self, samples: Samples) -> Tensor:
        return prompt_similarity(self._frozen.on(self.device), samples).mean(-1)
