"""As diverse as a target, and no more. Shapes: B prompts, G samples per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, Frozen, cosine_distances
from cfg_distill.embedders.similarity import both_count
from cfg_distill.errors import ConfigError, Context, Problem, blamed, problems_of, problems_of_shares
from cfg_distill.references import Reference, mean_distance, weight_of_pairs
from cfg_distill.rewards.base import GroupReward
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.rewards.pairwise import mean_among_others, mean_with_others
from cfg_distill.rewards.running import RunningMean, all_reduced
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


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
        target: d_0, the diversity to reach: a number, such as the base model's; a reference, whose own diversity counts; or a
            number for each label of ``model.conditioner: {class_path: cfg_distill.sampling.Labels}``, which makes the label a
            knob of the student's diversity.
        momentum: the part of the past that the running mean of D - d_0 keeps at each batch. It moves in train mode only.
    """

    def __init__(self, embedder: Embedder, target: float | Sequence[float] | Reference, momentum: float = 0.9) -> None:
        super().__init__(embedder)
        self.target = Frozen(target)
        # One mean for each label.
        self.past = RunningMean(momentum, (len(target),) if isinstance(target, Sequence) else ())

    def problems(self, context: Context = Context()) -> list[Problem]:
        found, target = super().problems(context), self.target.model
        if context.samples is not None and context.samples < 3:
            text = f"expected at least 3 samples per prompt (two others have a distance), but got {context.samples}."
            found.append(Problem("/model.sampling.samples", f"{text} Set it to 4, say."))
        if isinstance(target, Reference):
            found += problems_of(target, context, under="target.init_args")
        elif wrong := [each for each in self._numbers(target) if not 0 <= each <= 2]:
            text = f"expected a mean cosine distance, in [0, 2], but got {wrong[0]}."
            found.append(Problem("target", f"{text} `cfg-distill evaluate` prints the base model's."))
        given = "codes, which differ within a prompt" if context.siblings_differ else context.labels or "none"
        if isinstance(target, Sequence) and context.training and given != len(target):
            text = f"expected {len(target)} labels, one per target, but got {given}. Set it to"
            found.append(Problem("/model.conditioner", f"{text} cfg_distill.sampling.Labels with as many `values`."))
        found += problems_of_shares(momentum=self.past.momentum)
        return found

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        target = self.target.model
        found = target.problems_of_prompts(prompts) if isinstance(target, Reference) else []
        return [each.under("target.init_args") for each in found]

    @property
    def needs_fit(self) -> str:
        return "it reads the labels that samples were drawn under." if isinstance(self.target.model, Sequence) else ""

    def attach(self, start: StartModel) -> None:
        if isinstance(self.target.model, Reference):
            self.target.model.attach(start)

    def load(self) -> Self:
        if isinstance(self.target.model, Reference):
            self.target.model.load()
        return super().load()

    @torch.no_grad()
    def forward(self, samples: Samples) -> GroupReward:
        embedding_BGD = self.embedded(samples)
        pairs_BGG = cosine_distances(embedding_BGD)
        reward_BG = mean_with_others(pairs_BGG)
        label_B = self._labels(samples).to(self.past.value.device)
        past_B1 = self.past.value.view(-1)[label_B, None].to(reward_BG)  # of the past alone; 0 before the first batch
        if self.training:
            self._take(reward_BG.mean(-1) - self._target(samples).to(reward_BG), reward_BG.mean(-1).isfinite(), label_B)
        pulled_BGG = torch.where(both_count(embedding_BGD), pairs_BGG, 2.0)
        pairs_BGG = torch.where(past_B1.unsqueeze(-1) > 0, pulled_BGG, pairs_BGG)
        excess_BG = mean_with_others(pairs_BGG) - mean_among_others(pairs_BGG)
        return GroupReward(reward_BG, -2 * past_B1 * 2 * excess_BG)

    def _take(self, gap_B: Tensor, is_sound_B: Tensor, label_B: Tensor) -> None:
        """Take in the gaps of a batch, by label. A label that the batch does not have keeps its mean."""
        known_B = ~(gap_B.isnan() & is_sound_B)  # a reference of one output has no diversity
        past_K = self.past.value.view(-1)
        sums_2K = past_K.new_zeros(2, len(past_K))
        given_2B = torch.stack([gap_B[known_B], torch.ones_like(gap_B[known_B])]).to(past_K)
        total_K, count_K = all_reduced(sums_2K.index_add_(1, label_B[known_B.to(label_B.device)], given_2B))
        self.past.update(total_K.view_as(self.past.value), count_K.view_as(self.past.value))

    @staticmethod
    def _numbers(target: float | Sequence[float]) -> Sequence[float]:
        return target if isinstance(target, Sequence) else [target]

    def _labels(self, samples: Samples) -> Tensor:
        """The label of each prompt, ``[B]``; 0 where there is one target for all."""
        labels_BG = samples.rollout.labels_BG
        if not isinstance(self.target.model, Sequence):
            return torch.zeros(len(samples.prompts), dtype=torch.long)
        if labels_BG is None:
            raise ConfigError(Problem("target", "expected samples with labels, but they have none."))
        return labels_BG[:, 0]

    def _target(self, samples: Samples) -> Tensor:
        """d_0 of each prompt, ``[B]``; NaN for a prompt with one reference output."""
        target = self.target.model
        if not isinstance(target, Reference):
            return torch.tensor(self._numbers(target))[self._labels(samples)]
        with blamed(target, "target"):
            vectors_RD, weight_BR = target.at(samples.asked, self._frozen.on(samples.rollout.tokens_BGKT.device))
            # As among samples, a pair with a degenerate output has no distance.
            every_BR = target.weight([*map(str, samples.asked)]).to(weight_BR)
            share_B = weight_of_pairs(every_BR * (weight_BR > 0)) / weight_of_pairs(every_BR)
            return torch.where(share_B > 0, mean_distance(vectors_RD, weight_BR) * share_B, share_B)
