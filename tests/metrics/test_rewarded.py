"""A reward as a metric: its value is the mean reward, and its axis is the one that its kind or the user says."""

from __future__ import annotations

import pytest
import torch

from cfg_distill.embedders import NGramCounts
from cfg_distill.evaluation.chosen import read_metrics
from cfg_distill.metrics.rewarded import RewardMetric
from cfg_distill.rewards import PairwiseDiversity, PromptAdherence, Reward, VendiScore
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples


def samples_of(*groups: list[str]) -> Samples:
    nothing = torch.zeros(0)
    outputs = [text for group in groups for text in group]
    return Samples([f"p{n}" for n in range(len(groups))], outputs, Rollout(nothing, nothing, nothing))


def test_it_is_the_mean_reward_of_each_prompt() -> None:
    """Two words of three texts: a third of the pairs are alike, and the others are orthogonal."""
    metric = RewardMetric(PairwiseDiversity(NGramCounts()))
    metric.update(samples_of(["w1", "w1", "w2"], ["w1", "w1", "w1"]))
    assert metric.per_prompt().tolist() == pytest.approx([2 / 3, 0.0])


@pytest.mark.parametrize(
    ("reward", "axis"),
    [
        (PairwiseDiversity(NGramCounts()), "diversity"),
        (VendiScore(NGramCounts()), "diversity"),
        (PromptAdherence(NGramCounts()), "quality"),
    ],
)
def test_its_axis(reward: Reward, axis: str) -> None:
    assert RewardMetric(reward).axis == axis
    assert RewardMetric(reward, axis="guard").axis == "guard"  # before, the kind of the reward won


def test_the_rewards_of_the_page_on_neighbours_can_be_validated() -> None:
    metrics = read_metrics("docs/evidence/rewards.yaml")
    axes = {name: metric.axis for name, metric in metrics.items()}
    assert axes.pop("contrast") == "quality"
    assert set(axes.values()) == {"diversity"} and len(axes) == 5
    assert [problem for metric in metrics.values() for problem in metric.problems()] == []
