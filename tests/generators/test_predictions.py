"""Fast scoring against its plain twins: prompts read once a group, guidance on states, heads that are not linear."""

import logging

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from cfg_distill.generators import CausalLM, Guided, HiddenStates, Logits
from cfg_distill.guidance import Guidance, guided_logits
from cfg_distill.sampling import Sampling, rollout

PROMPTS = ["w1 w2 w3 w4", "w5", "w6 w7"]
SIZES = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def drawn_by(generator):
    found = rollout(generator, PROMPTS, Sampling(samples=4, max_new_tokens=12), seed=3)
    return found.tokens_NKT, found.mask_NKT


@pytest.fixture
def generator(tiny_model):
    return CausalLM(tiny_model).load().eval()


def test_prompts_read_once_a_group_score_the_same(generator):
    tokens_NKT, mask_NKT = drawn_by(generator)
    found = []
    for once in (True, False):
        generator.prompt_once = once
        logits_NKTV = generator.logits(PROMPTS, tokens_NKT, mask_NKT)
        generator.zero_grad()
        logits_NKTV[mask_NKT].log_softmax(-1).square().sum().backward()
        found.append((logits_NKTV[mask_NKT], [parameter.grad.clone() for parameter in generator.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


def test_prompts_are_read_once_a_group(generator):
    tokens_NKT, mask_NKT = drawn_by(generator)
    read = []
    hook = generator.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    generator.predictions(PROMPTS, tokens_NKT, mask_NKT)
    Guided(generator, Guidance(2.0)).predictions(PROMPTS, tokens_NKT, mask_NKT)
    hook.remove()
    rows, length = tokens_NKT.shape[0], tokens_NKT.shape[-1] - 1
    # The last two: one negative prompt, the begin token, serves all rows.
    assert read == [(3, 4), (rows, length)] * 2 + [(1, 1), (rows, length)]


def test_guidance_on_states_is_guidance_on_logits(generator):
    tokens_NKT, mask_NKT = drawn_by(generator)
    guidance = Guidance(3.0, "w9", schedule="linear", final_scale=1.5, positions=8)
    found = Guided(generator, guidance).predictions(PROMPTS, tokens_NKT, mask_NKT)
    assert isinstance(found, HiddenStates)
    scale_T = guidance.scale_at(torch.arange(tokens_NKT.shape[-1]))
    negatives = [guidance.negative] * len(PROMPTS)
    expected = guided_logits(
        generator.logits(PROMPTS, tokens_NKT, mask_NKT),
        generator.logits(negatives, tokens_NKT, mask_NKT),
        scale_T[:, None],
    )
    torch.testing.assert_close(found.whole()[mask_NKT], expected[mask_NKT], atol=1e-4, rtol=1e-4)
    guidance.mix_states = False
    plain = Guided(generator, guidance).predictions(PROMPTS, tokens_NKT, mask_NKT)
    assert isinstance(plain, Logits)
    torch.testing.assert_close(plain.whole()[mask_NKT], expected[mask_NKT], atol=1e-4, rtol=1e-4)


def capped(folder):
    torch.manual_seed(0)
    config = Gemma2Config(
        **SIZES, intermediate_size=32, head_dim=8, num_key_value_heads=2, max_position_embeddings=64,
        final_logit_softcapping=2.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    model.lm_head.weight.data.mul_(50)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return CausalLM(str(folder))


def test_a_cap_that_no_small_logit_shows_is_found_in_the_config(tmp_path):
    generator = capped(tmp_path / "gemma").load()
    generator.model.lm_head.weight.data.mul_(1e-4)
    assert not generator._linear_head


def test_dropout_of_a_model_in_training_hides_no_linear_head(tmp_path):
    generator = CausalLM(tiny_folder(tmp_path / "model", attention_dropout=0.5)).load().train()
    assert generator._linear_head and generator.model.training


def test_a_soft_cap_is_found_and_said(tmp_path, caplog):
    generator = capped(tmp_path / "gemma").load().eval()
    with caplog.at_level(logging.WARNING):
        tokens_NKT, mask_NKT = drawn_by(generator)
    assert "no linear map" in caplog.text
    found = generator.predictions(PROMPTS, tokens_NKT, mask_NKT)
    assert isinstance(found, Logits)
    assert found.whole().abs().max() <= 2
    guided = Guided(generator, Guidance(2.0)).predictions(PROMPTS, tokens_NKT, mask_NKT).whole()
    expected = guided_logits(found.whole(), generator.logits([None] * 3, tokens_NKT, mask_NKT), 2.0)
    torch.testing.assert_close(guided[mask_NKT], expected[mask_NKT], atol=1e-5, rtol=1e-4)


def test_a_model_that_forbids_a_token_is_guided_and_never_draws_it(generator):
    plain = rollout(generator, PROMPTS, Sampling(samples=4, max_new_tokens=12), Guidance(3.0), seed=3)
    (forbidden,) = plain.tokens_NKT[plain.mask_NKT].mode().values.unique().tolist()
    bias_V = torch.zeros(16).index_fill(0, torch.tensor([forbidden]), -torch.inf)
    generator.model.lm_head.bias = torch.nn.Parameter(bias_V)
    twins = []
    for mix_states in (True, False):
        guidance = Guidance(3.0, mix_states=mix_states)
        found = rollout(generator, PROMPTS, Sampling(samples=4, max_new_tokens=12), guidance, seed=3)
        predicted = Guided(generator, guidance).predictions(PROMPTS, found.tokens_NKT, found.mask_NKT)
        log_probs_NKTV = predicted.whole().log_softmax(-1)
        assert log_probs_NKTV[found.mask_NKT][:, forbidden].eq(-torch.inf).all()
        assert not log_probs_NKTV[found.mask_NKT].isnan().any()
        assert forbidden not in found.tokens_NKT[found.mask_NKT].tolist()
        twins.append(found)
    assert torch.equal(twins[0].tokens_BGKT, twins[1].tokens_BGKT)


def test_a_model_of_another_family_has_a_linear_head(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    generator = CausalLM(str(tmp_path / "gpt2")).load().eval()
    tokens_NKT, mask_NKT = drawn_by(generator)
    assert isinstance(generator.predictions(PROMPTS, tokens_NKT, mask_NKT), HiddenStates)
