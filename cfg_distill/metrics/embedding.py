"""Diversity and adherence in an embedding space. Shapes: B prompts, G samples per prompt, D embedding width."""

from __future__ import annotations

import torch
from torch import Tensor

from cfg_distill.embedders import cosine_distances
from cfg_distill.embedders.similarity import both_count, counted
from cfg_distill.metrics.base import EmbeddingMetric
from cfg_distill.rewards import pairwise_diversity
from cfg_distill.rewards.sample import prompt_similarity
from cfg_distill.sampling.samples import Samples


def vendi_score(embeddings: Tensor) -> Tensor:
    r"""The effective number of different samples in a group.

    .. math:: \exp\Big(-\frac{m}{G} \sum_i \lambda_i \log \lambda_i\Big), \qquad
        \lambda = \text{eigenvalues of } K / m, \quad K_{ij} = \cos(e_i, e_j)

    over the m samples that are not empty. 1 for identical samples, G for orthogonal ones. Source: Friedman and Dieng, arXiv
    2210.02410, Eq. 2, which is m = G. The factor m / G is ours. With it an empty sample in the place of another never raises
    the score, since the entropy of a mixture is at least the mixture of the entropies, and the entropy of one sample is 0.
    Without the factor, an empty sample in the place of a copy would pay.

    Args:
        embeddings: ``[..., G, D]``; a zero vector marks an empty sample.

    Returns:
        ``[...]`` float32 in [1, G].

    Example:
        >>> vendi_score(torch.eye(3))
        tensor(3.)
    """
    counts = counted(embeddings).sum(-1).double()
    # Eigenvalues in float64: rounding near 0 has infinite slope under the entropy.
    kernel = torch.where(both_count(embeddings), 1 - cosine_distances(embeddings), 0.0).double()
    eigenvalues = torch.linalg.eigvalsh(kernel / counts.clamp(min=1)[..., None, None])
    entropy = torch.special.entr(eigenvalues.clamp(min=0)).sum(-1)
    return (entropy * counts / embeddings.shape[-2]).exp().float()


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
