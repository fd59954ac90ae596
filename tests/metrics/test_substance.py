"""Substance against transformers, one sample and one token at a time, and what each of its factors takes away."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from tiny import tiny_folder
from transformers import AutoModelForCausalLM

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.ladder import samples_of
from cfg_distill.generators import CausalLM
from cfg_distill.metrics import Substance, clipped_information, substance
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return CausalLM(tiny_folder(tmp_path_factory.mktemp("base"), scale=8.0)).load()


@cache
def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path).eval()


def one_by_one(path, prompt_ids, tokens):
    """log p(token | all before), by one forward pass of transformers a token."""
    model = loaded(path)
    ids, found = list(prompt_ids), []
    for token in tokens:
        with torch.no_grad():
            found.append(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item())
        ids.append(token)
    return found


def by_hand(base, prompt, text, tokens, clip):
    given, alone = (one_by_one(base.path, start, tokens) for start in (base.tokenizer(prompt)["input_ids"], [1]))
    information = sum(max(-clip, min(clip, a - b)) for a, b in zip(given, alone, strict=True)) / len(tokens)
    fluency = max(0.0, min(1.0, (sum(given) / len(given) - substance.BROKEN) / (substance.WHOLE - substance.BROKEN)))
    said = text.split()
    new = min(1.0, len({word for word in said if word not in prompt.split()}) / substance.ENOUGH)
    grams = [" ".join(said[n : n + 4]) for n in range(max(0, len(said) - 3))]
    again = sum(gram in grams[:place] for place, gram in enumerate(grams)) / len(grams) if grams else 0.0
    return max(0.0, information) * fluency * new * (1 - again)


@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_it_is_its_formula_by_transformers_and_plain_python(base, clip, monkeypatch):
    monkeypatch.setattr(substance, "BROKEN", -4.0)  # tiny models are not fluent: every factor is to matter here
    monkeypatch.setattr(substance, "WHOLE", -0.5)
    monkeypatch.setattr(substance, "ENOUGH", 6)
    samples = draw(base, PROMPTS, Sampling(samples=3, max_new_tokens=16), seed=3)
    expected = []
    for row in range(9):
        tokens = samples.rollout.tokens_NKT[row, 0][samples.rollout.mask_NKT[row, 0]].tolist()
        expected.append(by_hand(base, PROMPTS[row // 3], samples.outputs[row], tokens, clip))
    metric = Substance(CausalLM(base.path), batch_size=2, clip=clip).load()
    metric.update(samples)
    expected_B = torch.tensor(expected).unflatten(0, (3, 3)).mean(1)
    assert expected_B.max() > 0.005
    torch.testing.assert_close(metric.per_prompt(), expected_B, rtol=0, atol=1e-4)


def test_copies_loops_and_empty_text_have_no_substance(base):
    metric = Substance(CausalLM(base.path)).load()
    groups = [[prompt, ""] for prompt in PROMPTS]
    metric.update(samples_of(PROMPTS, groups, base, 16))
    assert metric.per_prompt().tolist() == [0.0, 0.0, 0.0]
    assert substance.said_before("w1 w2 " * 20) > 0.9 and substance.said_before("w1 w2 w3") == 0.0


def test_a_clip_takes_the_pay_from_one_word_and_masked_cells_do_not_count():
    given, alone = torch.tensor([[-0.1, -2.0, 9.0]]), torch.tensor([[-9.0, -2.0, math.nan]])
    mask = torch.tensor([[True, True, False]])
    assert clipped_information(given, alone, mask).item() == 0.5
    assert clipped_information(given, alone, mask, clip=100.0).item() == pytest.approx(4.45)
    assert clipped_information(given, alone, ~mask & False).item() == 0.0


def test_sound_and_a_wrong_clip_are_refused(base):
    (problem,) = Substance(CausalLM(base.path), clip=0.0).problems()
    assert problem.key == "clip"
    from cfg_distill.audio import Waveform

    clip = Waveform(torch.zeros(1, 100), 100)
    with pytest.raises(ConfigError, match="expected text"):
        Substance(CausalLM(base.path)).load().update(samples_of(["w1"], [[clip, clip]]))
