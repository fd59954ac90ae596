"""Rewards of a whole group: the leave-out advantage against autograd on the exact expectation of a tiny policy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError, Context, PartError
from cfg_distill.rewards import (
    BatchStatistic,
    GroupStatistic,
    LogDeterminant,
    Mixed,
    PairwiseDiversity,
    SampleReward,
    VendiScore,
    leave_one_out,
    log_determinant,
    vendi_score,
)
from cfg_distill.sampling.samples import Samples

THETA_V = torch.tensor([0.3, -0.5, 0.9, 0.1])
TABLE_VD = torch.tensor([[1.0, 0.2, 0.0], [0.1, 1.0, -0.4], [0.5, 0.6, 2.0], [-0.7, 0.1, 0.3]])
# The oracle: distances of three outcomes, and a policy.
ORACLE_V = torch.tensor([0.2, -0.4, 0.1])
DISTANCE_VV = torch.tensor([[0.0, 0.8, 0.3], [0.8, 0.0, 0.5], [0.3, 0.5, 0.0]])


class Outcomes(GroupStatistic):
    """A statistic of the numbers of the outcomes."""

    def features(self, samples: Samples) -> Tensor:
        return torch.tensor(samples.outputs).view(len(samples.prompts), samples.group)


class MeanScore(Outcomes):
    def value(self, features: Tensor) -> Tensor:
        return THETA_V[features].square().mean(-1)


class Score(SampleReward):
    def score(self, samples: Samples) -> Tensor:
        return THETA_V[torch.tensor(samples.outputs)].square().view(-1, samples.group)


def mean_pair(distance_BGG: Tensor) -> Tensor:
    group = distance_BGG.shape[-1]
    return distance_BGG.sum((-1, -2)) / (group * (group - 1))


class NearTarget(Outcomes):
    """F = -(mean pair - 0.4)^2: no mean over samples or pairs."""

    smallest = 2

    def value(self, features: Tensor) -> Tensor:
        return -((mean_pair(DISTANCE_VV[features[..., None], features[:, None]]) - 0.4) ** 2)


def exact(theta_V: Tensor, outcomes_BG: Tensor, value_B: Tensor) -> tuple[Tensor, Tensor]:
    """E[F] over all groups, and its gradient by autograd."""
    theta_V = theta_V.double().requires_grad_()
    expected = (theta_V.softmax(-1)[outcomes_BG].prod(-1) * value_B.double()).sum()
    return expected.detach(), torch.autograd.grad(expected, theta_V)[0]


def close(found: Tensor, expected: Tensor) -> None:
    """A relative error below 1e-4 of the largest entry."""
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("group", [2, 3, 4])
def test_a_mean_of_scores_gives_the_advantage_of_a_sample_reward(group, samples_of, all_groups):
    samples = samples_of(all_groups(4, group))
    found, expected = MeanScore()(samples), Score()(samples)
    torch.testing.assert_close(found.advantage_BG, expected.advantage_BG, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.reward_BG[:, 0], expected.reward_BG.mean(-1))


@pytest.mark.parametrize("group", [3, 4])
def test_a_mean_over_pairs_gives_the_advantage_of_a_pairwise_reward(group, lookup, samples_of, all_groups):
    class MeanPair(VendiScore):
        smallest = 2

        def value(self, features: Tensor) -> Tensor:
            units = nn.functional.normalize(features, dim=-1)
            return mean_pair(1 - units @ units.mT)

    samples = samples_of(all_groups(4, group))
    found, expected = MeanPair(lookup(TABLE_VD))(samples), PairwiseDiversity(lookup(TABLE_VD))(samples)
    torch.testing.assert_close(found.advantage_BG, expected.advantage_BG, rtol=0, atol=5e-6)
    torch.testing.assert_close(found.reward_BG[:, 0], expected.reward_BG.mean(-1))


@pytest.mark.parametrize(
    ("group", "value", "gradient"),
    [(3, -0.041954, (-0.011187, 0.014141, -0.002954)), (4, None, (-0.009855, 0.017555, -0.007699))],
)
def test_the_oracle_of_a_bounded_target(group, value, gradient, samples_of, expected_gradient, all_groups):
    outcomes_BG = all_groups(3, group)
    outcome = NearTarget()(samples_of(outcomes_BG))
    mean, expected = exact(ORACLE_V, outcomes_BG, outcome.reward_BG[:, 0])
    assert value is None or mean.item() == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(expected, torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=1e-6)
    close(expected_gradient(ORACLE_V, outcomes_BG, outcome.advantage_BG), expected)


def test_the_natural_baseline_goes_the_other_way(samples_of, expected_gradient, all_groups):
    """A score -(r_i - 0.4)^2 with its leave-one-out mean gives (0.002964, -0.005978, 0.003014): the opposite direction."""
    outcomes_BG = all_groups(3, 3)
    reward_BG = DISTANCE_VV[outcomes_BG[..., None], outcomes_BG[:, None]].sum(-1) / 2
    score_BG = -((reward_BG - 0.4) ** 2)
    found = expected_gradient(ORACLE_V, outcomes_BG, score_BG - leave_one_out(score_BG))
    torch.testing.assert_close(found, torch.tensor([0.002964, -0.005978, 0.003014]).double(), rtol=0, atol=1e-6)
    outcome = NearTarget()(samples_of(outcomes_BG))
    right = expected_gradient(ORACLE_V, outcomes_BG, outcome.advantage_BG)
    assert nn.functional.cosine_similarity(found, right, dim=0) < -0.9


def test_leaving_out_lowers_the_variance(samples_of, all_groups):
    """Trace of the covariance of the gradient of the oracle at G = 4: 0.00508 with F(without i), 0.01395 without."""
    outcomes_BG = all_groups(3, 4)
    outcome = NearTarget()(samples_of(outcomes_BG))
    p_V = ORACLE_V.double().softmax(-1)
    score_BGV = (torch.eye(3).double() - p_V)[outcomes_BG]
    probability_B = p_V[outcomes_BG].prod(-1)
    traces = []
    for advantage_BG in (outcome.advantage_BG, 4 * outcome.reward_BG):
        gradient_BV = (advantage_BG.double()[..., None] * score_BGV).mean(1)
        mean_V = probability_B @ gradient_BV
        traces.append(float(probability_B @ (gradient_BV - mean_V).square().sum(-1)))
    assert traces == [pytest.approx(0.00508, abs=1e-5), pytest.approx(0.01395, abs=1e-5)]


SETS = {
    "vendi": (VendiScore, lambda embeddings: vendi_score(embeddings) / embeddings.shape[-2]),
    "log_determinant": (LogDeterminant, log_determinant),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize("empty", [(), (0, 3)])
def test_set_rewards_give_the_true_gradient(name, group, empty, lookup, samples_of, expected_gradient, all_groups):
    """The naive way, the group's value as the score of each sample under the leave-one-out mean of scores, gives 0: the largest
    entry should be 0.045 for Vendi and 0.085 for the log-determinant (G = 3)."""
    make, function = SETS[name]
    outcomes_BG = all_groups(4, group)
    outcome = make(lookup(TABLE_VD, empty))(samples_of(outcomes_BG))
    table_VD = TABLE_VD.clone()
    table_VD[list(empty)] = 0
    _, expected = exact(THETA_V, outcomes_BG, function(table_VD[outcomes_BG]))
    close(expected_gradient(THETA_V, outcomes_BG, outcome.advantage_BG), expected)
    naive_BG = outcome.reward_BG - leave_one_out(outcome.reward_BG)
    assert naive_BG.abs().max() < 1e-6


@pytest.mark.parametrize("name", SETS)
def test_an_empty_sample_in_the_place_of_another_never_pays(name, lookup, samples_of):
    """Its vector is orthogonal to all others, and would pay most if it counted."""
    siblings_VD = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 0.5 + 1
    siblings_VD[1] = siblings_VD[0]
    table_VD = nn.functional.pad(siblings_VD, (0, 1, 0, 1))
    table_VD[6, 5] = 1
    make = SETS[name][0]
    full = make(lookup(table_VD))(samples_of(torch.arange(6)[None])).reward_BG[0, 0]
    for place in range(6):
        group_G = torch.arange(6)
        group_G[place] = 6
        samples = samples_of(group_G[None])
        outcome = make(lookup(table_VD, empty=(6,)))(samples)
        assert outcome.reward_BG[0, 0] <= full + 1e-6
        assert outcome.advantage_BG[0, place] <= outcome.advantage_BG[0].max()
        assert make(lookup(table_VD))(samples).reward_BG[0, 0] > full  # what it would earn


def test_log_determinant_is_that_of_numpy():
    embedding_BGD = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    units = nn.functional.normalize(embedding_BGD.double(), dim=-1).numpy()
    expected = [np.linalg.slogdet(np.eye(5) + rows @ rows.T / 0.1)[1] / 5 for rows in units]
    torch.testing.assert_close(log_determinant(embedding_BGD), torch.tensor(expected).float(), rtol=1e-5, atol=0)


def test_a_statistic_adds_to_a_mix_and_no_factor_of_a_product(lookup, samples_of, all_groups):
    samples = samples_of(all_groups(4, 3))
    mixed = Mixed({"set": VendiScore(lookup(TABLE_VD)), "score": Score()}, calibration=0)
    expected_BG = VendiScore(lookup(TABLE_VD))(samples).advantage_BG + Score()(samples).advantage_BG
    torch.testing.assert_close(mixed(samples).advantage_BG, expected_BG)
    (problem,) = Mixed({"set": VendiScore(NGramCounts())}, mode="multiplicative").problems(Context(4))
    assert problem.path == "rewards.set"


# Statistics of the batch

POINT_VD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.8, 0.6]])
BATCH_BV = torch.tensor([[0.3, 0.0, -0.2], [-0.1, 0.4, 0.0]])
"""Logits of the policy under each of two prompts."""


def mean_of(points_BGD: Tensor, kept_BG: Tensor) -> Tensor:
    return (points_BGD * kept_BG[..., None]).sum(1) / kept_BG.sum(1, keepdim=True)


def distance_of_means(points_BGD: Tensor, kept_BG: Tensor) -> Tensor:
    """Minus the distance between the mean points of two prompts: defined for one sample of each."""
    one_D, other_D = mean_of(points_BGD, kept_BG)
    return -(one_D - other_D).square().sum()


def own_prototypes(points_BGD: Tensor, kept_BG: Tensor) -> Tensor:
    """The mean log-probability of the own prompt at temperature 0.5, by prototypes of the batch: the own one leaves the sample
    out, the other prompt's does not."""
    terms = []
    for b in (0, 1):
        other_D = nn.functional.normalize(points_BGD[1 - b][kept_BG[1 - b]].mean(0), dim=-1)
        for i in kept_BG[b].nonzero().flatten().tolist():
            siblings_G = kept_BG[b].clone()
            siblings_G[i] = False
            own_D = nn.functional.normalize(points_BGD[b][siblings_G].mean(0), dim=-1)
            terms.append((torch.stack([own_D, other_D]) @ points_BGD[b, i] / 0.5).log_softmax(-1)[0])
    return torch.stack(terms).mean()


@pytest.mark.parametrize(
    ("function", "group", "wrong_by", "oracle"),
    [
        (distance_of_means, 2, 0.73, None),
        (distance_of_means, 3, 0.81, None),
        (own_prototypes, 3, 0.49, (0.037961, 0.030549, -0.068510)),
    ],
)
def test_a_statistic_across_prompts_gets_the_true_gradient(function, group, wrong_by, oracle, samples_of, all_groups):
    """As a GroupStatistic, whose groups lose a sample all at once, the gradient is wrong by a part of its largest entry."""

    class Across(BatchStatistic):
        smallest = 1

        def features(self, samples: Samples) -> Tensor:
            return POINT_VD[torch.tensor(samples.outputs)].view(len(samples.prompts), samples.group, 2)

        def value(self, features: Tensor, kept: Tensor) -> Tensor:
            return function(features, kept)

    class AtOnce(GroupStatistic):
        features = Across.features

        def value(self, features: Tensor) -> Tensor:
            return function(features, torch.ones(features.shape[:2], dtype=torch.bool)).expand(2)

    logits_BV = BATCH_BV.double().requires_grad_()
    p_BV = logits_BV.softmax(-1)
    score_BVV = torch.eye(3) - p_BV.detach()[:, None]
    expected, found, at_once = 0.0, torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    # The functions do not see the order of siblings, so each order of a group stands for all.
    ordered, orders_X = all_groups(3, group).sort(-1).values.unique(dim=0, return_counts=True)
    for one_G, of_one in zip(ordered, orders_X, strict=True):
        for other_G, of_other in zip(ordered, orders_X, strict=True):
            outcomes_BG = torch.stack([one_G, other_G])
            samples = samples_of(outcomes_BG)
            probability = p_BV.gather(1, outcomes_BG).prod() * of_one * of_other
            outcome, naive = Across()(samples), AtOnce()(samples)
            expected = expected + probability * outcome.reward_BG[0, 0].double()
            score_BGV = score_BVV[torch.tensor([[0], [1]]), outcomes_BG]
            found += probability.detach() * (outcome.advantage_BG.double()[..., None] * score_BGV).sum(1) / (2 * group)
            # A group's own number is F / B of the mean over prompts, which the step takes.
            at_once += probability.detach() * (naive.advantage_BG.double()[..., None] * score_BGV).sum(1) / (2 * group)
    expected_BV = torch.autograd.grad(expected, logits_BV)[0]
    close(found, expected_BV)
    wrong = ((at_once - expected_BV).abs().max() / expected_BV.abs().max()).item()
    assert wrong == pytest.approx(wrong_by, abs=0.01)
    if oracle is not None:
        torch.testing.assert_close(expected_BV[0], torch.tensor(oracle).double(), rtol=0, atol=1e-6)


def test_a_mean_over_prompts_is_a_statistic_of_the_batch_too(samples_of):
    class MeanOverPrompts(BatchStatistic):
        features = MeanScore.features

        def value(self, features: Tensor, kept: Tensor) -> Tensor:
            return mean_of(THETA_V[features].square()[..., None], kept).mean()

    samples = samples_of(torch.tensor([[0, 1, 2], [1, 3, 0]]))
    found, expected = MeanOverPrompts()(samples), MeanScore()(samples)
    torch.testing.assert_close(found.advantage_BG, expected.advantage_BG)
    assert found.reward_BG.shape == (2, 3)
    (problem,) = MeanOverPrompts().problems(Context(1))
    assert problem.path == "model.sampling.samples"

    class PerPrompt(MeanOverPrompts):
        def value(self, features: Tensor, kept: Tensor) -> Tensor:
            return features.float().mean(1)

    with pytest.raises(ConfigError, match=r"`value` of PerPrompt to be \[\] = \[\], float32"):
        PerPrompt()(samples)


def test_wrong_settings_and_values_are_refused(samples_of):
    assert VendiScore(NGramCounts()).problems(Context(2)) == []
    (one,) = VendiScore(NGramCounts()).problems(Context(1))
    assert str(one).startswith(
        "Key `model.sampling.samples`: expected at least 2 samples per prompt (each sample is left"
    )
    (two,) = NearTarget().problems(Context(2))
    assert "expected at least 3" in str(two)
    assert LogDeterminant(NGramCounts(n=0), noise=0.0).problems()[0].path == "embedder.init_args.n"
    assert LogDeterminant(NGramCounts(), noise=0.0).problems()[0].path == "noise"

    class Flat(MeanScore):
        def features(self, samples: Samples) -> Tensor:
            return super().features(samples).flatten()

    class PerSample(MeanScore):
        def value(self, features: Tensor) -> Tensor:
            return features.float()

    class Broken(MeanScore):
        def value(self, features: Tensor) -> Tensor:
            if (features == 3).any():
                raise RuntimeError("three")
            return super().value(features)

    samples = samples_of(torch.tensor([[0, 1, 2], [1, 3, 0]]))
    with pytest.raises(ConfigError, match=r"`features` of Flat to be \[B, G, ...\] = \[2, 3, ...\], but got \[6\]"):
        Flat()(samples)
    with pytest.raises(ConfigError, match=r"`value` of PerSample to be \[B\] = \[2\], float32"):
        PerSample()(samples)
    with pytest.raises(PartError, match="three") as caught:
        Broken()(samples)
    assert list(caught.value.outputs) == [3, 4, 5]
