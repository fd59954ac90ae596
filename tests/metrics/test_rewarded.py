"""A reward as a metric: its value is the mean reward, and its axis is the one that its kind or the user says."""

from __future__ import annotations

import pytest
import torch

from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.chosen import read_metrics
from cfg_distill.metrics.rewarded import RewardMetric
from cfg_distill.rewards import (
    AvgOutScore,
    DiversityTarget,
    Mixed,
    PairwiseDiversity,
    PromptAdherence,
    Reward,
    VendiScore,
)
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
        (DiversityTarget(NGramCounts(), 0.5), "diversity"),
        (Mixed({"a": PairwiseDiversity(NGramCounts())}), "diversity"),
        (Mixed({"a": PairwiseDiversity(NGramCounts()), "b": PromptAdherence(NGramCounts())}), "quality"),
    ],
)
def test_its_axis(reward: Reward, axis: str) -> None:
    assert RewardMetric(reward).axis == axis
    assert RewardMetric(reward, axis="guard").axis == "guard"  # before, the kind of the reward won


@pytest.mark.parametrize("mode", ["multiplicative", "additive"])
def test_a_mix_is_no_scale_of_itself(mode: str) -> None:
    """By the mean of its own batch, samples that hardly differ would be worth as much as those that do."""
    found = []
    for texts in (["w1", "w2", "w3"], ["w1", "w1", "w2"]):
        metric = RewardMetric(Mixed({"a": PairwiseDiversity(NGramCounts())}, mode=mode))
        metric.update(samples_of(texts))
        found.append(metric.compute().item())
    assert found == pytest.approx([1.0, 2 / 3])


def test_a_reward_that_needs_a_fit_says_so() -> None:
    for reward in (AvgOutScore(), Mixed({"a": AvgOutScore()}), DiversityTarget(NGramCounts(), [0.2, 0.9])):
        with pytest.raises(ConfigError, match="no value outside of a fit"):
            RewardMetric(reward).load()


def test_the_rewards_of_the_page_on_neighbours_can_be_validated() -> None:
    metrics = read_metrics("docs/evidence/rewards.yaml")
    axes = {name: metric.axis for name, metric in metrics.items()}
    assert axes.pop("contrast") == "quality"
    assert set(axes.values()) == {"diversity"} and len(axes) == 5
    assert [problem for metric in metrics.values() for problem in metric.problems()] == []
