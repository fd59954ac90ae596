"""A LoRA on the decoder of MusicGen: the adapter's folder fits the whole model."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from tiny_musicgen import PAD, tiny_musicgen
from transformers import MusicgenForConditionalGeneration

from cfg_distill.generators import Guided, LoRA, MusicGen, open_generator
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling, rollout


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_musicgen(tmp_path_factory.mktemp("lora") / "model")


def trained(path, **settings):
    student = MusicGen(path, lora=LoRA(rank=2, **settings)).load().eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    return student


def test_the_adapter_alone_is_trained_and_the_teacher_is_the_base(path):
    student = trained(path)
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert not any("lm_heads" in name for name in names)
    teacher, base = student.frozen_copy(), MusicGen(path).load().eval()
    drawn = rollout(student, ["rock"], Sampling(samples=2, max_new_tokens=6))
    rows = (drawn.tokens_NKT, drawn.mask_NKT)
    with torch.no_grad():
        guided = [Guided(model, Guidance(3.0)).predictions(["rock"], *rows).whole() for model in (teacher, base)]
        assert torch.equal(*guided)
        assert not torch.allclose(student.logits(["rock"], *rows), base.logits(["rock"], *rows), atol=1e-2)
    assert teacher.model.lm_heads[0].weight is student.model.lm_heads[0].weight


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use
def test_the_folder_of_the_adapter_gives_the_student_in_peft_and_here(path, tmp_path):
    student = trained(path)
    student.save(tmp_path / "adapter")
    names = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert all(name.startswith("decoder.") for name in names)
    drawn = rollout(student, ["rock"], Sampling(samples=1, max_new_tokens=6))
    fed_KS = torch.nn.functional.pad(drawn.tokens_NKT[0], (1, 0), value=PAD)[:, :-1]
    theirs = PeftModel.from_pretrained(MusicgenForConditionalGeneration.from_pretrained(path), tmp_path / "adapter")
    opened = open_generator(str(tmp_path / "adapter")).load().eval()
    assert isinstance(opened, MusicGen)
    begun = MusicGen(path, lora=LoRA(rank=4)).load().eval()
    begun.load_weights(str(tmp_path / "adapter"))
    with torch.no_grad():
        ours_KTV = student.logits(["rock"], drawn.tokens_NKT, drawn.mask_NKT)[0]
        theirs_KTV = theirs(
            input_ids=torch.tensor([[3, 1]]),
            attention_mask=torch.ones(1, 2, dtype=torch.long),
            decoder_input_ids=fed_KS,
        ).logits
        torch.testing.assert_close(theirs_KTV, ours_KTV, rtol=1e-4, atol=1e-4)
        for other in (opened, begun):
            logits_KTV = other.logits(["rock"], drawn.tokens_NKT, drawn.mask_NKT)[0]
            torch.testing.assert_close(logits_KTV, ours_KTV, rtol=1e-4, atol=1e-4)


def test_a_merged_student_is_a_whole_model_that_asks_for_no_guidance(path, tmp_path):
    student = trained(path)
    drawn = rollout(student, ["rock"], Sampling(samples=1, max_new_tokens=6))
    with torch.no_grad():
        before = student.logits(["rock"], drawn.tokens_NKT, drawn.mask_NKT)
        student.merge_adapter().save(tmp_path / "whole")
        again = MusicGen(str(tmp_path / "whole")).load().eval()
        after = again.logits(["rock"], drawn.tokens_NKT, drawn.mask_NKT)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    settings = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "whole").generation_config
    assert settings.guidance_scale == 1.0


def test_layers_that_are_not_there_are_named_without_weights(path):
    (problem,) = MusicGen(path, lora=LoRA(targets=["q_proj", "gate_proj"])).problems()
    assert "`gate_proj` matches none" in str(problem) and "out_proj" in str(problem)
    assert MusicGen(path, lora=LoRA(targets=["q_proj", "fc1"])).problems() == []
