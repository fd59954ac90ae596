"""Rewards of one sample at a time. Shapes: B prompts, G samples per prompt, D embedding width."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, embedded
from cfg_distill.embedders.similarity import unit
from cfg_distill.errors import Context, Problem, blamed
from cfg_distill.rewards.base import GroupReward, Reward, group_of
from cfg_distill.rewards.checked import values_of
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.sampling.samples import Samples


def leave_one_out(rewards: Tensor) -> Tensor:
    r"""The mean reward of the other samples of the group, ``[..., G]`` to ``[..., G]``.

    .. math:: b_i = \frac{1}{G-1} \sum_{j \ne i} r_j

    The right baseline for a reward of one sample, since the others' rewards know nothing of it. NOT for pairwise rewards:
    :mod:`cfg_distill.rewards.pairwise` says why. Source: Kool et al., 2019, "Buy 4 REINFORCE Samples, Get a Baseline for
    Free!".

    Raises:
        ValueError: a group of one sample.

    Example:
        >>> leave_one_out(torch.tensor([0.0, 2.0, 4.0]))
        tensor([3., 2., 1.])
    """
    group = rewards.shape[-1]
    if group < 2:
        raise ValueError(f"Expected argument `rewards` with at least 2 samples per group but got {group}.")
    return (rewards.sum(-1, keepdim=True) - rewards) / (group - 1)


class SampleReward(Reward):
    """A reward that looks at one sample at a time; its baseline is the leave-one-out mean of the group."""

    @abstractmethod
    def score(self, samples: Samples) -> Tensor:
        """The reward of each sample, ``[B, G]`` float32."""

    def problems(self, context: Context = Context()) -> list[Problem]:
        group = group_of(context)
        if group is None or group >= 2:
            return []
        text = "expected at least 2 samples per prompt (the baseline of a sample is the mean of the others), but got"
        return [Problem("/model.sampling.samples", f"{text} {group}. Set it to 4, say.")]

    @torch.no_grad()
    def forward(self, samples: Samples) -> GroupReward:
        reward_BG = values_of(self, self.score, samples, "BG", by_sample=True)
        return GroupReward(reward_BG, reward_BG - leave_one_out(reward_BG))


def prompt_similarity(embedder: Embedder, samples: Samples) -> Tensor:
    """Cosine of each output with its prompt under a text encoder, ``[B, G]`` in [-1, 1]; 0 for an empty output."""
    outputs_BGD = unit(embedded(embedder, samples.outputs)).unflatten(0, (len(samples.prompts), samples.group))
    prompts_BD = unit(embedder.embed(samples.prompts))
    return (outputs_BGD * prompts_BD.unsqueeze(1)).sum(-1)


class PromptAdherence(UnderEmbedder, SampleReward):
    """Cosine of a text with its prompt: a guard against samples that are diverse because they left the prompt.

    Args:
        embedder: an encoder that reads prompts and outputs alike.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)

    def score(self, samples: Samples) -> Tensor:
        with blamed(self.embedder, "embedder"):
            return prompt_similarity(self._frozen.on(samples.rollout.tokens_BGKT.device), samples)
