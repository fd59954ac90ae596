"""Mixtures of rewards: exact gradients by enumeration, scales that settle and resume."""

import pytest
import torch
from torch import Tensor, nn

from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError, Context
from cfg_distill.rewards import GroupReward, Mixed, PairwiseDiversity, PromptAdherence, Reward, SampleReward
from cfg_distill.sampling.samples import Samples

THETA_V = torch.tensor([0.3, -0.5, 0.9, 0.1])
TABLE_VD = torch.tensor([[1.0, 0.2, 0.0], [0.1, 1.0, -0.4], [0.5, 0.6, 2.0], [-0.7, 0.1, 0.3]])
QUALITY_V = torch.tensor([0.2, 1.0, 0.6, 2.5])


class Quality(SampleReward):
    def __init__(self, quality_V: Tensor = QUALITY_V) -> None:
        super().__init__()
        self.quality_V = quality_V

    def score(self, samples: Samples) -> Tensor:
        return self.quality_V[torch.tensor(samples.outputs)].unflatten(0, (-1, samples.group))


class Odd(Reward):
    def forward(self, samples: Samples) -> GroupReward:
        raise AssertionError


def gradient_of(objective) -> Tensor:
    theta_V = THETA_V.double().requires_grad_()
    objective(theta_V.softmax(-1)).backward()
    return theta_V.grad


def distances() -> Tensor:
    units_VD = nn.functional.normalize(TABLE_VD.double(), dim=-1)
    return 1 - units_VD @ units_VD.T


@pytest.mark.parametrize("group", [2, 3])
def test_sample_reward_gives_the_true_gradient(group, samples_of, expected_gradient, all_groups):
    outcomes_BG = all_groups(4, group)
    found = expected_gradient(THETA_V, outcomes_BG, Quality()(samples_of(outcomes_BG)).advantage_BG)
    torch.testing.assert_close(found, gradient_of(lambda p_V: p_V @ QUALITY_V.double()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("group", [3, 4])
def test_additive_gives_the_true_gradient(group, lookup, samples_of, expected_gradient, all_groups):
    outcomes_BG = all_groups(4, group)
    rewards = {"quality": Quality(), "diversity": PairwiseDiversity(lookup(TABLE_VD))}
    mixed = Mixed(rewards, {"diversity": 3.0}, calibration=0)
    found = expected_gradient(THETA_V, outcomes_BG, mixed(samples_of(outcomes_BG)).advantage_BG)
    expected = gradient_of(lambda p_V: p_V @ QUALITY_V.double() + 3 * p_V @ distances() @ p_V)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("group", [3, 4])
def test_product_with_diversity_gives_the_true_gradient(group, lookup, samples_of, expected_gradient, all_groups):
    outcomes_BG = all_groups(4, group)
    rewards = {"quality": Quality(), "diversity": PairwiseDiversity(lookup(TABLE_VD))}
    mixed = Mixed(rewards, {"quality": 0.5, "diversity": 2.0}, mode="multiplicative", calibration=0)
    outcome = mixed(samples_of(outcomes_BG))
    quality_V, squared_VV = QUALITY_V.double().sqrt(), distances().square()
    found = expected_gradient(THETA_V, outcomes_BG, outcome.advantage_BG)
    expected = gradient_of(lambda p_V: (p_V * quality_V) @ squared_VV @ p_V)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert expected.abs().max() > 0.05
    probability_B = THETA_V.softmax(-1).double()[outcomes_BG].prod(-1)
    p_V = THETA_V.softmax(-1).double()
    value = (probability_B * outcome.reward_BG.double().mean(-1)).sum()
    torch.testing.assert_close(value, (p_V * quality_V) @ squared_VV @ p_V, rtol=0, atol=2e-6)


def test_product_of_sample_rewards_gives_the_true_gradient(samples_of, expected_gradient, all_groups):
    outcomes_BG = all_groups(4, 2)
    negative_V = torch.tensor([-1.0, 0.5, 2.0, 1.0])
    mixed = Mixed({"a": Quality(), "b": Quality(negative_V)}, mode="multiplicative", calibration=0)
    found = expected_gradient(THETA_V, outcomes_BG, mixed(samples_of(outcomes_BG)).advantage_BG)
    product_V = (QUALITY_V * negative_V.clamp(min=0)).double()
    torch.testing.assert_close(found, gradient_of(lambda p_V: p_V @ product_V), rtol=0, atol=1e-6)


def batches() -> list[Tensor]:
    return list(torch.randint(4, (6, 2, 3), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
def test_scales_come_from_the_past_then_stand_still_and_resume(mode, lookup, samples_of):
    def make() -> Mixed:
        rewards = {"quality": Quality(), "diversity": PairwiseDiversity(lookup(TABLE_VD))}
        return Mixed(rewards, mode=mode, calibration=2)

    first, second, third, *rest = [samples_of(batch) for batch in batches()]
    mixed, raw = make(), {"quality": Quality(), "diversity": PairwiseDiversity(lookup(TABLE_VD))}

    def seen(samples: Samples, name: str) -> Tensor:
        outcome = raw[name](samples)
        return outcome.advantage_BG.square() if mode == "additive" else outcome.reward_BG

    mixed(first)
    expected = torch.stack([seen(first, name).mean() for name in raw])
    torch.testing.assert_close(mixed.past.value, expected)
    # The second batch is scaled by the first alone.
    if mode == "additive":
        scaled = sum(raw[name](second).advantage_BG / expected[k].sqrt() for k, name in enumerate(raw))
        torch.testing.assert_close(mixed(second).advantage_BG, scaled)
    else:
        mixed(second)
    both = torch.stack([(seen(first, name).mean() + seen(second, name).mean()) / 2 for name in raw])
    torch.testing.assert_close(mixed.past.value, both)
    resumed = make()
    resumed.load_state_dict({k: v for k, v in mixed.state_dict().items() if ".embedder." not in k}, strict=False)
    for samples in (third, *rest):
        assert torch.equal(resumed(samples).advantage_BG, mixed(samples).advantage_BG)
    assert torch.equal(mixed.past.value, resumed.past.value)
    torch.testing.assert_close(mixed.past.value, both)


def test_units_of_a_reward_do_not_matter(samples_of):
    small = Mixed({"a": Quality(), "b": Quality(QUALITY_V.flip(0))})
    large = Mixed({"a": Quality(QUALITY_V * 100), "b": Quality(QUALITY_V.flip(0))})
    for batch in batches():
        torch.testing.assert_close(large(samples_of(batch)).advantage_BG, small(samples_of(batch)).advantage_BG)


def test_a_reward_that_never_moves_adds_nothing(samples_of):
    alone, beside = Mixed({"a": Quality()}), Mixed({"a": Quality(), "b": Quality(torch.ones(4))})
    for batch in batches():
        torch.testing.assert_close(beside(samples_of(batch)).advantage_BG, alone(samples_of(batch)).advantage_BG)


def test_prompt_adherence_prefers_the_prompt(samples_of):
    samples = samples_of(torch.zeros(2, 3, dtype=torch.long))
    samples.prompts = ["a slow air", "a fast reel"]
    samples.outputs = ["a slow air", "slow", "x y", "a fast reel", "a slow air", ""]
    outcome = PromptAdherence(NGramCounts(n=1))(samples)
    expected = torch.tensor([[1.0, 3**-0.5, 0.0], [1.0, 1 / 3, 0.0]])
    torch.testing.assert_close(outcome.reward_BG, expected)
    torch.testing.assert_close(outcome.advantage_BG.sum(-1), torch.zeros(2))


def test_problems_name_the_key_and_the_way_out():
    rewards = {"quality": Quality(), "diversity": PairwiseDiversity(NGramCounts())}
    assert Mixed(rewards).problems(Context(3)) == []
    (misspelt,) = Mixed(rewards, {"divrsity": 1.0}).problems(Context(3))
    assert "Did you mean `diversity`?" in str(misspelt)
    assert Mixed(rewards).problems(Context(2))[0].path == "rewards.diversity.init_args.baseline"
    (product,) = Mixed(rewards, mode="multiplicative").problems(Context(2))
    assert "`mode: additive`" in str(product)
    assert "at least 3" in str(product)
    assert len(Mixed(rewards).problems(Context(1))) == 2
    (odd,) = Mixed({"odd": Odd()}, mode="multiplicative").problems(Context(4))
    assert "`mode: additive`" in str(odd)
    assert Mixed({"odd": Odd()}).problems(Context(4)) == []
    assert Mixed(rewards, mode="product").problems(Context(4))[0].path == "mode"
    assert Mixed(rewards, calibration=-1).problems(Context(4))[0].path == "calibration"
    assert "at least one" in str(Mixed({}).problems(Context(4))[0])
    for weight in (float("nan"), float("inf")):
        assert Mixed(rewards, {"quality": weight}).problems(Context(4))[0].path == "weights.quality"
    assert not Mixed(rewards, {"quality": -1.0}).problems(Context(4))
    assert Mixed(rewards, {"quality": -1.0}, mode="multiplicative").problems(Context(4))[0].path == "weights.quality"
    with pytest.raises(ConfigError, match="full stop"):
        Mixed({"a.b": Quality()})


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_advantage(mode, dtype, lookup, samples_of):
    """Advantages in bfloat16 have three digits, and whole groups of them no spread."""
    outcomes_BG = torch.tensor([[0, 1, 2, 3], [3, 3, 1, 0]])

    def parts():
        embedder = lookup(TABLE_VD)
        return {"quality": Quality(), "diversity": PairwiseDiversity(embedder)}

    for make in (lambda: Mixed(parts(), mode=mode), *(lambda name=name: parts()[name] for name in parts())):
        plain = make()(samples_of(outcomes_BG))
        with torch.autocast("cpu", dtype):
            cast = make()(samples_of(outcomes_BG))
        for name in ("reward_BG", "advantage_BG"):
            assert getattr(cast, name).dtype == torch.float32
            assert torch.equal(getattr(cast, name), getattr(plain, name))
