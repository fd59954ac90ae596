"""The protocol of a reward. Shapes: B prompts, G samples per prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from cfg_distill.embedders import Embedder, is_empty
from cfg_distill.errors import Context, Problem
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.start import StartModel


@dataclass
class GroupReward:
    """The outcome of a reward for a batch of groups.

    Attributes:
        reward_BG: the reward of each sample, float32 and without gradient.
        advantage_BG: the weight of each sample's score in the policy gradient, baseline and factor included, such that
            ``grad D = E[(1/G) sum_i advantage_i * grad log student(y_i)]``; float32 and without gradient.
    """

    reward_BG: Tensor
    advantage_BG: Tensor


class Reward(nn.Module, ABC):
    """A function of a group of samples of one prompt.

    A frozen judge belongs into :class:`~cfg_distill.generators.frozen.Frozen`: out of checkpoints, and always in eval mode.

    Attributes:
        is_factor: whether its values may be factors of a product (``Mixed`` with ``mode: multiplicative``), where a value
            below 0 counts as 0: not those of a logarithm, say.
    """

    is_factor = True

    @property
    def needs_fit(self) -> str:
        """Why it has no value outside of a fit, as a sentence; empty where it has one."""
        return ""

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings for the group size of the context, found without loading weights."""
        return []

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        """Why there can be no rewards for samples of these prompts; asked before weights are loaded."""
        return []

    def load(self) -> Self:
        """Load what the reward needs; does nothing the second time."""
        return self

    def attach(self, start: StartModel) -> None:
        """Take the start model of the fit, loaded; called once, behind :meth:`load`. A reward hands it to its reference."""

    @abstractmethod
    def forward(self, samples: Samples) -> GroupReward:
        """Rewards and advantages of B groups, without gradient."""

    def degenerate(self, samples: Samples) -> Tensor:
        """Which samples are empty or degenerate, ``[B, G]`` bool; by default :func:`~cfg_distill.embedders.is_empty`.

        They are counted, and drawn again where ``model.redraw`` says so.
        """
        return empty(samples)


def group_of(context: Context | int) -> int | None:
    """G, samples per prompt, of a context; None where nobody has said. Rewards of 0.1 passed G itself."""
    return context if isinstance(context, int) else context.samples


def empty(samples: Samples) -> Tensor:
    """Which samples are empty (:func:`~cfg_distill.embedders.is_empty`), ``[B, G]``."""
    found = torch.tensor([is_empty(output) for output in samples.outputs], dtype=torch.bool)
    return found.view(len(samples.prompts), samples.group)


def degenerate_of(embedder: Embedder, samples: Samples) -> Tensor:
    """Which samples an embedder calls degenerate, ``[B, G]``."""
    return embedder.degenerate(samples.outputs).view(len(samples.prompts), samples.group)
