"""The policy gradient of diversity against the exact gradient of a policy small enough to enumerate."""

import itertools
import math

import pytest
import torch
from torch import nn

from cfg_distill.embedders import NGramCounts, cosine_distances
from cfg_distill.errors import Context, problems_of
from cfg_distill.rewards import (
    Mixed,
    PairwiseDiversity,
    PairwiseReward,
    leave_one_out,
    pairwise_baseline,
    pairwise_diversity,
)

THETA_V = torch.tensor([0.3, -0.5, 0.9, 0.1])
TABLE_VD = torch.tensor([[1.0, 0.2, 0.0], [0.1, 1.0, -0.4], [0.5, 0.6, 2.0], [-0.7, 0.1, 0.3]])


def true_gradient(empty: tuple[int, ...] = ()) -> torch.Tensor:
    """grad of D = sum_{y, y'} p(y) p(y') r(y, y') by autograd on the exact expectation; r = 0 for a pair with an empty y."""
    theta_V = THETA_V.double().requires_grad_()
    units_VD = nn.functional.normalize(TABLE_VD.double(), dim=-1)
    counts_V = torch.tensor([float(outcome not in empty) for outcome in range(len(THETA_V))], dtype=torch.float64)
    p_V = theta_V.softmax(-1) * counts_V
    (p_V @ (1 - units_VD @ units_VD.T) @ p_V).backward()
    return theta_V.grad


@pytest.mark.parametrize("group", [3, 4])
def test_pairwise_baseline_gives_the_true_gradient(group, lookup, samples_of, expected_gradient, all_groups):
    outcomes_BG = all_groups(len(THETA_V), group)
    outcome = PairwiseDiversity(lookup(TABLE_VD))(samples_of(outcomes_BG))
    found = expected_gradient(THETA_V, outcomes_BG, outcome.advantage_BG)
    torch.testing.assert_close(found, true_gradient(), rtol=0, atol=1e-6)
    assert true_gradient().abs().max() > 0.05


@pytest.mark.parametrize("empty", [(2,), (0, 3)])
@pytest.mark.parametrize(("group", "baseline"), [(2, "running_mean"), (3, "pairwise"), (4, "pairwise")])
def test_the_gradient_stays_right_where_outcomes_are_empty(
    group, baseline, empty, lookup, samples_of, expected_gradient, all_groups
):
    outcomes_BG = all_groups(len(THETA_V), group)
    reward = PairwiseDiversity(lookup(TABLE_VD, empty), baseline=baseline)
    reward.past.update(torch.tensor(0.7), torch.tensor(1.0))
    found = expected_gradient(THETA_V, outcomes_BG, reward(samples_of(outcomes_BG)).advantage_BG)
    torch.testing.assert_close(found, true_gradient(empty), rtol=0, atol=1e-6)
    assert not torch.allclose(true_gradient(empty), true_gradient(), atol=0.02)


class OneWay(PairwiseReward):
    """r(y, y') is another number than r(y', y), as of containment or of BLEU."""

    TABLE_VV = torch.tensor([[0.0, 1.0, 0.2, 0.7], [0.1, 0.0, 0.9, 0.0], [0.4, 0.3, 0.0, 0.8], [0.0, 0.6, 0.5, 0.0]])

    def pairs(self, samples):
        outcomes_BG = torch.tensor(samples.outputs).view(len(samples.prompts), -1)
        return self.TABLE_VV[outcomes_BG.unsqueeze(-1), outcomes_BG.unsqueeze(-2)]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("group", "baseline"), [(2, "running_mean"), (3, "pairwise"), (4, "pairwise")])
def test_the_gradient_is_right_where_the_order_of_a_pair_matters(
    group, baseline, mixed, samples_of, expected_gradient, all_groups
):
    if mixed and baseline == "running_mean":
        return
    reward = OneWay(baseline=baseline)
    reward.past.update(torch.tensor(0.7), torch.tensor(1.0))
    if mixed:
        reward = Mixed({"pairs": reward}, mode="multiplicative", calibration=0)
    theta_V = THETA_V.double().requires_grad_()
    p_V = theta_V.softmax(-1)
    off_diagonal = p_V @ OneWay.TABLE_VV.double() @ p_V
    off_diagonal.backward()
    outcomes_BG = all_groups(len(THETA_V), group)
    found = expected_gradient(THETA_V, outcomes_BG, reward(samples_of(outcomes_BG)).advantage_BG)
    torch.testing.assert_close(found, theta_V.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1, 3, 7, 8])
def test_empty_samples_earn_nothing_and_never_pay(number, lookup, samples_of):
    """The encoder puts the empty sample far from all others, as an encoder of tunes does: once three of eight paid most."""
    siblings_VD = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)) * 0.5 + 1
    table_VD = torch.cat([siblings_VD, -torch.ones(1, 6)])
    group_G = torch.tensor([8] * number + list(range(number, 8)))
    outcome = PairwiseDiversity(lookup(table_VD, empty=(8,)))(samples_of(group_G[None]))
    full_GG = cosine_distances(siblings_VD[number:])
    expected_G = torch.cat([torch.zeros(number), full_GG.sum(-1) / 7])
    torch.testing.assert_close(outcome.reward_BG[0], expected_G)
    paid = PairwiseDiversity(lookup(table_VD))(samples_of(group_G[None])).reward_BG.mean()
    unpaid = PairwiseDiversity(lookup(table_VD))(samples_of(torch.arange(8)[None])).reward_BG.mean()
    assert outcome.reward_BG.mean() <= unpaid
    assert number not in (1, 3) or paid > unpaid  # what the reward did before
    # An empty sample is pushed away by exactly the mean distance among the others.
    for i in range(number):
        others = [j for j in range(8) if j != i]
        pairs = [cosine_distances(table_VD[group_G])[j, k] for j in others for k in others if j < k and j >= number]
        assert outcome.advantage_BG[0, i].item() == pytest.approx(-2 * float(sum(pairs)) / 21, abs=1e-5)
    assert number < 8 or not outcome.advantage_BG.any()


@pytest.mark.parametrize("group", [2, 3, 4])
def test_running_mean_gives_the_true_gradient(group, lookup, samples_of, expected_gradient, all_groups):
    outcomes_BG = all_groups(len(THETA_V), group)
    reward = PairwiseDiversity(lookup(TABLE_VD), baseline="running_mean")
    reward.past.update(torch.tensor(0.7), torch.tensor(1.0))
    found = expected_gradient(THETA_V, outcomes_BG, reward(samples_of(outcomes_BG)).advantage_BG)
    torch.testing.assert_close(found, true_gradient(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("group", [2, 3, 4])
def test_the_trap_baselines_that_share_a_pair_shrink_the_gradient(group, expected_gradient, all_groups):
    """Leave-one-out of rewards gives (G-2)/(G-1) of the gradient, zero at G = 2; the group mean gives (G-2)/G."""
    outcomes_BG = all_groups(len(THETA_V), group)
    reward_BG = pairwise_diversity(TABLE_VD[outcomes_BG])
    advantages = {
        (group - 2) / (group - 1): 2 * (reward_BG - leave_one_out(reward_BG)),
        (group - 2) / group: 2 * (reward_BG - reward_BG.mean(-1, keepdim=True)),
    }
    for factor, advantage_BG in advantages.items():
        found = expected_gradient(THETA_V, outcomes_BG, advantage_BG)
        torch.testing.assert_close(found, factor * true_gradient(), rtol=0, atol=1e-6)


def test_first_batch_of_a_running_mean_is_unbiased_too(lookup, samples_of, expected_gradient, all_groups):
    """Two prompts of two samples, every outcome of the batch enumerated, each met by a reward without a past."""
    outcomes_MN = all_groups(len(THETA_V), 4)
    fresh = [PairwiseDiversity(lookup(TABLE_VD), baseline="running_mean") for _ in outcomes_MN]
    advantage_MN = torch.stack(
        [
            reward(samples_of(row.unflatten(0, (2, 2)))).advantage_BG.flatten()
            for reward, row in zip(fresh, outcomes_MN, strict=True)
        ]
    )
    found = expected_gradient(THETA_V, outcomes_MN, advantage_MN)
    torch.testing.assert_close(found, true_gradient(), rtol=0, atol=1e-6)


def test_running_mean_uses_the_past_only(lookup, samples_of):
    reward = PairwiseDiversity(lookup(torch.eye(3)), baseline="running_mean", momentum=0.5)
    different, same = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 0], [1, 1]])
    assert reward(samples_of(different)).advantage_BG.abs().max() < 1e-6  # the other prompt's reward is 1 as well
    torch.testing.assert_close(reward(samples_of(same)).advantage_BG, torch.full((2, 2), -2.0))
    # The plain mean of two batches, then a moving one.
    torch.testing.assert_close(reward.past.value, torch.tensor(0.5))
    reward(samples_of(same))
    torch.testing.assert_close(reward.past.value, torch.tensor(0.25))
    reward.eval()
    torch.testing.assert_close(reward(samples_of(different)).advantage_BG, torch.full((2, 2), 1.5))
    torch.testing.assert_close(reward.past.value, torch.tensor(0.25))


def test_running_mean_of_a_single_first_prompt_has_no_advantage(lookup, samples_of):
    reward = PairwiseDiversity(lookup(torch.eye(3)), baseline="running_mean")
    assert reward(samples_of(torch.tensor([[0, 1]]))).advantage_BG.tolist() == [[0.0, 0.0]]


def test_running_mean_resumes_and_stays_float32(lookup, samples_of):
    reward = PairwiseDiversity(lookup(torch.eye(3)), baseline="running_mean").bfloat16()
    reward(samples_of(torch.tensor([[0, 1], [1, 1], [2, 2]])))
    assert reward.past.value.dtype == torch.float32
    own = {name: value for name, value in reward.state_dict().items() if not name.startswith("embedder.")}
    assert own.keys() == {"past.value", "past.updates"}
    resumed = PairwiseDiversity(lookup(torch.eye(3)), baseline="running_mean")
    resumed.load_state_dict(own, strict=False)
    following = samples_of(torch.tensor([[0, 1]]))
    assert torch.equal(resumed(following).advantage_BG, reward(following).advantage_BG)


@pytest.mark.parametrize("group", [3, 5])
def test_functions_agree_with_plain_loops(group):
    embedding_BGD = torch.randn(4, group, 6, generator=torch.Generator().manual_seed(0))
    for row_GD, reward_G, baseline_G in zip(
        embedding_BGD.double(), pairwise_diversity(embedding_BGD), pairwise_baseline(embedding_BGD), strict=True
    ):

        def distance(i: int, j: int, row_GD: torch.Tensor = row_GD) -> float:
            return 1 - nn.functional.cosine_similarity(row_GD[i], row_GD[j], dim=0).item()

        for i in range(group):
            others = [j for j in range(group) if j != i]
            assert reward_G[i].item() == pytest.approx(sum(distance(i, j) for j in others) / (group - 1), abs=1e-5)
            pairs = [distance(j, k) for j, k in itertools.combinations(others, 2)]
            assert baseline_G[i].item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


@pytest.mark.parametrize("function", [pairwise_diversity, pairwise_baseline])
def test_permuting_a_group_permutes_the_values(function):
    embedding_GD = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(function(embedding_GD[order]), function(embedding_GD)[order])


def test_length_dtype_and_autocast_do_not_matter():
    embedding_GD = torch.randn(4, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected_G = pairwise_diversity(embedding_GD.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pairwise_diversity(embedding_GD), expected_G)
        torch.testing.assert_close(pairwise_diversity(embedding_GD * 8), expected_G)


def test_near_identical_samples_keep_their_digits():
    embedding_GD = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [1.0, -1e-4]])
    assert pairwise_diversity(embedding_GD)[1].item() == pytest.approx((0.5e-8 + 2e-8) / 2, rel=1e-3)


def test_a_zero_vector_is_far_from_nothing():
    distances_GG = cosine_distances(torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [0.0, 2.0]]))
    expected_GG = torch.zeros(4, 4)
    expected_GG[2, 3] = expected_GG[3, 2] = 0.2
    torch.testing.assert_close(distances_GG, expected_GG)


def test_groups_too_small_for_the_functions():
    with pytest.raises(ValueError, match=r"at least 2 samples per group but got 1.*Draw more"):
        pairwise_diversity(torch.eye(1))
    with pytest.raises(ValueError, match=r"at least 3 samples per group .* but got 2.*running-mean"):
        pairwise_baseline(torch.eye(2))


def test_problems_name_the_key_and_the_way_out():
    reward = PairwiseDiversity(NGramCounts())
    assert reward.problems(Context(3)) == []
    (one,) = reward.problems(Context(1))
    assert str(one).startswith("Key `model.sampling.samples`: expected at least 3 samples per prompt")
    (two,) = reward.problems(Context(2))
    assert str(two.under("reward")).startswith(
        "Key `reward.baseline`: expected `running_mean` for 2 samples per prompt"
    )
    assert "no pair leaves a sample out" in str(two)
    assert "or `reward.baseline` to `running_mean`" in str(two.under("reward"))
    assert PairwiseDiversity(NGramCounts(), baseline="running_mean").problems(Context(2)) == []
    assert "running_mean" in str(PairwiseDiversity(NGramCounts(), baseline="mean").problems(Context(4))[0])
    for momentum in (1.0, math.nan):
        assert PairwiseDiversity(NGramCounts(), momentum=momentum).problems(Context(4))[0].path == "momentum"
    assert PairwiseDiversity(NGramCounts(n=0)).problems(Context(4))[0].path == "embedder.init_args.n"


def test_a_reward_of_version_0_1_that_asks_its_base_with_the_group_size():
    class Old(PairwiseDiversity):
        def problems(self, group):
            return [*super().problems(group), "of its own"] if group > 1 else []

    assert [str(problem) for problem in problems_of(Old(NGramCounts()), Context(4))] == ["of its own"]
    assert [problem.path for problem in problems_of(Old(NGramCounts()), Context(2))] == ["baseline", ""]
