"""The causal language model generator against transformers' own generate and forward."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, MambaConfig

from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, Guided, LoRA, Prompt
from cfg_distill.generators.lora import linear_layers
from cfg_distill.generators.probes import takes_positions
from cfg_distill.generators.templates import rendered
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling, rollout

RAGGED = ["w1", "w2 w3 w4 w5 w6", "w7 w8 w9"]


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return CausalLM(tiny_folder(tmp_path_factory.mktemp("model"))).load().eval()


def generate(generator, prompt, **settings):
    """transformers' greedy continuation of one prompt, alone in its batch."""
    ids = generator.encode([prompt]).tensors
    output = generator.model.generate(**ids, do_sample=False, max_new_tokens=12, pad_token_id=0, **settings)
    return output[0, ids["input_ids"].shape[1] :].tolist()


def greedy(generator, prompts, guidance=None):
    drawn = rollout(generator, prompts, Sampling(samples=2, max_new_tokens=12, temperature=0), guidance)
    groups = [
        [tokens[mask].tolist() for tokens, mask in zip(tokens_GT, mask_GT, strict=True)]
        for tokens_GT, mask_GT in zip(drawn.tokens_BGKT[:, :, 0], drawn.mask_BGKT[:, :, 0], strict=True)
    ]
    assert all(first == second for first, second in groups)
    return [first for first, _ in groups]


def test_greedy_rollouts_are_those_of_transformers_on_ragged_prompts(generator):
    assert greedy(generator, RAGGED) == [generate(generator, prompt) for prompt in RAGGED]


@pytest.mark.parametrize("negative", [None, "w2 w10 w11"])
@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_guided_greedy_rollouts_are_those_of_transformers(generator, scale, negative):
    ids = generator.encode([negative]).tensors
    theirs = [
        generate(
            generator,
            prompt,
            guidance_scale=scale,
            negative_prompt_ids=ids["input_ids"],
            negative_prompt_attention_mask=ids["attention_mask"],
        )
        for prompt in RAGGED
    ]
    ours = greedy(generator, RAGGED, Guidance(scale=scale, negative=negative))
    assert ours == theirs
    assert ours != greedy(generator, RAGGED)


def with_ends(folder, ends):
    """A tiny model whose generation config lists several end tokens, as those of chat models do."""
    path = tiny_folder(folder)
    config = GenerationConfig.from_pretrained(path)
    config.eos_token_id = ends
    config.save_pretrained(path)
    return path


def test_every_end_token_of_the_generation_config_ends_a_sample(generator, tmp_path):
    whole = greedy(generator, RAGGED)
    longest = max(whole, key=len)
    other = next(token for token in longest if token != 2)  # the same weights stop at this one now, and at 2 still
    stops = CausalLM(with_ends(tmp_path / "model", [other, 2])).load().eval()
    assert stops.end_tokens == (other, 2)
    ours = greedy(stops, RAGGED)
    assert ours == [generate(stops, prompt) for prompt in RAGGED]
    assert [other] in ours and [other] not in whole
    drawn = rollout(stops, RAGGED, Sampling(samples=40, max_new_tokens=12), Guidance(1.5))
    ends = {
        tokens_T[length - 1].item() for tokens_T, length in zip(drawn.tokens_NKT[:, 0], drawn.length_N, strict=True)
    }
    assert {other, 2} <= ends


@pytest.mark.parametrize("ends", [[2, 5, 6], 5, None])
def test_without_a_generation_config_the_end_tokens_are_those_of_the_config(tmp_path, ends):
    path = Path(tiny_folder(tmp_path / "model"))
    (path / "generation_config.json").unlink()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
    theirs = AutoModelForCausalLM.from_pretrained(path).generation_config.eos_token_id
    listed = theirs if isinstance(theirs, list) else [theirs]
    assert set(CausalLM(str(path)).end_tokens) == {2, *(token for token in listed if token is not None)}


def test_an_export_keeps_every_end_token(tmp_path):
    CausalLM(with_ends(tmp_path / "model", [7, 2])).load().save(tmp_path / "export")
    assert GenerationConfig.from_pretrained(tmp_path / "export").eos_token_id == [7, 2]
    assert CausalLM(str(tmp_path / "export")).end_tokens == (7, 2)
    lora = CausalLM(with_ends(tmp_path / "base", [7, 2]), lora=LoRA(rank=2)).load()
    lora.save(tmp_path / "adapter")
    assert CausalLM(str(tmp_path / "adapter")).end_tokens == (7, 2)


def test_a_model_that_cannot_be_read_is_one_sentence(tmp_path):
    path = tiny_folder(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"`.*cut/model.safetensors` cannot be read as safetensors"):
        CausalLM(path).load()
    path = tiny_folder(tmp_path / "code")
    file = tmp_path / "code" / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "aqlm"}}
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"Model `.*code`: .* could not load it: .*aqlm"):
        CausalLM(path).load()


def test_per_sample_end_tokens(generator):
    drawn = rollout(generator, RAGGED, Sampling(samples=16, max_new_tokens=40), seed=3)
    tokens_NT, mask_NT = drawn.tokens_NKT[:, 0], drawn.mask_NKT[:, 0]
    lengths = mask_NT.sum(-1)
    assert lengths.min() < lengths.max()
    for tokens_T, mask_T, length in zip(tokens_NT, mask_NT, lengths, strict=True):
        assert mask_T[:length].all() and not mask_T[length:].any()
        assert (tokens_T[: length - 1] != 2).all()
        assert length == len(tokens_T) or tokens_T[length - 1] == 2
        assert (tokens_T[length:] == generator.pad_token).all()


def test_log_probs_of_a_rollout_are_those_of_scoring_it(generator):
    sampling = Sampling(samples=4, max_new_tokens=20, temperature=0.8, top_p=0.9)
    for stream, guidance in ((generator, None), (Guided(generator, Guidance(2.0)), Guidance(2.0))):
        drawn = rollout(generator, RAGGED, sampling, guidance, seed=1)
        with torch.no_grad():
            logits_NKTV = stream.predictions(RAGGED, drawn.tokens_NKT, drawn.mask_NKT).whole()
        scored = sampling.log_probs(logits_NKTV).gather(-1, drawn.tokens_NKT.unsqueeze(-1)).squeeze(-1)
        mask = drawn.mask_NKT
        torch.testing.assert_close(scored[mask], drawn.log_probs_BGKT.flatten(0, 1)[mask], rtol=1e-3, atol=1e-4)


def test_rollouts_are_seeded_and_leave_global_state_alone(generator):
    sampling = Sampling(samples=3, max_new_tokens=10)
    state = torch.get_rng_state()
    first, again, other = (rollout(generator, RAGGED, sampling, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.tokens_BGKT, again.tokens_BGKT)
    assert not torch.equal(first.tokens_BGKT, other.tokens_BGKT)


def test_the_prompt_is_computed_once_a_group(generator):
    rows = []
    hook = generator.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rollout(generator, RAGGED, Sampling(samples=5, max_new_tokens=3), Guidance(2.0))
    hook.remove()
    assert rows[0][0] == 2 * len(RAGGED)
    assert rows[1:] == [(2 * len(RAGGED) * 5, 1)] * (len(rows) - 1)


def test_prompt_beyond_the_positions_is_refused(generator):
    with pytest.raises(ConfigError, match="at most 59, but got 60"):
        rollout(generator, RAGGED, Sampling(max_new_tokens=60))


def test_frozen_copy_shares_nothing_and_save_asks_for_no_guidance(generator, tmp_path):
    teacher = generator.frozen_copy()
    assert not any(p.requires_grad for p in teacher.parameters())
    mine = {p.data_ptr() for p in generator.parameters()}
    assert not mine & {p.data_ptr() for p in teacher.parameters()}
    generator.save(tmp_path)
    again = CausalLM(str(tmp_path)).load()
    assert again.model.generation_config.top_k == 0
    assert again.model.generation_config.guidance_scale in (None, 1)
    ids = generator.encode(RAGGED).tensors
    torch.testing.assert_close(again.model(**ids).logits, generator.model(**ids).logits)


def test_problems_are_found_without_weights(tmp_path):
    (missing,) = CausalLM(str(tmp_path / "none")).problems()
    assert "does not exist" in str(missing)
    folder = tiny_folder(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (weightless,) = CausalLM(folder).problems()
    assert "model.safetensors" in str(weightless)
    (template,) = CausalLM(tiny_folder(tmp_path / "model"), chat_template=True).problems()
    assert template.path == "chat_template"
    (shipped,) = CausalLM("tunes:bass").problems()
    assert "tunes:base" in str(shipped)


def test_weights_of_another_shape_are_refused(generator, tmp_path):
    folder = tiny_folder(tmp_path)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(18)
    model.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"embed_tokens.weight \[18, 16\] vs \[16, 16\]"):
        generator.load_weights(folder)


def test_a_model_that_keeps_a_state_is_refused_before_it_is_loaded(tmp_path):
    generator = CausalLM(tiny_folder(tmp_path))
    assert not generator.problems()
    generator.config = MambaConfig(num_hidden_layers=2)
    (problem,) = generator.problems()
    assert problem.path == "path" and "(mamba) keeps a state in some layers" in problem.text


@pytest.mark.parametrize("kind", ["falcon_h1", "rwkv", "openai-gpt"])
def test_a_model_whose_state_or_past_is_not_in_the_cache_is_refused(tmp_path, kind):
    """The first has layers of both kinds; the others take no keys and values, and would see the newest token alone."""
    generator = CausalLM(tiny_folder(tmp_path))
    generator.config = CONFIG_MAPPING[kind]()
    (problem,) = generator.problems()
    assert problem.path == "path" and "keeps a state in some layers" in problem.text


@pytest.mark.parametrize(
    ("kind", "decodes", "refused"),
    [("bert", False, True), ("bert", True, False), ("bart", False, False), ("gpt_neox", False, False)],
)
def test_an_encoder_is_refused_and_a_decoder_that_is_loaded_alone_is_not(tmp_path, kind, decodes, refused):
    generator = CausalLM(tiny_folder(tmp_path))
    generator.config = CONFIG_MAPPING[kind](vocab_size=16, is_decoder=decodes)
    said = [problem.text for problem in generator.problems()]
    assert len(said) == refused and all(
        "(bert) is an encoder: `is_decoder` of its config.json is false" in e for e in said
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_half_precision_takes_positions(tmp_path, dtype):
    """Its rounding is what pads on the right change, whatever the dtype of its logits."""
    generator = CausalLM(tiny_folder(tmp_path, scale=1.0), dtype=dtype).load()
    head = generator.model.lm_head.forward
    generator.model.lm_head.forward = lambda states: head(states).float()
    assert takes_positions(generator.model, generator.pad_token) and generator._linear_head


@pytest.mark.parametrize(
    ("kind", "refused"),
    [("bart", True), ("roberta", True), ("bert", False), ("gpt2", False), ("bloom", False), ("gemma2", False)],
)
def test_a_model_that_counts_positions_itself_is_refused(tmp_path, kind, refused):
    """Bart counts pads on the left, RoBERTa from its pad token on: a prompt would be read otherwise beside a longer one."""
    sizes = {
        "vocab_size": 16, "hidden_size": 16, "d_model": 16, "n_embd": 16, "num_hidden_layers": 2, "n_layer": 2, "n_head": 2,
        "decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64, "sliding_window": 4,
        "is_decoder": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes))
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    network.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    if refused:
        with pytest.raises(
            ConfigError, match=rf"takes the positions of its tokens, but `.*` \({kind}\) counts them itself"
        ):
            CausalLM(str(tmp_path)).load()
        return
    generator = CausalLM(str(tmp_path)).load()
    # What the check promises: a row reads the same beside a longer one.
    tokens_NKT = torch.full((2, 1, 3), 5)
    together = generator.logits(["w1", "w2 w3 w4 w5 w6"], tokens_NKT, tokens_NKT > 0)
    alone = generator.logits(["w1"], tokens_NKT[:1], tokens_NKT[:1] > 0)
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)


def test_the_language_model_of_a_model_that_sees(tmp_path):
    """Its numbers stand in a config within the config, and adapters on the eye would learn nothing."""
    generator = CausalLM(tiny_folder(tmp_path))
    generator.config = CONFIG_MAPPING["gemma3"](text_config={"max_position_embeddings": 24, "vocab_size": 16})
    assert generator.max_positions == 24 and generator.layout["vocabulary"][1] == 16
    parts = {name: nn.Linear(2, 2) for name in ("language_model", "vision_tower", "multi_modal_projector")}
    assert list(linear_layers(nn.ModuleDict(parts))) == ["language_model"]


def test_a_pad_token_beyond_the_embedding_is_not_used(tmp_path):
    folder = tiny_folder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    tokenizer.save_pretrained(folder)
    generator = CausalLM(folder).load()
    assert generator.pad_token == generator.tokenizer.eos_token_id < 16 <= tokenizer.pad_token_id
    rollout(generator, ["w1", "w1 w2 w3"], Sampling(samples=2, max_new_tokens=3))


def test_a_template_that_writes_the_date_gets_the_same_one_every_day(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(tmp_path))
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    assert rendered(tokenizer, [{"role": "user", "content": "w1"}], "") == "26 Jul 2024 w1"


def test_a_tokenizer_without_begin_and_end_asks_for_a_text_in_place_of_a_dropped_prompt(tmp_path):
    generator = CausalLM(tiny_folder(tmp_path))
    generator.tokenizer.bos_token = generator.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"The dropped prompt: .* Set `model\.generator\.init_args\.unconditional`"):
        generator.encode([None])


def test_a_system_message_that_the_template_drops_is_refused(tmp_path):
    generator = CausalLM(tiny_folder(tmp_path))
    asked = [Prompt("w1", system="w2")]
    generator.tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
    assert not generator.problems_of_prompts(asked)
    deaf = CausalLM(tiny_folder(tmp_path))
    deaf.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    (problem,) = deaf.problems_of_prompts(asked)
    assert "leaves it out" in str(problem) and not deaf.problems_of_prompts(["w1"])


def test_a_tokenizer_that_ends_each_prompt_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_folder(tmp_path / "model")
    CausalLM(folder).load()
    assert not caplog.text
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(folder)
    assert CausalLM(folder).load().encode(["w1"]).tensors["input_ids"].tolist() == [[1, 5, 2]]
    assert "puts its end token behind every prompt" in caplog.text
