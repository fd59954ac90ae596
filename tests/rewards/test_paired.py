"""Rewards of pairs that share an opening: numeric oracles, and gradients against autograd on tiny policies.

Each sample of a group has an opening of its own, and so a policy of its own, and a law of the start sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError, Context
from cfg_distill.rewards import Mixed, PairedContrast, SimilarityMatch, leave_one_out
from cfg_distill.sampling.samples import Samples

TABLE_VD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.8, 0.6]])
THETA_GV = torch.tensor([[0.3, 0.0, -0.2], [-0.1, 0.4, 0.0], [0.2, 0.2, -0.5], [-0.4, 0.1, 0.3]])
START_GV = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2]]).double()

SamplesOf = Callable[[Tensor], Samples]


def paired(samples: Samples, start_BG: Tensor) -> Samples:
    samples.start = start_BG.flatten().tolist()
    return samples


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def found_gradient(outcomes_BG: Tensor, weight_B: Tensor, advantage_BG: Tensor) -> Tensor:
    """E[(1/G) sum_i advantage_i * grad log p_i(y_i)], ``[G, V]``, over groups with weights beside the policies' own."""
    group = outcomes_BG.shape[1]
    p_GV, number_G = THETA_GV[:group].double().softmax(-1), torch.arange(group)
    score_BGV = torch.eye(3).double()[outcomes_BG] - p_GV
    weight_B = weight_B * p_GV[number_G, outcomes_BG].prod(-1)
    return torch.einsum("b,bg,bgv->gv", weight_B, advantage_BG.double(), score_BGV) / group


def test_the_oracle_of_the_paired_contrast(lookup, samples_of: SamplesOf) -> None:
    table_VD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])
    samples = paired(samples_of(torch.tensor([[0, 1, 2]])), torch.tensor([[3, 2, 4]]))
    found = PairedContrast(lookup(table_VD), temperature=0.5)(samples).reward_BG
    torch.testing.assert_close(found, torch.tensor([[-0.206380, -0.891153, -2.460373]]), rtol=0, atol=1e-5)
    empty = PairedContrast(lookup(table_VD, empty=(1,)), temperature=0.5)(samples).reward_BG[0]
    assert empty[1].item() == pytest.approx(
        -math.log1p(2 * math.exp(4)), abs=1e-5
    )  # opposite to its own, at the others


@pytest.mark.parametrize(("group", "empty"), [(2, ()), (3, ()), (4, ()), (3, (2,))])
def test_the_paired_contrast_gives_the_true_gradient(group, empty, lookup, samples_of: SamplesOf, all_groups) -> None:
    """Value -.958023 and (.035453, .020931, -.056384), (-.054198, .026196, .028002) at G = 2; with the mean of the whole group
    as the baseline it is (G - 1) / G of it: half at G = 2."""
    pairs_BG = all_groups(3, 2 * group)  # of start samples and samples
    start_BG, outcomes_BG = pairs_BG[:, :group], pairs_BG[:, group:]
    number_G = torch.arange(group)
    weight_B = START_GV[number_G, start_BG].prod(-1)
    outcome = PairedContrast(lookup(TABLE_VD, empty), 0.5)(paired(samples_of(outcomes_BG), start_BG))
    # By hand: the value of outcome v in place g, under the start samples of each group.
    table_VD = TABLE_VD.double()
    table_VD[list(empty)] = 0
    cosine_BVG = torch.einsum("vd,bgd->bvg", table_VD, table_VD[start_BG])
    is_empty_B1G = torch.isin(start_BG, torch.tensor(empty)).unsqueeze(
        1
    )  # a start sample that nothing is compared with
    value_BVG = (cosine_BVG / 0.5).masked_fill(is_empty_B1G, -math.inf).log_softmax(-1).where(~is_empty_B1G, 0.0)
    value_BVG[:, list(empty)] = -math.log(1 + (group - 1) * math.exp(4))
    theta_GV = THETA_GV[:group].double().requires_grad_()
    # Each start group stands in 3^G rows, one for each group of outcomes.
    mean = torch.einsum("b,bvg,gv->", weight_B, value_BVG, theta_GV.softmax(-1)) / group / 3**group
    (expected,) = torch.autograd.grad(mean, theta_GV)
    close(found_gradient(outcomes_BG, weight_B, outcome.advantage_BG), expected)
    if group == 2:
        assert mean.item() == pytest.approx(-0.958023, abs=1e-6)
        oracle = torch.tensor([[0.035453, 0.020931, -0.056384], [-0.054198, 0.026196, 0.028002]]).double()
        torch.testing.assert_close(expected, oracle, rtol=0, atol=1e-6)
    naive_BG = outcome.reward_BG - outcome.reward_BG.mean(-1, keepdim=True)
    close(found_gradient(outcomes_BG, weight_B, naive_BG), expected * (group - 1) / group)


def test_under_shared_noise_there_is_no_policy_gradient() -> None:
    """Why pairs share an opening: with one uniform for both draws the score function gives (-.031556, .002650, .028905), and
    the gradient is (-.077731, .098901, -.021170)."""
    theta_V = torch.tensor([0.5, -0.2, 0.1]).double().requires_grad_()
    reward_VV = torch.tensor([[1.0, 0.2, -0.3], [0.0, 0.8, 0.1], [-0.5, 0.3, 0.9]]).double()
    p_V, q_V = theta_V.softmax(-1), torch.tensor([0.3, 0.4, 0.3]).double()
    ends = [nn_V.cumsum(0) for nn_V in (p_V, q_V)]
    below = [torch.cat([torch.zeros(1).double(), end_V[:-1]]) for end_V in ends]
    top_VV = torch.minimum(ends[0][:, None], ends[1])
    joint_VV = (top_VV - torch.maximum(below[0][:, None], below[1])).clamp(min=0)  # of one uniform number
    value = (joint_VV * reward_VV).sum()
    assert value.item() == pytest.approx(0.788435, abs=1e-6)
    (true_V,) = torch.autograd.grad(value, theta_V)
    torch.testing.assert_close(true_V.float(), torch.tensor([-0.077731, 0.098901, -0.021170]), rtol=0, atol=1e-5)
    score_VV = torch.eye(3).double() - p_V.detach()
    naive_V = torch.einsum("ys,ys,yv->v", joint_VV.detach(), reward_VV, score_VV)
    torch.testing.assert_close(naive_V.float(), torch.tensor([-0.031556, 0.002650, 0.028905]), rtol=0, atol=1e-5)


def test_the_oracle_of_the_match(lookup, samples_of: SamplesOf) -> None:
    student = torch.tensor([[1.0, 0.6, 0.4], [0.6, 1.0, 0.3], [0.4, 0.3, 1.0]])
    start = torch.tensor([[1.0, 0.2, 0.5], [0.2, 1.0, -0.1], [0.5, -0.1, 1.0]])
    table_VD = torch.cat([torch.linalg.cholesky(student), torch.linalg.cholesky(start)])
    samples = paired(samples_of(torch.tensor([[0, 1, 2]])), torch.tensor([[3, 4, 5]]))
    outcome = SimilarityMatch(lookup(table_VD))(samples)
    torch.testing.assert_close(outcome.reward_BG, torch.tensor([[-0.085, -0.16, -0.085]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(outcome.advantage_BG, torch.tensor([[0.15, -0.3, 0.15]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("group", "empty"), [(2, ()), (3, ()), (4, ()), (3, (2,)), (3, (1,))])
def test_the_match_gives_the_true_gradient(group, empty, lookup, samples_of: SamplesOf, all_groups) -> None:
    """With the leave-one-out mean of rewards it is (G - 2) / (G - 1) of it: half at G = 3, and nothing at G = 2."""
    outcomes_BG, start_G = all_groups(3, group), torch.tensor([0, 1, 1, 2])[:group]
    reward = SimilarityMatch(lookup(TABLE_VD, empty), baseline="pairwise" if group > 2 else "running_mean")
    reward.past.update(torch.tensor(-0.3), torch.tensor(1.0))
    outcome = reward.eval()(paired(samples_of(outcomes_BG), start_G.expand(len(outcomes_BG), -1)))
    table_VD = TABLE_VD.double()
    table_VD[list(empty)] = 0
    start_GG = table_VD[start_G] @ table_VD[start_G].T
    cosine_VV = table_VD @ table_VD.T
    theta_GV = THETA_GV[:group].double().requires_grad_()
    p_GV, mean = theta_GV.softmax(-1), torch.zeros(()).double()
    for i in range(group):
        for j in set(range(group)) - {i}:
            pairs_VV = -((cosine_VV - start_GG[i, j]) ** 2)
            if {int(start_G[i]), int(start_G[j])} & set(empty):
                pairs_VV = torch.zeros_like(pairs_VV)
            for each in empty:
                pairs_VV[each] = pairs_VV[:, each] = -4.0
            mean = mean + p_GV[i] @ pairs_VV @ p_GV[j] / (group * (group - 1))
    (expected,) = torch.autograd.grad(mean, theta_GV)
    weight_B = torch.ones(len(outcomes_BG)).double()
    close(found_gradient(outcomes_BG, weight_B, outcome.advantage_BG), expected)
    naive_BG = 2 * (outcome.reward_BG - leave_one_out(outcome.reward_BG))
    naive = found_gradient(outcomes_BG, weight_B, naive_BG)
    torch.testing.assert_close(naive, expected * (group - 2) / (group - 1), rtol=0, atol=1e-6)


def test_wrong_settings_are_named(lookup, samples_of: SamplesOf) -> None:
    training, embedder = Context(4, training=True), NGramCounts()
    for reward in (PairedContrast(embedder), SimilarityMatch(embedder)):
        (problem,) = reward.problems(training)
        assert problem.path == "model.opening" and "but got none" in str(problem)
        assert reward.problems(Context(4, training=True, opening=3)) == []
        (problem,) = Mixed({"pairs": reward}, mode="multiplicative").problems(Context(4))
        assert problem.path == "rewards.pairs"
    assert [each.path for each in PairedContrast(embedder, temperature=0.0).problems()] == ["temperature"]
    with pytest.raises(ConfigError, match=r"expected samples with openings, but they have none. Set `model.opening`"):
        PairedContrast(lookup(TABLE_VD))(samples_of(torch.tensor([[0, 1]])))
