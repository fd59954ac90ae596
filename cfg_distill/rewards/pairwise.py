"""Pairwise diversity of a group, and the baseline that leaves its gradient unbiased.

Shapes: B prompts, G samples per prompt, D embedding width.

The objective is a mean over pairs, D(theta) = E r(y, y'). Its gradient is

    grad D = E[ (2/G) sum_i (r_i - b_i) * grad log student(y_i) ],      r_i = 1/(G-1) * sum_{j != i} r(y_i, y_j)

for any b_i independent of y_i. The usual leave-one-out mean of rewards is not: r_j holds r(y_i, y_j). It gives
(G-2)/(G-1) of the gradient, exactly zero at G = 2, and the group mean gives (G-2)/G of it. The pairwise baseline leaves
out every PAIR that touches y_i. Objective: Cideron et al., ICLR 2025, section 3.2.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, cosine_distances
from cfg_distill.errors import Context, Problem, problems_of_shares
from cfg_distill.rewards.base import GroupReward, Reward, group_of
from cfg_distill.rewards.checked import values_of
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.rewards.running import RunningMean, all_reduced
from cfg_distill.sampling.samples import Samples


def mean_with_others(pairs: Tensor) -> Tensor:
    """r_i, the mean of r(y_i, y_j) over the other samples: ``[..., G, G]`` to ``[..., G]``.

    Raises:
        ValueError: a group of fewer than 2 samples.
    """
    group = pairs.shape[-1]
    if group < 2:
        raise ValueError(
            f"Expected at least 2 samples per group but got {group}: one sample differs from nothing."
            " Draw more samples per prompt."
        )
    return (pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)) / (group - 1)


def mean_among_others(pairs: Tensor) -> Tensor:
    """b_i, the mean of r(y_j, y_k) over all pairs that leave sample i out: ``[..., G, G]`` to ``[..., G]``.

    Raises:
        ValueError: a group of fewer than 3 samples.
    """
    group = pairs.shape[-1]
    if group < 3:
        raise ValueError(
            f"Expected at least 3 samples per group for the pairwise baseline but got {group}: no pair leaves a sample out."
            " Draw more samples per prompt, or use a running-mean baseline."
        )
    with_sample = mean_with_others(pairs) * (group - 1)
    all_pairs = with_sample.sum(-1, keepdim=True) / 2
    return (all_pairs - with_sample) * 2 / ((group - 1) * (group - 2))


def pairwise_diversity(embeddings: Tensor) -> Tensor:
    r"""Mean cosine distance of each sample to the others of its group.

    .. math:: r_i = \frac{1}{G-1} \sum_{j \ne i} (1 - \cos(e_i, e_j))

    A zero vector marks an empty sample: all its pairs count 0. Source: Cideron et al., ICLR 2025, section 3.2.

    Args:
        embeddings: ``[..., G, D]``, G at least 2.

    Returns:
        ``[..., G]`` float32 in [0, 2].

    Raises:
        ValueError: a group of fewer than 2 samples.

    Example:
        >>> pairwise_diversity(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    return mean_with_others(cosine_distances(embeddings))


def pairwise_baseline(embeddings: Tensor) -> Tensor:
    r"""The baseline of each sample under pairwise diversity: the mean distance among the others, independent of it.

    .. math:: b_i = \frac{2}{(G-1)(G-2)} \sum_{j < k;\ j, k \ne i} (1 - \cos(e_j, e_k))

    Computed from row sums, O(G^2).

    Args:
        embeddings: ``[..., G, D]``, G at least 3.

    Returns:
        ``[..., G]`` float32.

    Raises:
        ValueError: a group of fewer than 3 samples.

    Example:
        >>> pairwise_baseline(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).round(decimals=4)
        tensor([1., 1., 0.])
    """
    return mean_among_others(cosine_distances(embeddings))


class PairwiseReward(Reward):
    """A reward that is a mean over pairs of a group: override :meth:`pairs`, and the gradient is unbiased.

    Args:
        baseline: ``pairwise``, the mean over the pairs that leave the sample out, needs G >= 3. ``running_mean``, the
            mean reward of the batches BEFORE this one (over all ranks), is for G = 2: unbiased too, with more variance.
            The first batch has no past, and takes the mean of its other prompts instead.
        momentum: the part of the past that the running mean keeps at each batch. It moves in train mode only.
    """

    def __init__(self, baseline: Literal["pairwise", "running_mean"] = "pairwise", momentum: float = 0.95) -> None:
        super().__init__()
        self.baseline = baseline
        self.past = RunningMean(momentum)

    @abstractmethod
    def pairs(self, samples: Samples) -> Tensor:
        """r(y_i, y_j) within each group, ``[B, G, G]`` float32; the diagonal is not read. See :func:`symmetric_pairs`."""

    def problems(self, context: Context = Context()) -> list[Problem]:
        group, found = group_of(context), []
        if group is not None and group < 2:
            text = "expected at least 3 samples per prompt for a diversity reward (one sample differs from nothing), but got"
            found.append(Problem("/model.sampling.samples", f"{text} {group}. Set it to 4, say, or remove the loss."))
        elif group == 2 and self.baseline == "pairwise":
            found.append(
                Problem(
                    "baseline",
                    "expected `running_mean` for 2 samples per prompt, but got `pairwise`: no pair leaves a sample out. Set"
                    " `@/model.sampling.samples` to 3 or more, or `@.baseline` to `running_mean`.",
                )
            )
        if self.baseline not in ("pairwise", "running_mean"):
            found.append(Problem("baseline", f"expected `pairwise` or `running_mean`, but got `{self.baseline}`."))
        found += problems_of_shares(momentum=self.past.momentum)
        return found

    @torch.no_grad()
    def forward(self, samples: Samples) -> GroupReward:
        pairs_BGG = symmetric_pairs(self, samples)
        reward_BG = mean_with_others(pairs_BGG)
        baseline = mean_among_others(pairs_BGG) if self.baseline == "pairwise" else self._running_mean(reward_BG)
        # 2, since the reward of a pair weighs the scores of both its samples.
        return GroupReward(reward_BG, 2 * (reward_BG - baseline))

    def _running_mean(self, reward_BG: Tensor) -> Tensor:
        reward_B1 = reward_BG.mean(-1, keepdim=True).to(self.past.value)
        total, prompts = all_reduced(torch.stack([reward_B1.sum(), torch.ones_like(reward_B1).sum()]))
        if self.past.updates > 0:
            baseline = self.past.value.clone()
        else:
            # A batch of one prompt has no other to compare with, and no advantage.
            baseline = (total - reward_B1) / (prompts - 1) if prompts > 1 else reward_BG.to(self.past.value)
        if self.training:
            self.past.update(total, prompts)
        return baseline.to(reward_BG)


def symmetric_pairs(reward: PairwiseReward, samples: Samples) -> Tensor:
    """The mean of r(y_i, y_j) and r(y_j, y_i), ``[B, G, G]``.

    Both samples come from one distribution, so E r(y, y') is the same with it. The baseline and the factor 2 of the advantage
    need a symmetric r: a sample also earns what others earn by it. (Containment and BLEU of a pair are not symmetric.)

    Raises:
        ConfigError: the reward returned something else than float32 ``[B, G, G]``.
        PartError: the reward raised an exception.
    """
    pairs_BGG = values_of(reward, reward.pairs, samples, "BGG", by_sample=False)
    return (pairs_BGG + pairs_BGG.mT) / 2


class PairwiseDiversity(UnderEmbedder, PairwiseReward):
    """Mean cosine distance of a sample to its siblings under a frozen embedder; see :func:`pairwise_diversity`.

    A pair with an empty or degenerate sample has distance 0: r'(y, y') = c(y) c(y') r(y, y'), where c is 0 for such a sample
    and 1 for any other (:meth:`~cfg_distill.embedders.Embedder.degenerate`). r' is a symmetric function of the pair, so the
    same baseline leaves its gradient unbiased.

    Args:
        embedder: the frozen model. It is rebuilt from the recipe, never saved.
        baseline: see :class:`PairwiseReward`.
        momentum: see :class:`PairwiseReward`.
    """

    def __init__(
        self,
        embedder: Embedder,
        baseline: Literal["pairwise", "running_mean"] = "pairwise",
        momentum: float = 0.95,
    ) -> None:
        super().__init__(embedder, baseline=baseline, momentum=momentum)

    def pairs(self, samples: Samples) -> Tensor:
        return cosine_distances(self.embedded(samples))
