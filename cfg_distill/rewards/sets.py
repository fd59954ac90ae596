"""Diversity of a group as a set. Shapes: B prompts, G samples per prompt, D embedding width."""

from __future__ import annotations

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, cosine_distances
from cfg_distill.embedders.similarity import both_count, counted
from cfg_distill.errors import Context, Problem, problems_of_positive
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.rewards.statistic import GroupStatistic
from cfg_distill.sampling.samples import Samples


def _cosines(embeddings: Tensor) -> Tensor:
    """Cosines within groups in float64, ``[..., G, G]``: 1 on the diagonal; 0 in all rows and columns of a zero vector.

    Eigenvalues need float64: rounding near 0 has infinite slope under an entropy.
    """
    return torch.where(both_count(embeddings), 1 - cosine_distances(embeddings), 0.0).double()


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
    eigenvalues = torch.linalg.eigvalsh(_cosines(embeddings) / counts.clamp(min=1)[..., None, None])
    entropy = torch.special.entr(eigenvalues.clamp(min=0)).sum(-1)
    return (entropy * counts / embeddings.shape[-2]).exp().float()


def log_determinant(embeddings: Tensor, noise: float = 0.1) -> Tensor:
    r"""The volume that the samples of a group span, as a logarithm per sample.

    .. math:: \frac{1}{G} \log \det (I + K / \lambda), \qquad K_{ij} = \cos(e_i, e_j)

    It is log(1 + G / noise) / G for identical samples, and log(1 + 1 / noise) for orthogonal ones. The row of an empty sample
    in K is zero: its factor of the determinant is 1. No other row has a smaller factor, so emptiness never pays.

    Args:
        embeddings: ``[..., G, D]``; a zero vector marks an empty sample.
        noise: lambda. The smaller, the more the nearest pair decides.

    Returns:
        ``[...]`` float32, at least 0.

    Example:
        >>> log_determinant(torch.eye(2), noise=1.0), log_determinant(torch.ones(2, 2), noise=1.0)
        (tensor(0.6931), tensor(0.5493))
    """
    group = embeddings.shape[-2]
    identity = torch.eye(group, dtype=torch.float64, device=embeddings.device)
    return (torch.logdet(identity + _cosines(embeddings) / noise) / group).float()


class _SetDiversity(UnderEmbedder, GroupStatistic):
    """A statistic of the embeddings of a group, those of degenerate samples being zero."""

    def features(self, samples: Samples) -> Tensor:
        return self.embedded(samples)


class VendiScore(_SetDiversity):
    """The effective number of different samples of a group, divided by G; see :func:`vendi_score`.

    Divided by G, since groups of G and of G - 1 samples are compared. It rewards a group for the number of its kinds, where
    :class:`~cfg_distill.rewards.PairwiseDiversity` rewards one kind far from all others as much as many.

    Args:
        embedder: the frozen model. It is rebuilt from the recipe, never saved.
    """

    def value(self, features: Tensor) -> Tensor:
        return vendi_score(features) / features.shape[1]


class LogDeterminant(_SetDiversity):
    """The log-determinant of the cosines of a group, per sample; see :func:`log_determinant`.

    Near-copies weigh most: a pair of them removes a dimension.

    Args:
        embedder: the frozen model. It is rebuilt from the recipe, never saved.
        noise: lambda of the formula, above 0.
    """

    def __init__(self, embedder: Embedder, noise: float = 0.1) -> None:
        super().__init__(embedder)
        self.noise = noise

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + problems_of_positive(noise=self.noise)

    def value(self, features: Tensor) -> Tensor:
        return log_determinant(features, self.noise)
