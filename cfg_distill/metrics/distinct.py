"""How fast a model runs out of new samples: distinct samples among k, and what k samples cover.

Drawn over k, both are curves of collapse. Shapes: G samples per prompt, D embedding width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, cosine_distances
from cfg_distill.embedders.similarity import both_count
from cfg_distill.errors import Context, Problem, problems_of_counts
from cfg_distill.metrics.base import EmbeddingMetric
from cfg_distill.sampling.samples import Samples


def kind_sizes(embeddings: Tensor, threshold: float) -> Tensor:
    """How many samples of its group are of the same kind as each sample, itself included: ``[..., G, D]`` to ``[..., G]``.

    Two samples are of one kind when their cosine distance is at most the threshold, or when a chain of such pairs joins them. A
    zero vector marks an empty or degenerate sample: it is of no kind, and its size is 0.

    Example:
        >>> kind_sizes(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 0.0]]), threshold=0.05)
        tensor([2, 2, 1, 0])
    """
    joined = (cosine_distances(embeddings) <= threshold) & both_count(embeddings)
    # Squaring doubles the length of the chains.
    for _ in range(math.ceil(math.log2(max(2, embeddings.shape[-2])))):
        joined = (joined.float() @ joined.float()) > 0
    return joined.sum(-1)


def distinct_at_k(embeddings: Tensor, k: int, threshold: float) -> Tensor:
    r"""Expected number of kinds among k of the G samples, drawn without replacement.

    .. math:: \sum_c 1 - \binom{G - n_c}{k} \Big/ \binom{G}{k}

    with n_c the number of samples of kind c (:func:`kind_sizes`). As in pass@k (Chen et al., arXiv 2107.03374, Eq. 1), the mean
    over all subsets in place of the first k samples. It is unbiased for the number of kinds among k samples of the model:
    rarefaction, Hurlbert, 1971, "The Nonconcept of Species Diversity". The number itself: distinct_k of Zhang et al.,
    NoveltyBench, arXiv 2504.05228. Kinds are those of the G samples, and more samples may join two kinds: compare at one G.

    Args:
        embeddings: ``[..., G, D]``; a zero vector marks an empty or degenerate sample, which never counts.
        k: from 1 to G.
        threshold: the cosine distance up to which two samples are the same.

    Returns:
        ``[...]`` float32, from 0 to k.

    Raises:
        ValueError: k is no number from 1 to G.

    Example:
        >>> distinct_at_k(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), k=2, threshold=0.1)
        tensor(1.6667)
    """
    group = embeddings.shape[-2]
    if not 1 <= k <= group:
        raise ValueError(f"Expected argument `k` from 1 to {group}, the samples of a group, but got {k}.")
    missed = [math.comb(group - size, k) / math.comb(group, k) for size in range(group + 1)]
    # Each of the n samples of a kind carries a part of 1 / n of its term.
    part = [0.0, *((1 - missed[size]) / size for size in range(1, group + 1))]
    parts = torch.tensor(part, dtype=torch.float64, device=embeddings.device)
    return parts[kind_sizes(embeddings, threshold)].sum(-1).float()


def coverage_at_k(embeddings: Tensor, k: int, threshold: float) -> Tensor:
    r"""Probability that one more sample brings nothing new after k: 1 minus the slope of :func:`distinct_at_k`.

    .. math:: 1 - (D_{k+1} - D_k) = 1 - \sum_c \frac{n_c}{G} \binom{G - n_c}{k} \Big/ \binom{G - 1}{k}

    with D_k the expected number of kinds among k. It is unbiased for the share of the model's samples whose kind k samples
    reach. An empty or degenerate sample is never new. Source: Chao and Jost, Ecology 93 (2012), the expected coverage of a
    rarefied sample.

    Args:
        embeddings: ``[..., G, D]``; a zero vector marks an empty or degenerate sample.
        k: from 1 to G - 1.
        threshold: the cosine distance up to which two samples are the same.

    Returns:
        ``[...]`` float32 in [0, 1].

    Raises:
        ValueError: k is no number from 1 to G - 1.

    Example:
        >>> coverage_at_k(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), k=1, threshold=0.1)
        tensor(0.3333)
    """
    group = embeddings.shape[-2]
    if not 1 <= k < group:
        raise ValueError(f"Expected argument `k` from 1 to {group - 1}, one less than a group's samples, but got {k}.")
    sizes = kind_sizes(embeddings, threshold)
    missed = [math.comb(group - size, k) / math.comb(group - 1, k) if size else 0.0 for size in range(group + 1)]
    return 1 - torch.tensor(missed, dtype=torch.float64, device=sizes.device)[sizes].mean(-1).float()


class _AtK(EmbeddingMetric):
    """A metric of k samples of a group."""

    left_over = 0

    def __init__(self, embedder: Embedder, k: int = 4, threshold: float = 0.1, **settings: Any) -> None:
        super().__init__(embedder, **settings)
        self.k = k
        self.threshold = threshold

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context) + problems_of_counts(k=self.k)
        most = None if context.samples is None else context.samples - self.left_over
        if most is not None and self.k > most:
            less = f" less {self.left_over}" if self.left_over else ""
            found.append(
                Problem("k", f"expected at most {most}, the samples per prompt{less}, but got {self.k}. Lower it.")
            )
        if not 0 <= self.threshold <= 2:
            found.append(Problem("threshold", f"expected a cosine distance in [0, 2], but got {self.threshold}."))
        return found


class DistinctAtK(_AtK):
    """Expected number of different samples among k of a prompt's samples; see :func:`distinct_at_k`.

    Several of them, for k = 1, 2, 4, ..., draw the curve of collapse: the curve of a collapsed model is flat.

    Args:
        embedder: the frozen model whose cosine distance tells samples apart.
        k: at most the number of samples per prompt.
        threshold: the distance up to which two samples are the same. Take it between the distances of copies and of different
            real samples under this embedder.
    """

    axis = "diversity"

    def score(self, samples: Samples) -> Tensor:
        return distinct_at_k(self.embedded(samples), self.k, self.threshold)


class CoverageAtK(_AtK):
    """Probability that one more sample of a prompt brings nothing new after k; see :func:`coverage_at_k`.

    High, where k samples show all that the model has to say on the prompt.

    Args:
        embedder: the frozen model whose cosine distance tells samples apart.
        k: below the number of samples per prompt.
        threshold: the distance up to which two samples are the same.
    """

    axis = "guard"
    higher_is_better = None
    left_over = 1

    def score(self, samples: Samples) -> Tensor:
        return coverage_at_k(self.embedded(samples), self.k, self.threshold)
