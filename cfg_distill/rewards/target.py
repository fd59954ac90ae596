"""As diverse as a target, and no more. Shapes: B prompts, G samples per prompt."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, Frozen, cosine_distances
from cfg_distill.embedders.similarity import both_count
from cfg_distill.errors import Context, Problem, blamed, problems_of
from cfg_distill.references import Reference, mean_distance
from cfg_distill.rewards.base import GroupReward
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.rewards.pairwise import mean_among_others, mean_with_others
from cfg_distill.rewards.running import RunningMean, all_reduced
from cfg_distill.sampling.samples import Samples


class DiversityTarget(UnderEmbedder):
    r"""Pairwise cosine diversity, pulled towards a target from both sides.

    .. math:: a_i = 2 (d_0 - D) \cdot 2 (r_i - b_i)

    with D the mean diversity of the batches before this one (over all ranks), d_0 the target, and r_i and b_i as in
    :class:`~cfg_distill.rewards.PairwiseDiversity`. For a D of the past this is exactly the gradient of 2 (d_0 - D) times the
    diversity: below the target it pushes samples apart, above it pulls them together. Beta sets the speed and not the end. The
    first batch has no past, and no advantage. A pair with a degenerate sample has distance 0 in D. It has distance
    0 too where samples are pushed apart, and 2 where they are pulled together: such a sample is worth least either way.

    Why D is no estimate from the group itself: -(D - d_0)^2 of a group has its variance in its mean, and another optimum.
    Source of the idea, with paired samples in place of means: arXiv 2203.09301.

    Args:
        embedder: the frozen model.
        target: d_0, the diversity to reach: a number, such as the base model's, or a reference, whose own diversity counts.
        momentum: the part of the past that the running mean of D - d_0 keeps at each batch. It moves in train mode only.
    """

    def __init__(self, embedder: Embedder, target: float | Reference, momentum: float = 0.9) -> None:
        super().__init__(embedder)
        self.target = Frozen(target)
        self.past = RunningMean(momentum)

    def problems(self, context: Context = Context()) -> list[Problem]:
        found, target = super().problems(context), self.target.model
        if context.samples is not None and context.samples < 3:
            text = f"expected at least 3 samples per prompt (two others have a distance), but got {context.samples}."
            found.append(Problem("/model.sampling.samples", f"{text} Set it to 4, say."))
        if isinstance(target, Reference):
            found += problems_of(target, context, under="target.init_args")
        elif not 0 <= target <= 2:
            text = f"expected a mean cosine distance, in [0, 2], but got {target}."
            found.append(Problem("target", f"{text} `cfg-distill evaluate` prints the base model's."))
        if not 0 <= self.past.momentum < 1:
            found.append(Problem("momentum", f"expected a number in [0, 1), but got {self.past.momentum}."))
        return found

    def load(self) -> Self:
        if isinstance(self.target.model, Reference):
            self.target.model.load()
        return super().load()

    @torch.no_grad()
    def forward(self, samples: Samples) -> GroupReward:
        embedding_BGD = self.embedded(samples)
        pairs_BGG = cosine_distances(embedding_BGD)
        reward_BG = mean_with_others(pairs_BGG)
        gap = self.past.value.clone()  # of the past alone; 0 before the first batch
        if self.training:
            gap_B = reward_BG.mean(-1) - self._target(samples).to(reward_BG)
            known_B = ~(gap_B.isnan() & reward_BG.mean(-1).isfinite())  # a reference of one output has no diversity
            total, count = all_reduced(torch.stack([gap_B[known_B].sum(), known_B.sum()]).to(self.past.value))
            if count > 0:
                self.past.update(total, count)
        if gap > 0:
            pairs_BGG = torch.where(both_count(embedding_BGD), pairs_BGG, 2.0)
        excess_BG = mean_with_others(pairs_BGG) - mean_among_others(pairs_BGG)
        return GroupReward(reward_BG, -2 * gap.to(reward_BG) * 2 * excess_BG)

    def _target(self, samples: Samples) -> Tensor:
        """d_0 of each prompt, ``[B]``; NaN for a prompt with one reference output."""
        target = self.target.model
        if not isinstance(target, Reference):
            return torch.full((len(samples.prompts),), float(target))
        with blamed(target, "target"):
            return mean_distance(*target.at(samples.prompts, self._frozen.on(samples.rollout.tokens_BGKT.device)))
