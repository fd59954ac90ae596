"""Guidance of text: dropped prompts, negative prompts and negative system messages, against transformers' own guidance."""

from __future__ import annotations

import json
from dataclasses import replace

import lightning as L
import pytest
import torch
from tiny import tiny_folder
from tiny_dia import tiny_dia
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from cfg_distill.cli import main
from cfg_distill.data import PromptData
from cfg_distill.distillation import CFGDistillation
from cfg_distill.embedders import TransformerEmbedder
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import Headline
from cfg_distill.generators import CausalLM, Dia, Guided, Prompt
from cfg_distill.guidance import Guidance
from cfg_distill.losses import ReverseKL
from cfg_distill.sampling import Sampling, rollout
from cfg_distill.sampling.samples import draw
from cfg_distill.study.checking import CheckEvaluation, systems_by_folder
from cfg_distill.study.config import Evaluation, Study, SystemConfig
from cfg_distill.study.jobs import guidance_of
from cfg_distill.study.steps import plan

# As that of SmolLM2: a system message of its own when the user gives none.
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}w9 w9 {% endif %}"
    "{% for m in messages %}{{ ('w10 ' if m['role'] == 'system' else 'w11 ') + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
PROMPTS = ["w1 w2 w3 w4", "w5"]


def chat_folder(folder, template):
    path = tiny_folder(folder, scale=8.0)
    (folder / "chat_template.jinja").write_text(template)
    return path


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return CausalLM(chat_folder(tmp_path_factory.mktemp("chat"), TEMPLATE)).load().eval()


def texts(generator, prompts):
    rows = generator.encode(prompts).tensors
    return [
        generator.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True)
    ]


def test_what_each_branch_reads(chat):
    assert texts(chat, ["w1", None]) == ["w9 w9 w11 w1 <s>", "w9 w9 w11 <s>"]
    assert texts(chat, [Prompt("w1", system="w7 w8"), Prompt("w1", system="")]) == [
        "w10 w7 w8 w11 w1 <s>",
        "w10 w11 w1 <s>",
    ]
    with_system = CausalLM(chat.path, system="w3").load()
    assert texts(with_system, ["w1", None]) == ["w10 w3 w11 w1 <s>", "w10 w3 w11 <s>"]
    assert texts(with_system, [Prompt("w1", system="w7")]) == ["w10 w7 w11 w1 <s>"]


@pytest.mark.parametrize(
    ("guidance", "negatives"),
    [
        (Guidance(2.0), ["w9 w9 w11 <s>"] * 2),
        (Guidance(2.0, "w6"), ["w9 w9 w11 w6 <s>"] * 2),
        (Guidance(2.0, negative_system="w7 w8"), ["w10 w7 w8 w11 w1 w2 w3 w4 <s>", "w10 w7 w8 w11 w5 <s>"]),
        (Guidance(2.0, "w6", negative_system="w7"), ["w10 w7 w11 w6 <s>"] * 2),
        (Guidance(2.0, "", negative_system="w7"), ["w10 w7 w11 <s>"] * 2),
    ],
)
def test_guided_greedy_samples_are_those_of_transformers(chat, guidance, negatives):
    drawn = rollout(chat, PROMPTS, Sampling(samples=2, max_new_tokens=10, temperature=0), guidance)
    plain = rollout(chat, PROMPTS, Sampling(samples=2, max_new_tokens=10, temperature=0))
    for row, (prompt, negative) in enumerate(zip(PROMPTS, negatives, strict=True)):
        ids = chat.encode([prompt]).tensors
        negative_ids = chat.tokenizer(negative, add_special_tokens=False, return_tensors="pt")
        output = chat.model.generate(
            **ids,
            do_sample=False,
            max_new_tokens=10,
            pad_token_id=0,
            guidance_scale=2.0,
            negative_prompt_ids=negative_ids["input_ids"],
            negative_prompt_attention_mask=negative_ids["attention_mask"],
        )
        expected = output[0, ids["input_ids"].shape[1] :].tolist()
        for sample in (0, 1):
            mask_T = drawn.mask_BGKT[row, sample, 0]
            assert drawn.tokens_BGKT[row, sample, 0][mask_T].tolist() == expected
    assert not torch.equal(drawn.tokens_BGKT, plain.tokens_BGKT)


@pytest.mark.parametrize("prompt_once", [True, False])
def test_the_branch_of_the_last_token_is_what_transformers_does_without_a_negative_prompt(tiny_model, prompt_once):
    plain = CausalLM(tiny_model, prompt_once=prompt_once).load()
    guidance, sampling = Guidance(2.0, drop="last_token"), Sampling(samples=2, max_new_tokens=10, temperature=0)
    drawn = rollout(plain, PROMPTS, sampling, guidance)
    logits_NKTV = Guided(plain, guidance).predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole()
    for row, prompt in enumerate(PROMPTS):
        ids = plain.encode([prompt]).tensors
        output = plain.model.generate(
            **ids, do_sample=False, max_new_tokens=10, pad_token_id=0, guidance_scale=2.0
        )[0].tolist()  # fmt: skip
        length = ids["input_ids"].shape[1]
        mask_T = drawn.mask_BGKT[row, 0, 0]
        assert drawn.tokens_BGKT[row, 0, 0][mask_T].tolist() == output[length:]
        # The logits, by the processor itself on the network itself.
        theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, plain.model, ids["input_ids"][:, -1:])
        for position in range(int(mask_T.sum())):
            read = torch.tensor([output[: length + position]])
            guided_V = theirs(read, plain.model(read).logits[:, -1])[0]
            ours_V = logits_NKTV[2 * row, 0, position]
            torch.testing.assert_close(ours_V.log_softmax(-1), guided_V.log_softmax(-1), rtol=0, atol=1e-4)
    others = rollout(plain, PROMPTS, sampling, Guidance(2.0))
    assert not torch.equal(drawn.beginning(10), others.beginning(10)), "the dropped prompt is another branch"


@pytest.mark.parametrize("drop", ["prompt", "last_token"])
def test_scoring_at_once_is_decoding_step_by_step_under_a_negative_branch_per_prompt(chat, tiny_model, drop):
    generator = chat if drop == "prompt" else CausalLM(tiny_model).load()
    guidance = Guidance(3.0, negative_system="w7 w8" if drop == "prompt" else None, drop=drop)
    drawn = rollout(generator, PROMPTS, Sampling(samples=3, max_new_tokens=8), guidance, seed=4)
    logits_NKTV = Guided(generator, guidance).predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole()
    picked_NKT = logits_NKTV.float().log_softmax(-1).gather(-1, drawn.tokens_NKT[..., None])[..., 0]
    torch.testing.assert_close(
        picked_NKT[drawn.mask_NKT], drawn.log_probs_BGKT.flatten(0, 1)[drawn.mask_NKT], rtol=0, atol=1e-4
    )


# What a user can get wrong


def problems(generator, guidance=Guidance(2.0)):
    module = CFGDistillation(generator, {"kl": ReverseKL()}, guidance, Sampling(max_new_tokens=4))
    return [str(problem.under("model")) for problem in module.problems()]


@pytest.mark.parametrize("template", [None, REFUSING, "{{ messages[-1]['content'] }}"])
def test_a_system_message_needs_a_template_that_takes_it(tmp_path, template):
    path = tiny_folder(tmp_path) if template is None else chat_folder(tmp_path, template)
    (own,) = problems(CausalLM(path, system="w1"))
    assert own.startswith("Key `model.generator.init_args.system`: ")
    assert "takes system messages" in own
    (negative,) = problems(CausalLM(path), Guidance(2.0, negative_system="w1"))
    assert negative.startswith("Key `model.guidance.negative_system`: ")
    assert not problems(CausalLM(path))


def test_only_a_language_model_without_a_template_drops_all_but_the_last_token(chat, tiny_model, tmp_path):
    guidance, said = Guidance(2.0, drop="last_token"), "expected `prompt` as `drop` of the guidance"
    assert not problems(CausalLM(tiny_model), guidance)
    assert not problems(CausalLM(chat.path, chat_template=False), guidance)
    for generator in (CausalLM(chat.path), Dia(tiny_dia(tmp_path)), CausalLM("tunes:base")):
        (problem,) = problems(generator, guidance)
        assert problem.startswith(f"Key `model.guidance.drop`: {said}") and f"`{generator.path}` is none" in problem
    with pytest.raises(ConfigError, match=said):
        rollout(chat, PROMPTS, Sampling(max_new_tokens=2), guidance)
    with pytest.raises(ConfigError, match=said):
        Guided(chat, guidance)
    for given in ({"negative": "w1"}, {"negative_system": "w1"}):
        assert [each.path for each in replace(guidance, **given).problems()] == ["drop"]
    (unread,) = CausalLM(tiny_model).problems_of_prompts([Prompt("w1", tail="1")])
    assert "carries the condition `tail`" in str(unread)


def test_a_system_message_without_a_template_is_refused_where_it_is_met(tiny_model):
    generator = CausalLM(tiny_model).load()
    with pytest.raises(ConfigError, match="without a chat template, but got 'w2'"):
        generator.encode([Prompt("w1", system="w2")])


def test_a_chat_template_that_is_asked_for_and_missing(tiny_model):
    (problem,) = problems(CausalLM(tiny_model, chat_template=True))
    assert "Key `model.generator.init_args.chat_template`" in problem


def without_tokens(folder, *names):
    """The tokenizer in a folder without some of its special tokens."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in settings.items() if key not in names}))


def test_without_a_pad_token_the_end_token_serves(tmp_path):
    path = tiny_folder(tmp_path)
    without_tokens(tmp_path, "pad_token")
    bare, whole = CausalLM(path).load(), CausalLM(tiny_folder(tmp_path / "whole")).load()
    assert bare.pad_token == 2 and bare.end_tokens == (2,)
    assert not problems(CausalLM(path))
    tokens = [rollout(each, PROMPTS, Sampling(samples=2, max_new_tokens=6), seed=1) for each in (bare, whole)]
    assert torch.equal(tokens[0].mask_BGKT, tokens[1].mask_BGKT)
    mask_BGKT = tokens[0].mask_BGKT
    assert torch.equal(tokens[0].tokens_BGKT[mask_BGKT], tokens[1].tokens_BGKT[mask_BGKT])


def test_without_pad_and_end_token_it_is_told(tmp_path):
    path = tiny_folder(tmp_path)
    without_tokens(tmp_path, "pad_token", "eos_token")
    (problem,) = problems(CausalLM(path))
    assert problem.startswith(
        "Key `model.generator.init_args.path`: expected a tokenizer with a pad token or an end token"
    )
    (problem,) = TransformerEmbedder(path, max_length=8).problems()
    assert "expected a tokenizer with a pad token or an end token" in str(problem)


def test_prompts_longer_than_the_context_are_told_with_the_room_there_is(tiny_model):
    generator = CausalLM(tiny_model).load()
    with pytest.raises(
        ConfigError, match=r"`w1 w1 .*`, the longest, takes 60 of the model's 64 positions, so expected at most 4, but"
    ):
        rollout(generator, ["w2", "w1 " * 60], Sampling(samples=2, max_new_tokens=5))
    with pytest.raises(
        ConfigError, match=r"Prompt `w1 .*: expected at most 59 positions for it .* but it takes 70. Shorten"
    ):
        rollout(generator, ["w2", "w1 " * 70], Sampling(samples=2, max_new_tokens=5))
    rollout(generator, ["w1 " * 60], Sampling(samples=2, max_new_tokens=4))


def test_the_longest_prompt_is_the_longest_in_tokens_and_may_be_a_negative_one(chat, tiny_model):
    generator = CausalLM(tiny_model).load()
    sampling = Sampling(samples=2, max_new_tokens=5)
    with pytest.raises(ConfigError, match=r"Prompt `w1 w1 "):  # more characters, fewer tokens
        rollout(generator, ["unknown" * 40, "w1 " * 60], sampling)
    rollout(generator, ["w2"], sampling, Guidance(1.0, negative="w1 " * 60))  # never read
    with pytest.raises(ConfigError, match=r"Negative prompt `w1 w1 .*`, the longest, takes 60"):
        rollout(generator, ["w2"], sampling, Guidance(2.0, negative="w1 " * 60))
    with pytest.raises(ConfigError, match=r"Negative prompt `w2` with its system message: expected at most 59"):
        rollout(chat, ["w2"], sampling, Guidance(2.0, negative_system="w1 " * 70))


def test_samples_of_no_length_are_refused(tiny_model):
    with pytest.raises(ConfigError, match="Key `max_new_tokens`: expected at least 1, but got 0"):
        rollout(CausalLM(tiny_model).load(), ["w1"], Sampling(max_new_tokens=0))


def test_a_prompt_of_no_tokens_is_told(chat, tiny_model, tmp_path):
    (problem,) = problems(CausalLM(chat.path, unconditional=""))
    assert problem.startswith("Key `model.generator.init_args.unconditional`: expected a text of at least one token")
    assert not problems(CausalLM(chat.path, unconditional="w1"))
    with pytest.raises(ConfigError, match=r"Prompt ' ': expected at least one token, but the tokenizer of"):
        rollout(CausalLM(tiny_model).load(), ["w1", " "], Sampling(max_new_tokens=2))
    bare = CausalLM(chat_folder(tmp_path, "{{ messages[0]['content'] }}")).load()
    with pytest.raises(
        ConfigError, match=r"The dropped prompt: .* the chat template .* `model.generator.init_args.unconditional`"
    ):
        rollout(bare, ["w1"], Sampling(max_new_tokens=2), Guidance(2.0))


def test_a_fit_meets_a_prompt_that_is_too_long_before_its_first_step(tiny_model, tmp_path):
    (tmp_path / "train.txt").write_text("w1\nw2\nw3\n" + "w4 " * 62)
    module = CFGDistillation(CausalLM(tiny_model), {"kl": ReverseKL()}, sampling=Sampling(2, max_new_tokens=4))
    steps = []
    module.training_step = lambda batch, batch_idx: steps.append(batch)
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"`w4 w4 .* takes 62 of the model's 64 positions, so expected at most 2, but got 4"
    ):
        trainer.fit(module, PromptData(str(tmp_path / "train.txt"), batch_size=1, shuffle=False))
    assert steps == []


def test_generate_and_studies_take_a_negative_system_message(chat, tiny_model, capsys, tmp_path):
    words = ["generate", "--prompt", "w1", "--samples", "1", "--max-new-tokens", "4", "--temperature", "0"]
    assert main([*words, "--model", tiny_model, "--guidance", "2", "--negative-system", "w7"]) == 2
    assert "`--negative-system`: expected a model under a chat template" in capsys.readouterr().err
    assert main([*words, "--model", chat.path, "--negative-system", "w7"]) == 2
    assert "`--negative-system`: has no effect without guidance" in capsys.readouterr().err
    assert main([*words, "--model", chat.path, "--guidance", "2", "--negative-system", "w7 w8"]) == 0
    (expected,) = draw(chat, ["w1"], Sampling(1, 4, temperature=0), Guidance(2.0, negative_system="w7 w8")).outputs
    assert expected in capsys.readouterr().out
    study = Study("out", Evaluation("prompts.txt", {}, Headline("q", "d")))
    study.baselines["against"] = SystemConfig(chat.path, guidance=2.0, negative_system="w7")
    (step,) = [step for step in plan(study, tmp_path) if step.kind == "evaluate"]
    assert guidance_of(step.work.system, 8) == Guidance(2.0, negative_system="w7")


def test_studies_take_the_branch_of_the_last_token(chat, tiny_model, tmp_path):
    (tmp_path / "prompts.txt").write_text("w1 w2\nw3\n")
    study = Study("out", Evaluation(str(tmp_path / "prompts.txt"), {}, Headline("q", "d"), max_new_tokens=4))
    study.baselines["plain"] = SystemConfig(tiny_model, guidance=2.0, drop="last_token")
    study.baselines["chat"] = SystemConfig(chat.path, guidance=2.0, drop="last_token")
    first, _ = [step for step in plan(study, tmp_path) if step.kind == "evaluate"]
    assert guidance_of(first.work.system, 8) == Guidance(2.0, drop="last_token")
    assert first.config["point"]["drop"] == "last_token"
    with pytest.raises(ConfigError, match="expected `prompt` as `drop`") as found:
        CheckEvaluation(study.evaluation, [], systems_by_folder(study), "").run(print)
    (problem,) = [each for each in found.value.problems if "drop" in each.text]
    assert chat.path in str(problem) and tiny_model not in str(problem)
