"""Diversity and adherence in an embedding space. Shapes: B prompts, G samples per prompt, D embedding width."""

from __future__ import annotations

import torch
from torch import Tensor

from cfg_distill.embedders import cosine_distances
from cfg_distill.metrics.base import EmbeddingMetric
from cfg_distill.rewards import pairwise_diversity
from cfg_distill.rewards.sample import prompt_similarity
from cfg_distill.sampling.samples import Samples


def vendi_score(embeddings: Tensor) -> Tensor:
    r"""The effective number of different samples in a group.

    .. math:: \exp\Big(-\sum_i \lambda_i \log \lambda_i\Big), \qquad
        \lambda = \text{eigenvalues of } K / G, \quad K_{ij} = \cos(e_i, e_j)

    1 for identical samples, G for orthogonal ones. Source: Friedman and Dieng, arXiv 2210.02410, Eq. 2.

    Args:
        embeddings: ``[..., G, D]``.

    Returns:
        ``[...]`` float32 in [1, G].

    Example:
        >>> vendi_score(torch.eye(3))
        tensor(3.)
    """
    # Eigenvalues in float64: rounding near 0 has infinite slope under the entropy.
    kernel = (1 - cosine_distances(embeddings)).double() / embeddings.shape[-2]
    return torch.special.entr(torch.linalg.eigvalsh(kernel).clamp(min=0)).sum(-1).exp().float()


class PairwiseCosineDiversity(EmbeddingMetric):
    """Mean cosine distance between the samples of a prompt: :func:`cfg_distill.rewards.pairwise_diversity`, averaged.

    Under the embedder of the reward it shows what was trained; report it under another one too. NaN for a group of one.
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
    """Mean cosine of the outputs of a prompt with the prompt, under a text encoder that reads both."""

    axis = "quality"

    def score(self, samples: Samples) -> Tensor:
        return prompt_similarity(self._frozen.on(self.device), samples).mean(-1)
