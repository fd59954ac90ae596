"""A reward as a metric, so that a ladder can judge what training pays for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from cfg_distill.errors import ConfigError, Context, Problem, problems_of
from cfg_distill.generators.frozen import Frozen
from cfg_distill.metrics.base import Axis, SampleMetric
from cfg_distill.rewards import DiversityTarget, GroupStatistic, Mixed, PairwiseReward, Reward
from cfg_distill.sampling.samples import Samples


class RewardMetric(SampleMetric):
    """The mean reward of a prompt's samples. A reward of pairs or of a whole group is a metric of diversity, a mix of such ones
    too, and any other one is of quality; ``axis`` says otherwise.

    Args:
        reward: it is no submodule of the metric, and is never saved with it.
    """

    def __init__(self, reward: Reward, axis: Axis | None = None, **settings: Any) -> None:
        super().__init__(axis or ("diversity" if _is_of_a_group(reward) else "quality"), **settings)
        self._frozen = Frozen(reward)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of(self._frozen.model, context, under="reward.init_args")

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        return [each.under("reward.init_args") for each in self._frozen.model.problems_of_prompts(prompts)]

    def load(self) -> Self:
        """Load the reward.

        Raises:
            ConfigError: it has no value outside of a fit.
        """
        if said := self._frozen.model.needs_fit:
            raise ConfigError(f"it has no value outside of a fit: {said}")
        self._frozen.model.load()
        return self

    def score(self, samples: Samples) -> Tensor:
        reward_BG: Tensor = self._frozen.on(self.device)(samples).reward_BG
        return reward_BG.mean(-1)


def _is_of_a_group(reward: Reward) -> bool:
    """Whether a reward compares the samples of a prompt."""
    if isinstance(reward, Mixed):
        return all(_is_of_a_group(part) for part in reward.parts.values())
    return isinstance(reward, PairwiseReward | GroupStatistic | DiversityTarget)
