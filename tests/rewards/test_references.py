"""Vectors, weights and kernels of references: what oracles with equal weights and one kernel cannot see."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_references import Rows, with_bank

from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, Guidance, Prompt
from cfg_distill.metrics import CodeAccuracy, PromptRetrieval
from cfg_distill.references import StartSamples, bank_of, gaussian_mixture, kernels, mean_distance
from cfg_distill.references.contrasts import Contrasts
from cfg_distill.rewards import CodeInformation, DiversityTarget, PromptContrast
from cfg_distill.sampling import Sampling, StartModel

BANK_RD = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [4.0, 4.0]])
PROTOTYPES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])


@pytest.fixture
def prompt_file(tmp_path) -> str:
    (tmp_path / "prompts.txt").write_text("prompt 0\nprompt 1\nprompt 2\n")
    return str(tmp_path / "prompts.txt")


def test_a_typical_density_is_that_of_the_weights():
    """1 / distance is 1, four times, and 1 / 4.621320: .9 + .1 * .216388 is the typical one."""
    bank = bank_of(BANK_RD, torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1]), k=2)
    torch.testing.assert_close(bank.density_M, torch.tensor([1.085023] * 4 + [0.234786]), rtol=0, atol=1e-5)


def test_a_bank_in_blocks_is_the_whole_bank(monkeypatch):
    whole = bank_of(BANK_RD, torch.full((5,), 0.2), k=2)
    monkeypatch.setattr(kernels, "CELLS", 10)  # two rows at once
    assert torch.equal(bank_of(BANK_RD, torch.full((5,), 0.2), k=2).density_M, whole.density_M)


def test_several_bandwidths_are_a_mean_and_come_from_the_median():
    """Points 0, 2 and 6: the median distance is 4, so widths are 2, 4 and 8. The kernel of 0 and 2 is
    (exp(-1/2) + exp(-1/8) + exp(-1/32)) / 3."""
    points = torch.tensor([[0.0], [2.0], [6.0]])
    expected = (math.exp(-1 / 2) + math.exp(-1 / 8) + math.exp(-1 / 32)) / 3
    for kernel in (gaussian_mixture([2.0, 4.0, 8.0]), kernels.KernelChoice("gaussian", ()).of(points)):
        assert kernel(points[:1], points[1:2]).item() == pytest.approx(expected, abs=1e-6)


def test_the_diversity_of_a_reference_is_weighed():
    """Distances 1, 2 and 1 with weights .125, .125 and .0625: .4375 / .3125."""
    found = mean_distance(PROTOTYPES, torch.tensor([[0.5, 0.25, 0.25]]))
    assert found.item() == pytest.approx(1.4, abs=1e-6)


def test_a_degenerate_sample_lies_at_the_least_fitting_prompt(prompt_file, lookup, samples_of):
    """At the second prototype the logits of the first prompt are (0, 2, 0), at the third (-2, 0, 2): the third fits less."""
    table_VD, rows = with_bank(torch.tensor([[0.6, 0.8], [9.0, 9.0]]), PROTOTYPES)
    reward = PromptContrast(
        lookup(table_VD, empty=(1,)), Rows(rows, torch.eye(3).tolist()), prompt_file, temperature=0.5
    )
    found = reward(samples_of(torch.tensor([[0, 1]]))).reward_BG[0, 1].item()
    assert found == pytest.approx(-2 - math.log(math.exp(-2) + 1 + math.exp(2)), abs=1e-5)


def test_a_prompt_of_the_list_is_not_contrasted_with_itself(tmp_path, lookup, samples_of):
    """With `apart: 0` too, where rounding puts a prototype a little apart from itself."""
    table_RD = torch.randn(40, 33, generator=torch.Generator().manual_seed(0))
    (tmp_path / "many.txt").write_text("".join(f"prompt {n}\n" for n in range(40)))
    embedder, reference = lookup(table_RD), Rows(range(40), torch.eye(40).tolist())
    samples = samples_of(torch.arange(40)[:, None].expand(-1, 2))  # each at its own prototype
    _, _, counts_BC = Contrasts(reference, str(tmp_path / "many.txt"), apart=0.0).at(samples.asked, embedder)
    assert torch.equal(counts_BC, ~torch.eye(40).bool())
    assert PromptRetrieval(embedder, reference, str(tmp_path / "many.txt"), apart=0.0).score(samples).eq(1).all()


def test_parts_that_contrast_name_the_reference_too(prompt_file, lookup, samples_of):
    table_VD, rows = with_bank(torch.eye(3)[:, :2], PROTOTYPES)
    lonely = Rows(rows, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    samples = samples_of(torch.tensor([[0, 1]]))
    samples.rollout.labels_BG = torch.tensor([[0, 1]])
    for part in (
        PromptContrast(lookup(table_VD), lonely, prompt_file),
        CodeInformation(lookup(table_VD), lonely, prompt_file, values=2),
        PromptRetrieval(lookup(table_VD), lonely, prompt_file),
        CodeAccuracy(lookup(table_VD), lonely, prompt_file, values=2),
    ):
        with pytest.raises(ConfigError, match=r"Key `reference`: expected reference outputs .* belongs to 'prompt 2'"):
            part.score(samples)


def test_start_samples_are_guided_where_asked_and_empty_ones_do_not_count(tiny_model):
    start = StartModel(CausalLM(tiny_model).load(), Sampling(max_new_tokens=6))
    embedder, guidance = NGramCounts(buckets=64), Guidance(4.0)
    plain, guided = (StartSamples(samples=5, guidance=each) for each in (None, guidance))
    vectors = []
    for reference in (plain, guided):
        reference.attach(start)
        vectors.append(reference.at(["w1"], embedder)[0])
    expected = embedder.embed(start.draw("w1", 5, guidance).outputs)
    assert torch.equal(vectors[1], expected) and not torch.equal(*vectors)
    ends = [*start.generator.end_tokens]
    with torch.no_grad():
        start.generator.model.lm_head.weight[ends] *= 3
    some = StartSamples(samples=16)
    some.attach(start)
    empty_R = embedder.degenerate(start.draw("w1", 16).outputs)
    assert empty_R.any() and not empty_R.all()
    _, weight_BR = some.at(["w1"], embedder)
    torch.testing.assert_close(weight_BR[0], (~empty_R).float() / (~empty_R).sum())


def test_the_conditions_of_a_prompt_are_in_its_seed(tiny_model):
    """Words that the tokenizer does not know: the model reads both prompts alike, so only numbers can differ."""
    start = StartModel(CausalLM(tiny_model).load(), Sampling(max_new_tokens=8))
    prompts = [Prompt("w1", prefix=word) for word in ("strange", "stranger")]
    one, other = (start.draw(prompt, 4).rollout.tokens_BGKT for prompt in prompts)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_a_label_that_no_batch_has_seen_keeps_its_mean(lookup, samples_of):
    reward = DiversityTarget(lookup(torch.eye(3)), target=[0.2, 0.9], momentum=0.5)
    samples = samples_of(torch.tensor([[0, 1, 2]]))
    samples.rollout.labels_BG = torch.zeros(1, 3, dtype=torch.long)
    reward(samples)
    assert reward.past.value.tolist() == [pytest.approx(0.8), 0.0]
