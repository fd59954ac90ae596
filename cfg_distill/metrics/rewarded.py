"""A reward as a metric, so that a ladder can judge what training pays for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from cfg_distill.errors import Context, Problem, problems_of
from cfg_distill.generators.frozen import Frozen
from cfg_distill.metrics.base import Axis, SampleMetric
from cfg_distill.rewards import GroupStatistic, PairwiseReward, Reward
from cfg_distill.sampling.samples import Samples


class RewardMetric(SampleMetric):
    """The mean reward of a prompt's samples. A reward of pairs or of a whole group is a metric of diversity, any other one of
    quality; ``axis`` says otherwise.

    Args:
        reward: it is no submodule of the metric, and is never saved with it.
    """

    def __init__(self, reward: Reward, axis: Axis | None = None, **settings: Any) -> None:
        is_of_a_group = isinstance(reward, PairwiseReward | GroupStatistic)
        super().__init__(axis or ("diversity" if is_of_a_group else "quality"), **settings)
        self._frozen = Frozen(reward)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of(self._frozen.model, context, under="reward.init_args")

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        return [each.under("reward.init_args") for each in self._frozen.model.problems_of_prompts(prompts)]

    def load(self) -> Self:
        self._frozen.model.load()
        return self

    def score(self, samples: Samples) -> Tensor:
        reward_BG: Tensor = self._frozen.on(self.device)(samples).reward_BG
        return reward_BG.mean(-1)
