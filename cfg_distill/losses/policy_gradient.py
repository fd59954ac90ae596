"""The policy gradient of a group reward. Shapes: N rows (B prompts x G samples), V vocabulary, M cells of one codebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from cfg_distill.errors import Context, Problem, blamed, problems_of
from cfg_distill.losses.base import Loss, LossInputs
from cfg_distill.losses.chunked import Cells, CellTerm
from cfg_distill.rewards.base import Reward
from cfg_distill.rewards.checked import opinion_of, outcome_of
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


def token_log_probs(cells: Cells, sampling: Sampling, opening: int = 0) -> Tensor:
    """log student(token) under the distribution that drew it, temperature and filters included, ``[M]``.

    Args:
        cells: M cells.
        sampling: of the distribution.
        opening: how many positions were given: nobody drew their tokens, and their value is 0.
    """
    log_probs_MV = cells.student_log_probs_MV if sampling.plain else sampling.log_probs(cells.student_log_probs_MV)
    picked_M = log_probs_MV.gather(-1, cells.tokens_M.unsqueeze(-1)).squeeze(-1)
    # When scored again, rounding can put a drawn token just outside top-p (log-probability -inf): give it zero gradient.
    picked_M = torch.where(picked_M.isfinite(), picked_M, 0.0)
    return torch.where(cells.position_M >= opening, picked_M, 0.0) if opening else picked_M


def importance_ratio(log_probs_M: Tensor, then_M: Tensor, limit: float) -> Tensor:
    r"""Truncated importance ratios of tokens that an earlier student drew.

    .. math:: \rho_{ikt} = \min\Big(\frac{\text{student}(y_{ikt} \mid y_{i, <t})}
        {\text{student before}(y_{ikt} \mid y_{i, <t})},\ c\Big)

    It corrects for the token and not for the tokens before it, as PPO's ratio does (arXiv 1707.06347): exact for samples of
    one token, and to first order in the step for longer ones. Truncation: Ionides, 2008.

    Args:
        log_probs_M: of the student as it is.
        then_M: of the student that drew them.
        limit: c.

    Example:
        >>> importance_ratio(torch.tensor([0.5, 0.9]).log(), torch.tensor([0.4, 0.1]).log(), 2.0)
        tensor([1.2500, 2.0000])
    """
    return (log_probs_M - then_M).exp().clamp(max=limit)


class PolicyGradient(Loss):
    r"""REINFORCE for a reward on groups.

    .. math:: L = - \sum_{i=1}^{N} a_i \log \text{student}(y_i), \qquad
        \log \text{student}(y_i) = \sum_{k, t} \log \text{student}(y_{ikt} \mid y_{i, <t})

    with y_i the N samples of a batch and a_i their advantages. The gradient of L / N is that of -D(theta). An advantage carries
    the baseline and the factor of its reward (for pairwise diversity 2 (r_i - b_i)); see
    :class:`~cfg_distill.rewards.base.GroupReward`. Source: Cideron et al., ICLR 2025, section 3.2.

    Where an engine drew the samples while the student took a step (``max_staleness``), each token has the importance ratio of
    the student to the student that drew it, cut off at ``ratio_limit`` and without gradient (:func:`importance_ratio`).

    Removed from the textbook: PPO's clip, since every sample is used once, and the KL to a reference, since the distillation
    term is the anchor. Replaced: the paper's baseline, by one that is independent of y_i.

    Args:
        reward: the reward on groups.
        weight: beta.
        warmup_steps: optimiser steps over which beta rises from 0.
        scale: ``sequence`` sums log-probabilities over positions, as the derivation says; ``token`` takes their mean times
            ``max_new_tokens``, so that long samples pull no harder than short ones.
        ratio_limit: the largest importance ratio of a token. It matters only for samples that are a step old.
    """

    below_0 = ""  # a negative beta asks for samples of less reward: for sameness

    def __init__(
        self,
        reward: Reward,
        weight: float = 1.0,
        warmup_steps: int = 0,
        scale: Literal["sequence", "token"] = "sequence",
        ratio_limit: float = 2.0,
    ) -> None:
        super().__init__(weight, warmup_steps)
        self.reward = reward
        self.scale = scale
        self.ratio_limit = ratio_limit

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context) + problems_of(self.reward, context, under="reward.init_args")
        if not self.ratio_limit >= 1:
            found.append(Problem("ratio_limit", f"expected a number of at least 1, but got {self.ratio_limit}."))
        return found

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        return [each.under("reward.init_args") for each in self.reward.problems_of_prompts(prompts)]

    def load(self) -> Self:
        self.reward.load()
        return self

    def attach(self, start: StartModel) -> None:
        self.reward.attach(start)

    def advantage(self, samples: Samples) -> Tensor:
        with blamed(self.reward, "reward"):
            outcome = outcome_of(self.reward, samples)
        self.reward_BG = outcome.reward_BG
        self.logs = {"reward": outcome.reward_BG.mean(), "advantage_std": outcome.advantage_BG.std()}
        return outcome.advantage_BG.flatten()

    def degenerate(self, samples: Samples) -> Tensor:
        with blamed(self.reward, "reward"):
            return opinion_of(self.reward, samples)

    def cells(self, inputs: LossInputs) -> CellTerm:
        assert inputs.advantage_N is not None
        advantage_N = inputs.advantage_N.to(inputs.tokens_NKT.device, torch.float32)
        drawn = inputs.samples.rollout
        if self.scale == "token":
            # An opening was not drawn by the student.
            own_N = (inputs.length_N - drawn.opening).clamp(min=1)
            advantage_N = advantage_N * inputs.sampling.max_new_tokens / own_N
        if not drawn.steps_behind:
            return lambda cells: -advantage_N[cells.row_M] * token_log_probs(cells, inputs.sampling, drawn.opening)
        then_NKT = drawn.log_probs_NKT[inputs.rows]

        def corrected(cells: Cells) -> Tensor:
            log_probs_M = token_log_probs(cells, inputs.sampling, drawn.opening)
            then_M = then_NKT[cells.row_M, cells.codebook, cells.position_M]
            ratio_M = importance_ratio(log_probs_M.detach(), then_M, self.ratio_limit)
            return -advantage_N[cells.row_M] * ratio_M * log_probs_M

        return corrected
