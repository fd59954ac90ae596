"""Rewards that compare samples with a reference: numeric oracles, and gradients against autograd on a tiny policy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_references import Rows, with_bank
from torch import Tensor, nn

from cfg_distill.distillation.resuming import refuse_other_tensors
from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError, Context
from cfg_distill.metrics import KernelDistance, PromptRetrieval, PseudoDensity
from cfg_distill.references import (
    StartSamples,
    Texts,
    bank_of,
    energy_kernel,
    gaussian_mixture,
    mean_distance,
    prototypes,
    pseudo_density,
    within,
    witness,
)
from cfg_distill.rewards import (
    CodeInformation,
    Density,
    DiversityTarget,
    Mixed,
    PairwiseDiversity,
    PromptContrast,
    Witness,
    leave_one_out,
)
from cfg_distill.rewards.contrast import log_contrast
from cfg_distill.rewards.running import RunningMean
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples

THETA_V = torch.tensor([0.3, -0.5, 0.9, 0.1])
TABLE_VD = torch.tensor([[0.5, 0.5], [3.0, 3.0], [1.0, 0.0], [0.2, 0.9]])
BANK_RD = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [4.0, 4.0]])


def close(found: Tensor, expected: Tensor) -> None:
    """A relative error below 1e-4 of the largest entry."""
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def gradient_of(objective: Any, theta_V: Tensor = THETA_V) -> Tensor:
    theta_V = theta_V.double().requires_grad_()
    objective(theta_V.softmax(-1)).backward()
    return theta_V.grad


# Pseudo density


def test_the_oracle_of_pseudo_density():
    bank = bank_of(BANK_RD, torch.full((5,), 0.2), k=2)
    torch.testing.assert_close(bank.density_M, torch.tensor([1.185849] * 4 + [0.256604]), rtol=0, atol=1e-5)
    points = torch.tensor([[0.5, 0.5], [3.0, 3.0], [1.0, 0.0]])
    expected = torch.tensor([1.677044, 0.559015, 2.371698])
    torch.testing.assert_close(pseudo_density(points, bank), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="at least 6 reference outputs for 5 neighbours but got 5"):
        bank_of(BANK_RD, torch.full((5,), 0.2), k=5)
    assert math.isfinite(bank_of(torch.ones(4, 2), torch.ones(4) / 4, k=2).typical)  # copies have no distance


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("group", [2, 3, 4])
def test_density_gives_the_true_gradient(group, smooth, lookup, samples_of, expected_gradient, all_groups):
    """Without a baseline the gradient is right too. With the mean of the whole group in its place it is (G - 1) / G of it."""
    table_VD, rows = with_bank(TABLE_VD, BANK_RD)
    outcomes_BG = all_groups(4, group)
    reward = Density(lookup(table_VD), Rows(rows), k=2, weight_above=0.25, smooth=smooth)
    outcome = reward(samples_of(outcomes_BG))
    # By hand: the median density of the bank is 1.185849, and its quantiles of 5 and 95 % are 0.442453 and 1.185849.
    density_V = [1.677044, 0.559015, 2.371698, 4.216388**-1 * 5 / ((math.hypot(0.2, 0.1) + math.hypot(0.2, 0.9)) / 2)]
    if smooth:
        value_V = [-min(max(math.log(rho), math.log(0.442453)), math.log(1.185849)) for rho in density_V]
    else:
        value_V = [math.log(0.25) * (rho > 1.185849) for rho in density_V]
    value_V = torch.tensor(value_V, dtype=torch.float64)
    torch.testing.assert_close(outcome.reward_BG, value_V.float()[outcomes_BG], rtol=0, atol=1e-5)
    expected = gradient_of(lambda p_V: p_V @ value_V)
    close(expected_gradient(THETA_V, outcomes_BG, outcome.advantage_BG), expected)
    naive_BG = outcome.reward_BG - outcome.reward_BG.mean(-1, keepdim=True)
    close(expected_gradient(THETA_V, outcomes_BG, naive_BG), expected * (group - 1) / group)


def test_the_tilt_has_its_optimum_at_the_rejected_law(samples_of):
    """Teacher (.5, .3, .2), a (.25, 1, 1): p a / Z = (.2, .48, .32), value log Z = -.470004, gradient 0 there."""
    teacher_V, a_V = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.25, 1.0, 1.0]).double()
    best_V = teacher_V * a_V / (teacher_V @ a_V)
    torch.testing.assert_close(best_V, torch.tensor([0.2, 0.48, 0.32]).double())
    theta_V = best_V.log().requires_grad_()
    p_V = theta_V.softmax(-1)
    value = (p_V * (a_V.log() - (p_V / teacher_V).log())).sum()
    assert value.item() == pytest.approx(-0.470004, abs=1e-6)
    value.backward()
    assert theta_V.grad.abs().max() < 1e-12


def test_the_tilt_of_two_positions_needs_the_score_term():
    """Teacher (.6, .4), then (.7, .3) | 0 and (.4, .6) | 1, a = .25 on (0, 0). The gradient of the KL of sequences is 0 at
    p a / Z. The sum of the KLs of positions, whose prefixes are given, has another fixed point."""
    teacher_VV = torch.tensor([[0.42, 0.18], [0.16, 0.24]]).double()
    a_VV = torch.tensor([[0.25, 1.0], [1.0, 1.0]]).double()

    def gradient(p_VV: Tensor, score_term: bool) -> Tensor:
        first_V, second_VV = (
            p_VV.sum(1).log().requires_grad_(),
            (p_VV / p_VV.sum(1, keepdim=True)).log().requires_grad_(),
        )
        student_V, then_VV = first_V.softmax(-1), second_VV.softmax(-1)
        teacher_V = teacher_VV.sum(1)
        position = (student_V * (student_V / teacher_V).log()).sum()
        then_V = (then_VV * (then_VV / (teacher_VV / teacher_V[:, None])).log()).sum(-1)
        prefix_V = student_V if score_term else student_V.detach()
        value = (student_V[:, None] * then_VV * a_VV.log()).sum() - position - prefix_V @ then_V
        return torch.cat([each.flatten() for each in torch.autograd.grad(value, (first_V, second_VV))])

    exact = torch.tensor([[0.153285, 0.262774], [0.233577, 0.350365]]).double()
    truncated = torch.tensor([[0.174523, 0.299182], [0.210518, 0.315777]]).double()
    torch.testing.assert_close(teacher_VV * a_VV / (teacher_VV * a_VV).sum(), exact, rtol=0, atol=1e-6)
    assert gradient(exact, True).abs().max() < 1e-5 and gradient(truncated, False).abs().max() < 1e-5
    assert gradient(exact, False).abs().max() > 1e-2 and gradient(truncated, True).abs().max() > 1e-2


@pytest.mark.parametrize(("weight", "smooth"), [(0.25, False), (4.0, False), (0.25, True), (4.0, True)])
def test_a_degenerate_sample_has_the_lowest_density_reward(weight, smooth, lookup, samples_of):
    table_VD, rows = with_bank(torch.cat([TABLE_VD, torch.tensor([[9.0, 9.0]])]), BANK_RD)
    group = torch.tensor([[0, 1, 2, 4]])
    reward = Density(lookup(table_VD, empty=(4,)), Rows(rows), k=2, weight_above=weight, smooth=smooth)
    value_G = reward(samples_of(group)).reward_BG[0]
    assert value_G[3] <= value_G[:3].min() and value_G[:3].max() > value_G[3]


def test_prompts_have_banks_of_their_own(lookup, samples_of):
    table_VD, rows = with_bank(TABLE_VD, torch.cat([BANK_RD, BANK_RD + 3]))
    weights = [[1.0] * 5 + [0.0] * 5, [0.0] * 5 + [1.0] * 5]
    reward = Density(lookup(table_VD), Rows(rows, weights), k=2, weight_above=4.0, smooth=True)
    samples = samples_of(torch.tensor([[0, 1], [0, 1]]))
    (near, far), (off, corner) = reward(samples).reward_BG.tolist()
    assert near > far and corner > off
    metric = PseudoDensity(lookup(table_VD), Rows(rows, weights), k=2)
    metric.update(samples)
    first = (math.log(1.677044) + math.log(0.559015)) / 2
    assert metric.per_prompt()[0].item() == pytest.approx(first, abs=1e-5)
    share = PseudoDensity(lookup(table_VD, empty=(1,)), Rows(rows, weights), k=2, quantile=0.5)
    assert share.score(samples).tolist() == [1.0, 0.0]
    for quantile in (None, 0.5):  # nothing is left of the groups
        empty = PseudoDensity(lookup(table_VD, empty=(0, 1)), Rows(rows, weights), k=2, quantile=quantile)
        assert empty.score(samples).isnan().all()
    with pytest.raises(ConfigError, match=r"prompt 'prompt 0': expected at least 6 reference outputs.*Lower"):
        Density(lookup(table_VD), Rows(rows, weights), k=5)(samples)
    lonely = Rows(rows, [[0.0] * 10, [1.0] * 10])
    with pytest.raises(
        ConfigError, match=r"Key `reference`: expected reference outputs for every prompt, .*'prompt 0'"
    ):
        Density(lookup(table_VD), lonely, k=2)(samples)


# Witness

LINE_VD = torch.tensor([[0.0], [1.0], [3.0]])
LINE_RD = torch.tensor([[0.0], [2.0]])
LINE_R = torch.tensor([[0.25, 0.75]])


def test_the_oracle_of_the_witness(lookup, samples_of):
    kernel = gaussian_mixture([1.0])
    near_BG = witness(LINE_VD[None], LINE_RD, LINE_R, kernel)
    torch.testing.assert_close(near_BG, torch.tensor([[0.351501, 0.606531, 0.457675]]), rtol=0, atol=1e-5)
    assert within(LINE_RD, LINE_R, kernel).item() == pytest.approx(0.675751, abs=1e-5)
    table_VD, rows = with_bank(LINE_VD, LINE_RD)
    reference, samples = Rows(rows, LINE_R.tolist()), samples_of(torch.tensor([[0, 1, 2]]))
    reward = Witness(lookup(table_VD), reference, bandwidths=[1.0])
    pairs_GG = reward.pairs(samples)[0]
    found = torch.stack([pairs_GG[0, 1], pairs_GG[0, 2], pairs_GG[1, 2]])
    torch.testing.assert_close(found, torch.tensor([0.351501, 0.798068, 0.928871]), rtol=0, atol=1e-5)
    outcome = reward(samples)
    expected = torch.tensor([[0.574785, 0.640186, 0.863469]])
    torch.testing.assert_close(outcome.reward_BG, expected, rtol=0, atol=1e-5)
    expected = torch.tensor([[-0.708172, -0.315763, 1.023935]])
    torch.testing.assert_close(outcome.advantage_BG, expected, rtol=0, atol=1e-5)
    distance = KernelDistance(lookup(table_VD), reference, bandwidths=[1.0])
    assert distance.score(samples).item() == pytest.approx(-0.017063, abs=1e-5)
    energy = KernelDistance(lookup(table_VD), reference, kernel="energy")
    # -.083333 in the oracle: 2 E|y - v| - E|y - y'| - E|v - v'|.
    assert energy.score(samples).item() == pytest.approx(-0.083333, abs=1e-5)
    assert energy.score(samples_of(torch.tensor([[0]]))).isnan().all()


@pytest.mark.parametrize("empty", [(), (1,)])
@pytest.mark.parametrize(
    ("group", "kernel", "baseline"),
    [
        (2, "gaussian", "running_mean"),
        (3, "gaussian", "pairwise"),
        (4, "gaussian", "pairwise"),
        (3, "energy", "pairwise"),
    ],
)
def test_witness_gives_the_true_gradient(
    group, kernel, baseline, empty, lookup, samples_of, expected_gradient, all_groups
):
    """(-.082013, .058402, .023611) for the Gaussian kernel; the leave-one-out mean of rewards gives half of it at G = 3."""
    theta_V, outcomes_BG = torch.tensor([0.2, -0.1, 0.4]), all_groups(3, group)
    table_VD, rows = with_bank(LINE_VD, LINE_RD)
    reward = Witness(
        lookup(table_VD, empty), Rows(rows, LINE_R.tolist()), kernel=kernel, bandwidths=[1.0], baseline=baseline
    )
    reward.past.update(torch.tensor(0.7), torch.tensor(1.0))
    outcome = reward(samples_of(outcomes_BG))
    gaussian = kernel == "gaussian"

    def k(a: Tensor, b: Tensor) -> Tensor:
        distance = (a - b.T).abs().double()
        return torch.exp(-(distance**2) / 2) if gaussian else -distance

    near_V = k(LINE_VD, LINE_RD) @ LINE_R[0].double()
    pairs_VV = near_V[:, None] + near_V - k(LINE_VD, LINE_VD)
    for each in empty:
        pairs_VV[each] = pairs_VV[:, each] = -1.0 if gaussian else -4.0 * 2
    expected = gradient_of(lambda p_V: p_V @ pairs_VV @ p_V, theta_V)
    close(expected_gradient(theta_V, outcomes_BG, outcome.advantage_BG), expected)
    if gaussian and not empty:
        torch.testing.assert_close(expected.float(), torch.tensor([-0.082013, 0.058402, 0.023611]), rtol=0, atol=1e-6)
        naive_BG = 2 * (outcome.reward_BG - leave_one_out(outcome.reward_BG))
        naive = expected_gradient(theta_V, outcomes_BG, naive_BG)
        torch.testing.assert_close(naive, expected * (group - 2) / (group - 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", ["gaussian", "energy"])
def test_a_pair_with_a_degenerate_sample_is_worth_least(kernel, lookup, samples_of):
    random = torch.Generator().manual_seed(0)
    table_VD, rows = with_bank(
        nn.functional.normalize(torch.randn(7, 4, generator=random), dim=-1),
        nn.functional.normalize(torch.randn(9, 4, generator=random), dim=-1),
    )
    reward = Witness(lookup(table_VD, empty=(6,)), Rows(rows), kernel=kernel)
    pairs_GG = reward.pairs(samples_of(torch.arange(7)[None]))[0]
    assert (pairs_GG[6] <= pairs_GG[:6, :6].min()).all() and pairs_GG[:6, :6].min() < pairs_GG[:6, :6].max()
    metric = KernelDistance(lookup(table_VD, empty=(6,)), Rows(rows), kernel=kernel)
    groups = torch.tensor(
        [[*range(5), other] for other in (5, 0, 6)] + [[6] * 6]
    )  # a sample, a copy, an empty one, nothing
    sample, copy, empty, nothing = metric.score(samples_of(groups)).tolist()
    assert max(sample, copy) < empty < nothing


# A target of diversity


def test_the_oracle_of_the_target(lookup, samples_of):
    """Mean similarities .433333 of the student and .2 of the start model: similarities .6, .4 and .3 of three samples."""
    cosines = torch.tensor([[1.0, 0.6, 0.4], [0.6, 1.0, 0.3], [0.4, 0.3, 1.0]])
    reward = DiversityTarget(lookup(torch.linalg.cholesky(cosines)), target=0.8)
    samples = samples_of(torch.tensor([[0, 1, 2]]))
    assert not reward(samples).advantage_BG.any()  # no past
    torch.testing.assert_close(reward.past.value, torch.tensor(0.566667 - 0.8), rtol=0, atol=1e-5)
    found, expected = reward(samples).advantage_BG, torch.tensor([[-0.186667, -0.046667, 0.233333]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    own = mean_distance(torch.linalg.cholesky(cosines), torch.full((1, 3), 1 / 3))
    torch.testing.assert_close(own, torch.tensor([0.566667]), rtol=0, atol=1e-5)


def test_the_target_pulls_as_its_population_and_not_as_a_plug_in(lookup, samples_of, expected_gradient, all_groups):
    """Distances .8, .3 and .5 of three outcomes, target .4, G = 3. A plug-in -(D - .4)^2 of each group has the variance of D in
    its mean: it gives (-.011187, .014141, -.002954), which tests/rewards/test_statistic.py holds."""
    theta_V, outcomes_BG = torch.tensor([0.2, -0.4, 0.1]), all_groups(3, 3)
    cosine_VV = torch.tensor([[1.0, 0.2, 0.7], [0.2, 1.0, 0.5], [0.7, 0.5, 1.0]])
    p_V = theta_V.softmax(-1)
    reward = DiversityTarget(lookup(torch.linalg.cholesky(cosine_VV)), target=0.4).eval()
    reward.past.update(p_V @ (1 - cosine_VV) @ p_V - 0.4, torch.tensor(1.0))
    found = expected_gradient(theta_V, outcomes_BG, reward(samples_of(outcomes_BG)).advantage_BG)
    torch.testing.assert_close(found.float(), torch.tensor([-0.003845, 0.013991, -0.010146]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("empty", [(), (2,)])
@pytest.mark.parametrize("gap", [-0.3, 0.2])
@pytest.mark.parametrize("group", [3, 4])
def test_the_target_gives_the_gradient_of_its_pull(
    group, gap, empty, lookup, samples_of, expected_gradient, all_groups
):
    """With the leave-one-out mean of rewards it is (G - 2) / (G - 1) of it: half at G = 3."""
    outcomes_BG = all_groups(4, group)
    reward = DiversityTarget(lookup(TABLE_VD, empty), target=0.5)
    reward.past.update(torch.tensor(gap), torch.tensor(1.0))
    found = expected_gradient(THETA_V, outcomes_BG, reward.eval()(samples_of(outcomes_BG)).advantage_BG)
    units_VD = nn.functional.normalize(TABLE_VD.double(), dim=-1)
    distance_VV = 1 - units_VD @ units_VD.T
    for each in empty:
        distance_VV[each] = distance_VV[:, each] = 2.0 if gap > 0 else 0.0
    expected = gradient_of(lambda p_V: -2 * gap * p_V @ distance_VV @ p_V)
    close(found, expected)
    if not empty:
        reward_BG = reward(samples_of(outcomes_BG)).reward_BG
        naive = expected_gradient(THETA_V, outcomes_BG, -2 * gap * 2 * (reward_BG - leave_one_out(reward_BG)))
        close(naive, expected * (group - 2) / (group - 1))


def test_the_past_of_a_target_moves_in_training_only_and_resumes(lookup, samples_of):
    table_VD, rows = with_bank(torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]]))
    different, same = samples_of(torch.tensor([[0, 1, 2]] * 2)), samples_of(torch.tensor([[0, 0, 0]] * 2))
    # The reference of the second prompt is one output, which has no diversity: the prompt does not count.
    reward = DiversityTarget(lookup(table_VD), Rows(rows, [[1.0, 1.0], [1.0, 0.0]]), momentum=0.5)
    reward(different)
    torch.testing.assert_close(reward.past.value, torch.tensor(0.6))
    assert reward(different).advantage_BG.abs().max() < 1e-6  # all differ alike
    reward.eval()(same)
    torch.testing.assert_close(reward.past.value, torch.tensor(0.6))
    resumed = DiversityTarget(lookup(table_VD), Rows(rows, [[1.0, 1.0], [1.0, 0.0]]), momentum=0.5)
    assert {name for name in reward.state_dict() if "table" not in name} == {"past.value", "past.updates"}
    resumed.load_state_dict(reward.state_dict())
    mixed = samples_of(torch.tensor([[0, 0, 1]] * 2))
    assert torch.equal(resumed(mixed).advantage_BG, reward.train()(mixed).advantage_BG)
    assert torch.equal(resumed.past.value, reward.past.value)


# Contrast of prompts

PROTOTYPES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.07, (-2.912987, -0.055844, -20.055844)), (0.5, (-0.948774, -0.548774, -3.348774))],
)
def test_the_oracle_of_the_contrast(temperature, expected):
    sample_BGD = torch.tensor([[[0.6, 0.8]]]).expand(3, 1, 2)
    found = log_contrast(sample_BGD, PROTOTYPES, PROTOTYPES, ~torch.eye(3).bool(), temperature)
    torch.testing.assert_close(found, torch.tensor(expected)[:, None], rtol=0, atol=1e-5)


@pytest.fixture
def prompt_file(tmp_path) -> str:
    (tmp_path / "prompts.txt").write_text("prompt 0\nprompt 1\nprompt 2\n")
    return str(tmp_path / "prompts.txt")


@pytest.mark.parametrize("group", [2, 3, 4])
def test_contrast_gives_the_true_gradient(group, prompt_file, lookup, samples_of, expected_gradient, all_groups):
    """With the mean of the whole group as the baseline it is (G - 1) / G of it: half at G = 2."""
    table_VD, rows = with_bank(TABLE_VD, PROTOTYPES)
    outcomes_BG = all_groups(4, group)
    reward = PromptContrast(lookup(table_VD), Rows(rows, torch.eye(3).tolist()), prompt_file, temperature=0.5)
    samples = samples_of(outcomes_BG)
    samples.prompts = samples.asked = ["prompt 1"] * len(outcomes_BG)
    outcome = reward(samples)
    units_VD = nn.functional.normalize(TABLE_VD.double(), dim=-1)
    value_V = (units_VD @ PROTOTYPES.double().T / 0.5).log_softmax(-1)[:, 1]
    torch.testing.assert_close(outcome.reward_BG, value_V[outcomes_BG].float(), rtol=0, atol=1e-5)
    expected = gradient_of(lambda p_V: p_V @ value_V)
    close(expected_gradient(THETA_V, outcomes_BG, outcome.advantage_BG), expected)
    naive_BG = outcome.reward_BG - outcome.reward_BG.mean(-1, keepdim=True)
    close(expected_gradient(THETA_V, outcomes_BG, naive_BG), expected * (group - 1) / group)


def test_prompts_that_mean_the_same_are_not_contrasted(prompt_file, lookup, samples_of):
    bank_RD = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    table_VD, rows = with_bank(torch.tensor([[1.0, 0.05], [-1.0, 0.0], [0.0, 1.0]]), bank_RD)
    reference = Rows(rows, torch.eye(3).tolist())
    own_BD = prototypes(*reference.at(["0", "2"], lookup(table_VD)))
    torch.testing.assert_close(own_BD, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    samples = samples_of(torch.tensor([[0, 1], [0, 1], [0, 2]]))
    near, far = (
        PromptContrast(lookup(table_VD), reference, prompt_file, apart=apart)(samples).reward_BG
        for apart in (0.1, 0.001)
    )
    assert near[0, 0] > -1e-4 and near[1, 0] > -1e-4 and far[0, 0] < -0.5
    # A degenerate sample counts as one at the prototype of the least fitting other prompt.
    empty = PromptContrast(lookup(table_VD, empty=(1,)), reference, prompt_file)(samples).reward_BG
    assert empty[0, 1].item() == pytest.approx(-1 / 0.07, abs=1e-3)
    retrieval = PromptRetrieval(lookup(table_VD), reference, prompt_file)
    retrieval.update(samples)
    assert retrieval.per_prompt().tolist() == [0.5, 0.5, 0.5]
    assert PromptRetrieval(lookup(table_VD, empty=(2,)), reference, prompt_file).score(samples)[2] == 0.0


# Settings


def test_wrong_settings_are_named_together(tmp_path, prompt_file):
    (tmp_path / "texts.jsonl").write_text('{"text": "a b", "asked": "w1"}\n{"text": "c d", "asked": "w2"}\n')
    texts = Texts(str(tmp_path / "texts.jsonl"), prompt_field="asked")
    assert texts.problems() == [] and texts.size() == 2
    assert texts.weight([" W2 "]).tolist() == [[0.0, 1.0]]
    embedder = NGramCounts()

    def keys(part: Any) -> list[str]:
        return [problem.path for problem in part.problems(Context(4))]

    assert keys(Density(embedder, texts, k=1)) == []
    assert keys(Density(embedder, texts, k=2)) == ["k"]
    assert "expected at least 3 reference outputs for 2 neighbours, but there are 2" in str(
        PseudoDensity(embedder, texts, k=2).problems()[0]
    )
    assert keys(Density(NGramCounts(n=0), Texts("none.txt"), k=0, quantile=1.0, weight_above=1.0)) == [
        "embedder.init_args.n", "reference.init_args.path", "k", "quantile", "weight_above"
    ]  # fmt: skip
    assert keys(Witness(embedder, texts, kernel="cosine", bandwidths=[0.0])) == ["kernel", "bandwidths"]
    assert keys(DiversityTarget(embedder, target=2.5, momentum=1.0)) == ["target", "momentum"]
    assert keys(DiversityTarget(embedder, Texts("none.txt"))) == ["target.init_args.path"]
    assert DiversityTarget(embedder, 0.5).problems(Context(2))[0].path == "model.sampling.samples"
    assert keys(PromptContrast(embedder, texts, "none.txt", temperature=0.0, apart=3.0)) == [
        "apart",
        "against",
        "temperature",
    ]
    assert keys(Texts(str(tmp_path / "texts.jsonl"), field="txt")) == ["path"]


def test_logarithms_are_no_factors_of_a_product(prompt_file):
    texts, embedder = Texts(prompt_file), NGramCounts()
    rewards = {
        "density": Density(embedder, texts, k=1),
        "witness": Witness(embedder, texts),
        "contrast": PromptContrast(embedder, texts, prompt_file),
        "code": CodeInformation(embedder, texts, prompt_file),
        "diversity": PairwiseDiversity(embedder),
    }
    assert Mixed(rewards).problems(Context(4)) == []
    found = Mixed(rewards, mode="multiplicative").problems(Context(4))
    assert [problem.path for problem in found] == [f"rewards.{name}" for name in rewards if name != "diversity"]
    assert "values below, which count as 0. Use `mode: additive`" in str(found[0])


def test_vectors_are_made_once_per_embedder(lookup):
    reference = Rows([0, 1, 2], [[1.0, 1.0, 0.0]])
    first, second = lookup(torch.eye(3)), lookup(2 * torch.eye(3), empty=(0,))
    assert reference.vectors(first) is reference.vectors(first)
    vectors_RD, weight_BR = reference.at(["prompt 0"], second)
    torch.testing.assert_close(vectors_RD, 2 * torch.eye(3))
    assert weight_BR.tolist() == [[0.0, 1.0, 0.0]]  # a degenerate output has no weight
    assert energy_kernel(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).item() == -5.0


@pytest.mark.parametrize("kind", [Witness, Density])
def test_vectors_of_a_reference_follow_those_of_the_samples(kind, samples_of):
    """Counts of words are made on the CPU, wherever the samples' tokens are: here on a device without memory."""
    embedder = NGramCounts(buckets=8)
    reference = Rows(["a b", "c d", "e f", "g h"], [[1.0] * 4])
    settings = {"kernel": "energy"} if kind is Witness else {"k": 2}
    samples = samples_of(torch.tensor([[0, 1, 2]]))
    drawn = samples.rollout
    there = Rollout(*(each.to("meta") for each in (drawn.tokens_BGKT, drawn.mask_BGKT, drawn.log_probs_BGKT)))
    outputs = ["a b", "c d", "e f"]
    expected = kind(embedder, reference, **settings)(replace(samples, outputs=outputs))
    found = kind(embedder, reference, **settings)(replace(samples, outputs=outputs, rollout=there))
    assert torch.equal(found.reward_BG, expected.reward_BG)


def test_a_student_that_is_its_start_model_has_its_diversity(lookup, samples_of):
    """Empty outputs of the start model counted for nothing, those of the student as equal to all: the gap never closed."""
    table_VD = torch.eye(4)
    outputs = [0, 1, 2, 3]

    class Start:
        def draw(self, *_: object) -> Samples:
            return samples_of(torch.tensor([outputs]))

    reference = StartSamples(4)
    reference.attach(Start())  # type: ignore[arg-type]
    reward = DiversityTarget(lookup(table_VD, empty=(3,)), reference).train()
    assert reward(samples_of(torch.tensor([outputs]))).reward_BG.mean() == pytest.approx(0.5)
    assert reward.past.value.item() == pytest.approx(0.0, abs=1e-6)


def test_contrasts_are_as_exact_under_mixed_precision(lookup, samples_of, prompt_file):
    """Prototypes of bfloat16 made prompts their own others."""
    torch.manual_seed(0)
    table_VD = torch.ones(3, 64) + 0.05 * torch.randn(3, 64)
    samples = samples_of(torch.tensor([[0, 1]]))
    made = [
        PromptContrast(lookup(table_VD), Rows([0, 1, 2], torch.eye(3).tolist()), prompt_file, apart=0.0) for _ in "ab"
    ]
    plain = made[0](samples).reward_BG
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made[1](samples).reward_BG, plain, rtol=0, atol=1e-6)


def test_a_label_that_is_seen_late_begins_with_its_own_mean():
    past = RunningMean(0.75, (2,))
    for _ in range(5):
        past.update(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0]))
    past.update(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0]))
    past.update(torch.tensor([0.0, 6.0]), torch.tensor([0.0, 2.0]))
    assert past.value.tolist() == [1.0, 2.0] and past.updates.tolist() == [6, 2]
    resumed = RunningMean(0.75, (2,))
    resumed.load_state_dict(past.state_dict() | {"updates": torch.tensor(3)})  # of version 0.1
    assert resumed.value.tolist() == [1.0, 2.0] and resumed.updates.tolist() == [3, 3]
    own = {f"losses.diversity.reward.past.{key}": value for key, value in resumed.state_dict().items()}
    saved = {key: torch.tensor(3) if key.endswith("updates") else value for key, value in own.items()}
    refuse_other_tensors(own.keys(), own, saved)  # a fit goes on from it
