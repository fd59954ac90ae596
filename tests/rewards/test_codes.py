"""Labels of samples, and rewards that read them: numeric oracles, and gradients against autograd on a tiny policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from tiny_fits import PROMPTS
from tiny_references import Rows, with_bank
from torch import Tensor, nn

from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError, Context
from cfg_distill.generators import CausalLM, Prompt, PromptLike
from cfg_distill.metrics import CodeAccuracy
from cfg_distill.references import StartSamples, code_log_probs
from cfg_distill.references.directions import Directions, principal_components, simplex
from cfg_distill.rewards import CodeInformation, Density, DiversityTarget, SampleReward, Witness, leave_one_out
from cfg_distill.sampling import Codes, Labels, Opening, Sampling, Seeds, StartModel, rollout
from cfg_distill.sampling.samples import Samples, draw

THETA_KV = torch.tensor([[0.8, 0.0, -0.3], [-0.2, 0.1, 0.6]])  # of the oracle: a policy for each code
Q_VK = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.2, 0.8]])


class TableInformation(SampleReward):
    """log q(c | y) + log K by a table."""

    def score(self, samples: Samples) -> Tensor:
        outputs_BG = torch.tensor(samples.outputs).view(len(samples.prompts), -1)
        return Q_VK[outputs_BG, samples.rollout.labels_BG].log() + math.log(2)


def under_codes(samples: Samples, codes: Sequence[int]) -> Samples:
    samples.rollout.labels_BG = torch.tensor(codes).expand(len(samples.prompts), -1)
    return samples


def gradient_under_codes(theta_KV: Tensor, outcomes_BG: Tensor, codes: Sequence[int], advantage_BG: Tensor) -> Tensor:
    """E[(1/G) sum_i advantage_i * grad log p(y_i | c_i)] over all groups, by hand."""
    p_KV, total_KV = theta_KV.double().softmax(-1), torch.zeros(theta_KV.shape, dtype=torch.float64)
    for outcomes, advantages in zip(outcomes_BG.tolist(), advantage_BG.double().tolist(), strict=True):
        probability = math.prod(float(p_KV[c, y]) for c, y in zip(codes, outcomes, strict=True))
        for c, y, advantage in zip(codes, outcomes, advantages, strict=True):
            score_V = nn.functional.one_hot(torch.tensor(y), theta_KV.shape[1]) - p_KV[c]
            total_KV[c] += probability * advantage * score_V / len(codes)
    return total_KV


def bound(theta_KV: Tensor, value_VK: Tensor) -> Tensor:
    """The mean value under codes of equal frequency."""
    return (theta_KV.softmax(-1) * value_VK.T).sum(-1).mean()


def true_gradient(theta_KV: Tensor, value_VK: Tensor) -> Tensor:
    theta_KV = theta_KV.double().requires_grad_()
    return torch.autograd.grad(bound(theta_KV, value_VK.double()), theta_KV)[0]


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_oracle_of_information(samples_of, all_groups):
    value_VK = Q_VK.double().log() + math.log(2)
    assert float(bound(THETA_KV.double(), value_VK)) == pytest.approx(0.067313, abs=1e-6)
    p_KV = THETA_KV.double().softmax(-1)
    marginal_V = p_KV.mean(0)
    information = float((p_KV * (p_KV / marginal_V).log()).sum() / 2)
    posterior_KV = p_KV / p_KV.sum(0)
    gap = float((marginal_V * posterior_KV * (posterior_KV / Q_VK.double().T).log()).sum())
    assert information == pytest.approx(0.074322, abs=1e-6) and gap == pytest.approx(0.007009, abs=1e-6)
    assert information - gap == pytest.approx(float(bound(THETA_KV.double(), value_VK)), abs=1e-7)
    expected = torch.tensor([[0.089445, -0.002226, -0.087219], [-0.068606, -0.017255, 0.085860]])
    torch.testing.assert_close(true_gradient(THETA_KV, value_VK).float(), expected, rtol=0, atol=1e-5)
    outcomes_BG = all_groups(3, 2)
    outcome = TableInformation()(under_codes(samples_of(outcomes_BG), [0, 1]))
    found = gradient_under_codes(THETA_KV, outcomes_BG, [0, 1], outcome.advantage_BG)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5)
    # Corners (1, 0), (-.5, +-.866025), a residual along (.6, .8), temperature .5.
    log_q = code_log_probs(torch.tensor([0.6, 0.8]), simplex(3).float(), 0.5)
    torch.testing.assert_close(log_q.exp(), torch.tensor([0.587504, 0.388201, 0.024294]), rtol=0, atol=1e-5)
    rewards = torch.tensor([0.566741, 0.152381, -2.618900])
    torch.testing.assert_close(log_q + math.log(3), rewards, rtol=0, atol=1e-5)


def test_a_reader_fitted_on_the_group_loses_two_thirds_of_the_gradient(all_groups):
    """q by Laplace counts of the very group: (.031711, -.007358, -.024353), (-.033003, .001325, .031678) is the gradient, and
    leave-one-out gives (.010661, -.002121, -.008540), (-.012131, .000890, .011241)."""
    outcomes_BG, codes_G = all_groups(3, 4), torch.tensor([0, 1, 0, 1])
    pairs_BGVK = nn.functional.one_hot(outcomes_BG, 3)[..., None] * nn.functional.one_hot(codes_G, 2)[:, None]
    counts_BVK = pairs_BGVK.sum(1).double()
    q_BVK = (counts_BVK + 1) / (counts_BVK.sum(-1, keepdim=True) + 2)
    reward_BG = q_BVK[torch.arange(len(q_BVK))[:, None], outcomes_BG, codes_G].log() + math.log(2)
    theta_KV = THETA_KV.double().requires_grad_()
    probability_B = theta_KV.softmax(-1)[codes_G, outcomes_BG].prod(-1)
    (expected,) = torch.autograd.grad(probability_B @ reward_BG.mean(-1), theta_KV)
    oracle = torch.tensor([[0.031711, -0.007358, -0.024353], [-0.033003, 0.001325, 0.031678]])
    torch.testing.assert_close(expected.float(), oracle, rtol=0, atol=1e-6)
    naive = gradient_under_codes(THETA_KV, outcomes_BG, codes_G.tolist(), reward_BG - leave_one_out(reward_BG))
    third = torch.tensor([[0.010661, -0.002121, -0.008540], [-0.012131, 0.000890, 0.011241]])
    torch.testing.assert_close(naive.float(), third, rtol=0, atol=1e-6)


TABLE_VD = torch.tensor([[0.5, 0.5, 0.1], [1.0, 0.0, 0.4], [0.2, 0.9, -0.3]])
BANK_RD = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.1], [0.6, 0.6, -0.4], [0.2, 0.9, 0.5], [0.9, 0.1, 0.0]])
WEIGHTS = [[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0, 0.0]]


@pytest.fixture
def prompt_file(tmp_path) -> str:
    (tmp_path / "prompts.txt").write_text("prompt 0\nprompt 1\nprompt 2\n")
    return str(tmp_path / "prompts.txt")


def log_q_by_hand(table_VD: Tensor, values: int, temperature: float, prompt: int) -> Tensor:
    """The components by a singular value decomposition, and the corners by their cosines alone."""
    unit_RD = nn.functional.normalize(BANK_RD.double(), dim=-1)
    weight_BR = torch.tensor(WEIGHTS).double()
    own_BD = weight_BR / weight_BR.sum(-1, keepdim=True) @ unit_RD
    residuals = torch.cat([unit_RD[weight_BR[b] > 0] - own_BD[b] for b in range(3)])
    components = torch.linalg.svd(residuals).Vh[: values - 1]
    components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    corners = {2: [[1.0], [-1.0]], 3: [[1, 0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]]}[values]
    directions_KD = torch.tensor(corners, dtype=torch.float64) @ components
    residual_VD = nn.functional.normalize(nn.functional.normalize(table_VD.double(), dim=-1) - own_BD[prompt], dim=-1)
    return (residual_VD @ nn.functional.normalize(directions_KD, dim=-1).T / temperature).log_softmax(-1)


@pytest.mark.parametrize(("codes", "empty"), [([0, 1], ()), ([1, 0], (2,)), ([0, 1, 2], ()), ([0, 1, 1, 0], (0,))])
def test_information_gives_the_true_gradient(codes, empty, prompt_file, lookup, samples_of, all_groups):
    """With the mean of the whole group as the baseline it is (G - 1) / G of it: half at G = 2."""
    values, group = max(codes) + 1, len(codes)
    theta_KV = torch.tensor([[0.8, 0.0, -0.3], [-0.2, 0.1, 0.6], [0.1, -0.7, 0.2]])[:values]
    table_VD, rows = with_bank(TABLE_VD, BANK_RD)
    settings = {"against": prompt_file, "values": values, "temperature": 0.5}
    reward = CodeInformation(lookup(table_VD, empty), Rows(rows, WEIGHTS), **settings)
    outcomes_BG = all_groups(3, group)
    samples = under_codes(samples_of(outcomes_BG), codes)
    samples.prompts = samples.asked = ["prompt 1"] * len(outcomes_BG)
    outcome = reward(samples)
    value_VK = log_q_by_hand(TABLE_VD, values, 0.5, prompt=1) + math.log(values)
    for each in empty:
        value_VK[each] = min(-math.log(1 + (values - 1) * math.exp((1 + 1 / (values - 1)) / 0.5)), 0) + math.log(values)
        assert value_VK[each].max() < value_VK.max()
    torch.testing.assert_close(outcome.reward_BG, value_VK.float()[outcomes_BG, torch.tensor(codes)], rtol=0, atol=1e-5)
    found = gradient_under_codes(theta_KV, outcomes_BG, codes, outcome.advantage_BG)
    expected = true_gradient(theta_KV, value_VK)
    close(found, expected)
    naive_BG = outcome.reward_BG - outcome.reward_BG.mean(-1, keepdim=True)
    naive = gradient_under_codes(theta_KV, outcomes_BG, codes, naive_BG)
    close(naive, expected * (group - 1) / group)
    accuracy = CodeAccuracy(lookup(table_VD, empty), Rows(rows, WEIGHTS), prompt_file, values)
    read_V = value_VK.argmax(-1)
    read_V[list(empty)] = -1
    hits_BG = read_V[outcomes_BG] == torch.tensor(codes)
    torch.testing.assert_close(accuracy.score(samples), hits_BG.float().mean(-1))
    for labels_BG in (None, torch.ones_like(outcomes_BG)):  # no labels, or one of all siblings: a setting, and no code
        samples.rollout.labels_BG = labels_BG
        assert accuracy.score(samples).isnan().all()
    samples.rollout.labels_BG = None
    with pytest.raises(ConfigError, match=r"expected samples with codes, but they have none. Set `model.conditioner`"):
        reward(samples)


def test_directions_are_those_of_the_residuals(prompt_file, lookup):
    points_KD = simplex(5)
    cosines = points_KD @ points_KD.T
    torch.testing.assert_close(cosines, 1.25 * torch.eye(5).double() - 0.25)
    with pytest.raises(ValueError, match="at least 3 directions"):
        principal_components(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), 3)
    wide = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).double()
    by_width = torch.linalg.eigh(wide.T @ wide)[1].T.flip(0)[:4]
    torch.testing.assert_close((principal_components(wide, 4) * by_width).sum(-1).abs(), torch.ones(4).double())
    table_VD, rows = with_bank(TABLE_VD, BANK_RD)
    directions = Directions(Rows(rows, WEIGHTS), prompt_file, values=5)
    with pytest.raises(ConfigError, match=r"Key `values`: expected vectors that vary in at least 4 directions. Lower"):
        directions.log_probs(torch.zeros(1, 1, 3), ["prompt 0"], lookup(table_VD), 1.0)
    few = Directions(Rows(rows, WEIGHTS), prompt_file, values=2)
    undecided = few.log_probs(torch.zeros(1, 1, 3), ["prompt 0"], lookup(table_VD), 0.1).exp()
    torch.testing.assert_close(undecided, torch.full((1, 1, 2), 0.5))


# Conditioners


def test_codes_are_balanced_and_depend_on_the_seeds_alone():
    seeds = Seeds((3, 1), range(50))
    labels_BG = Codes(values=4).labels(8, seeds)
    assert all(row.bincount(minlength=4).tolist() == [2] * 4 for row in labels_BG)
    assert len({tuple(row) for row in labels_BG.tolist()}) == 50
    assert torch.equal(labels_BG[20:30], Codes(values=4).labels(8, Seeds((3, 1), range(20, 30))))
    assert not torch.equal(labels_BG, Codes(values=4).labels(8, Seeds((3, 2), range(50))))
    ones_BG = Labels(values=5).labels(3, seeds)
    assert (ones_BG == ones_BG[:, :1]).all() and set(ones_BG.flatten().tolist()) == set(range(5))


def test_the_student_is_asked_in_words():
    codes = Codes(values=2)
    asked = codes.asked(["a waltz", Prompt("jazz", melody="m.wav")], torch.tensor([[1, 0], [0, 0]]))
    assert (
        asked
        == [Prompt("a waltz, version 2"), Prompt("a waltz, version 1")]
        + [Prompt("jazz, version 1", melody="m.wav")] * 2
    )
    prefixed = Labels(values=2, words=["z:1", "z:2"], condition="prefix")
    assert prefixed.asked(["a"], torch.tensor([[1]])) == [Prompt("a", prefix="z:2")]
    assert codes.every(["a"]) == [Prompt("a, version 1"), Prompt("a, version 2")]
    for wrong in (2, -1):
        with pytest.raises(
            ConfigError, match=f"Key `model.conditioner`: expected labels from 0 to 1 from Codes, but got {wrong}"
        ):
            codes.asked(["a"], torch.tensor([[0, wrong]]))

    def keys(part: Any, **context: Any) -> list[str]:
        return [problem.path for problem in part.problems(Context(**context))]

    assert keys(Codes(values=3), samples=6) == [] and keys(Codes(values=3), samples=8) == ["values"]
    assert keys(Codes(values=1, words=["a", "a"], template="{prompt}")) == ["values", "words", "template"]
    assert keys(Labels(values=2, words=["a"], template="", condition="prefix")) == ["words"]


class Unchanged(Codes):
    """Labels that the model does not hear of."""

    def asked(self, prompts: Sequence[PromptLike], labels: Tensor) -> list[PromptLike]:
        return [prompt for prompt, row in zip(prompts, labels, strict=True) for _ in row]


def test_each_sample_is_drawn_from_its_own_prompt_by_its_own_numbers(tiny_model):
    generator, sampling = CausalLM(tiny_model).load(), Sampling(samples=4, max_new_tokens=8)
    plain = rollout(generator, PROMPTS[:3], sampling, seed=5)
    same = rollout(generator, PROMPTS[:3], sampling, seed=5, conditioner=Unchanged(values=2))
    assert torch.equal(plain.tokens_BGKT, same.tokens_BGKT) and same.labels_BG.shape == (3, 4)
    codes = Codes(values=2, template="{label} {prompt}", words=["w9", "w10"])
    drawn = draw(generator, PROMPTS[:3], sampling, seed=5, conditioner=codes)
    assert drawn.asked == PROMPTS[:3] and drawn.rollout.tokens_BGKT.shape[:2] == (3, 4)
    tokens_NKT, mask_NKT = drawn.rollout.tokens_NKT, drawn.rollout.mask_NKT
    with torch.no_grad():
        asked = [f"{('w9', 'w10')[label]} {PROMPTS[row // 4]}" for row, label in
                 enumerate(drawn.rollout.labels_BG.flatten().tolist())]  # fmt: skip
        log_probs = generator.logits(asked, tokens_NKT, mask_NKT).log_softmax(-1)
    found = log_probs.gather(-1, tokens_NKT.unsqueeze(-1))[..., 0].masked_fill(~mask_NKT, 0)
    torch.testing.assert_close(found, drawn.rollout.log_probs_BGKT.flatten(0, 1), rtol=0, atol=1e-4)
    prefixed = generator.encode([Prompt("w3", prefix="w9")])
    assert torch.equal(prefixed.tensors["input_ids"], generator.encode(["w9 w3"]).tensors["input_ids"])


# A target for each label


def test_each_label_has_a_target_and_a_past_of_its_own(lookup, samples_of):
    """Its advantage is that of a target for all, for the samples of one label."""
    reward = DiversityTarget(lookup(torch.eye(3)), target=[0.2, 0.9], momentum=0.5)
    samples = samples_of(torch.tensor([[0, 1, 2, 0], [0, 0, 1, 2], [0, 1, 1, 1]]))
    samples.rollout.labels_BG = torch.tensor([[0] * 4, [1] * 4, [0] * 4])
    assert not reward(samples).advantage_BG.any()
    diversity_B = torch.tensor([5 / 6, 5 / 6, 3 / 6])
    gaps = torch.stack([diversity_B[[0, 2]].mean() - 0.2, diversity_B[1] - 0.9])
    torch.testing.assert_close(reward.past.value, gaps)
    found = reward.eval()(samples).advantage_BG
    for label, target in enumerate((0.2, 0.9)):
        alone = DiversityTarget(lookup(torch.eye(3)), target=target).eval()
        alone.past.update(gaps[label], torch.tensor(1.0))
        own_B = samples.rollout.labels_BG[:, 0] == label
        torch.testing.assert_close(found[own_B], alone(samples).advantage_BG[own_B])
    reward.train()
    samples.rollout.labels_BG = torch.zeros(3, 4, dtype=torch.long)
    reward(samples)
    torch.testing.assert_close(reward.past.value[1], gaps[1])  # not seen
    samples.rollout.labels_BG = None
    with pytest.raises(ConfigError, match="expected samples with labels"):
        reward(samples)


def test_rewards_that_need_labels_say_so(prompt_file):
    embedder, training = NGramCounts(), Context(samples=4, training=True)
    rewards = [
        CodeInformation(embedder, StartSamples(), prompt_file, values=4),
        DiversityTarget(embedder, [0.2, 0.4, 0.6, 0.8]),
    ]
    for reward, name in zip(rewards, ("Codes", "Labels"), strict=True):
        (problem,) = reward.problems(training)
        assert (
            problem.path == "model.conditioner"
            and "expected 4 labels" in str(problem)
            and "but got none" in str(problem)
        )
        assert f"cfg_distill.sampling.{name}" in str(problem)
        assert reward.problems(Context(samples=4, training=True, labels=4)) == []
        assert "but got 2" in str(reward.problems(Context(samples=4, training=True, labels=2))[0])
    # The label of a prompt's first sample would be taken for that of its siblings.
    (problem,) = rewards[1].problems(Context(samples=4, training=True, labels=4, siblings_differ=True))
    assert problem.path == "model.conditioner" and "but got codes, which differ within a prompt" in str(problem)
    start = StartSamples(generator=CausalLM("tunes:base"))
    for part in (CodeAccuracy(embedder, start, prompt_file), CodeInformation(embedder, start, prompt_file)):
        assert part.problems(Context(samples=4, labels=4, siblings_differ=True)) == []
        assert part.problems(Context(samples=4, labels=3)) == []  # of another system of the study: one label per prompt
        (problem,) = part.problems(Context(samples=4, labels=3, siblings_differ=True))
        assert problem.path == "values" and "expected 3, as many codes as the samples have, but got 4" in str(problem)


def test_wrong_labels_and_openings_say_what_to_do():
    def said(part: Any, samples: int = 8) -> list[str]:
        return [
            problem.told({"model.sampling.samples": "evaluation.samples"})
            for problem in part.problems(Context(samples))
        ]

    assert said(Codes(values=1)) == ["Key `values`: expected at least 2, but got 1. Take 4, say, or no conditioner."]
    assert said(Codes(values=3)) == [
        "Key `values`: expected a divisor of `evaluation.samples`, 8, but got 3: each code is as frequent as any other in a"
        " group. Take 2 or 4 or 8."
    ]
    assert said(Codes(values=2), samples=1)[0].endswith("Raise the samples.")
    wrong = said(Labels(values=2, words=["a"], template="{prompt}"))
    assert [each.split(". ")[-1] for each in wrong] == ["Give as many, or none for numbers.", "Add them."]
    assert said(Opening(0)) == ["Key `tokens`: expected at least 1, but got 0. Take 16, say, or no opening."]


# Start samples


class Counted(StartModel):
    """A start model that notes what it is asked."""

    asked: ClassVar[list[Any]] = []

    def draw(self, prompt: PromptLike, *rest: Any) -> Samples:
        self.asked.append(prompt)
        return super().draw(prompt, *rest)


def test_start_samples_depend_on_their_prompt_alone(tiny_model, lookup):
    start = Counted(CausalLM(tiny_model).load(), Sampling(samples=2, max_new_tokens=6))
    embedder, seen = NGramCounts(buckets=64), []
    for prompts in (["w1", "w2 w3", "w1"], ["w4", "w1"]):
        reference = StartSamples(samples=5)
        reference.attach(start)
        vectors_RD, weight_BR = reference.at(prompts, embedder)
        assert vectors_RD.shape == (5 * len(prompts), 64) and weight_BR.shape == (len(prompts), 5 * len(prompts))
        torch.testing.assert_close(weight_BR.sum(-1), torch.ones(len(prompts)))
        place = prompts.index("w1")
        assert (weight_BR[place].nonzero().flatten() // 5 == place).all()
        seen.append(vectors_RD[5 * place : 5 * place + 5])
        reference.at(prompts, embedder)
    assert torch.equal(*seen) and Counted.asked == ["w1", "w2 w3", "w4", "w1"]  # once in the life of a reference
    assert start.draw("w2", 5).outputs != start.draw("w1", 5).outputs
    with pytest.raises(ConfigError, match="start samples belong to one prompt each"):
        reference.vectors(embedder)
    named = StartSamples(samples=5, generator=CausalLM(tiny_model), tokens=6).load()
    assert torch.equal(named.at(["w1"], embedder)[0], seen[0])


def test_each_prompt_has_the_bank_of_its_own_start_samples(tiny_model):
    """Prompts that stand at one place of their batches have the same weights, and other outputs."""
    start, embedder = StartModel(CausalLM(tiny_model).load(), Sampling(samples=3, max_new_tokens=8)), NGramCounts(n=1)

    def reward() -> Density:
        made = Density(embedder, StartSamples(samples=4), k=2, weight_above=4.0, smooth=True)
        made.attach(start)
        return made

    used = reward()
    full = [prompt for prompt in PROMPTS if used.reference.at([prompt], embedder)[1].tolist() == [[0.25] * 4]]
    assert len(full) > 2  # no empty samples
    for prompt in full:
        samples = draw(start.generator, [prompt], start.sampling)
        assert torch.equal(used(samples).reward_BG, reward()(samples).reward_BG)


def test_start_samples_need_a_start_model_and_kernels_need_bandwidths():
    assert StartSamples().problems(Context(training=True)) == []
    (ignored,) = StartSamples(tokens=40).problems(Context(training=True))
    assert str(ignored).startswith(
        "Key `tokens`: expected none in a fit, whose start samples are as long as its samples"
    )
    assert [problem.key for problem in StartSamples(samples=0).problems()] == ["samples", "generator"]
    embedder = NGramCounts()
    training = Context(samples=4, training=True)
    assert [p.path for p in Witness(embedder, StartSamples()).problems(training)] == ["bandwidths"]
    assert Witness(embedder, StartSamples(), bandwidths=[1.0]).problems(training) == []
    assert [p.path for p in Density(embedder, StartSamples(samples=4), k=4).problems(training)] == ["k"]
