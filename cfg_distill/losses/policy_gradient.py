"""The policy gradient of a group reward. Shapes: N rows (B prompts x G samples), K codebooks, T positions, V vocabulary."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor

from cfg_distill.losses.base import Loss, LossInputs
from cfg_distill.rewards.base import Reward
from cfg_distill.sampling import Sampling


def token_log_probs(logits_NKTV: Tensor, tokens_NKT: Tensor, mask_NKT: Tensor, sampling: Sampling) -> Tensor:
    """log student(token) under the distribution that drew it, temperature and filters included; 0 where masked, [N, K, T]."""
    log_probs_MV = sampling.log_probs(logits_NKTV[mask_NKT])
    picked_M = log_probs_MV.gather(-1, tokens_NKT[mask_NKT].unsqueeze(-1)).squeeze(-1)
    # On the edge of top-p, rounding may drop at scoring a token that was drawn: it gives no gradient.
    picked_M = torch.where(picked_M.isfinite(), picked_M, 0.0)
    return torch.zeros(mask_NKT.shape, device=picked_M.device).masked_scatter(mask_NKT, picked_M)


class PolicyGradient(Loss):
    """REINFORCE for a reward on groups: ``- sum_i advantage_i * log student(y_i)``.

    Divided by the number of samples, its gradient is that of -D(theta). The advantage carries the baseline and the factor
    of the reward (for pairwise diversity 2 (r_i - b_i)); see :class:`~cfg_distill.rewards.base.GroupReward`. Source: Cideron
    et al., ICLR 2025, section 3.2. What differs: no PPO clip and no KL to a reference, since every sample is used once and
    the distillation term is the anchor; and the paper's reward baseline is replaced by one that is independent of y_i.

    Args:
        reward: the reward on groups.
        weight: beta.
        warmup_steps: optimiser steps over which beta rises from 0.
        scale: ``sequence`` sums log-probabilities over positions, as the derivation says; ``token`` takes their mean times
            ``max_new_tokens``, so that long samples pull no harder than short ones.
    """

    def __init__(
        self,
        reward: Reward,
        weight: float = 1.0,
        warmup_steps: int = 0,
        scale: Literal["sequence", "token"] = "sequence",
    ) -> None:
        super().__init__(weight, warmup_steps)
        self.reward = reward
        self.scale = scale

    def problems(self, group: int) -> list[str]:
        return self.reward.problems(group)

    def load(self) -> Self:
        self.reward.load()
        return self

    def forward(self, inputs: LossInputs) -> Tensor:
        outcome = self.reward(inputs.samples)
        log_probs_NKT = token_log_probs(inputs.student_NKTV, inputs.tokens_NKT, inputs.mask_NKT, inputs.sampling)
        log_probs_N = log_probs_NKT.sum((-2, -1))
        if self.scale == "token":
            log_probs_N = log_probs_N * inputs.sampling.max_new_tokens / inputs.mask_NKT.any(-2).sum(-1)
        self.logs = {"reward": outcome.reward_BG.mean(), "advantage_std": outcome.advantage_BG.std()}
        return -(outcome.advantage_BG.flatten().to(log_probs_N) * log_probs_N).sum()
