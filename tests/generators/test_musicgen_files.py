"""Folders of MusicGen: what is written loads in transformers alone, and asks for no guidance."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from tiny_musicgen import PAD, tiny_musicgen
from transformers import (
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    MusicgenForConditionalGeneration,
    MusicgenMelodyForConditionalGeneration,
    pipeline,
)

from cfg_distill.errors import ConfigError
from cfg_distill.generators.musicgen import MusicGen
from cfg_distill.merging import merge_folders
from cfg_distill.sampling import Sampling, rollout


def moved(generator):
    """The student after some training, as it were."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return generator


@pytest.mark.parametrize("kind", ["mono", "stereo", "melody"])
def test_what_is_saved_gives_the_same_logits_in_transformers_and_here(kind, tmp_path):
    path = tiny_musicgen(tmp_path / "start", kind)
    student = moved(MusicGen(path, melody="optional", text_positions=4).load().eval())
    student.save(tmp_path / "out")
    whole = {"melody": MusicgenMelodyForConditionalGeneration}.get(kind, MusicgenForConditionalGeneration)
    theirs = whole.from_pretrained(tmp_path / "out")
    drawn = rollout(student, ["rock"], Sampling(samples=1, max_new_tokens=8), seed=1)
    fed_KS = torch.nn.functional.pad(drawn.tokens_NKT[0], (1, 0), value=PAD)[:, :-1]
    ids = student.shared.tokenizer("rock")["input_ids"]
    text = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if kind == "melody":
        text = {name: torch.nn.functional.pad(tensor, (0, 4 - len(ids))) for name, tensor in text.items()}
    with torch.no_grad():
        ours_KTV = student.logits(["rock"], drawn.tokens_NKT, drawn.mask_NKT)[0]
        theirs_KTV = theirs(**text, decoder_input_ids=fed_KS).logits[:, -fed_KS.shape[1] :]
        again = MusicGen(str(tmp_path / "out"), melody="optional", text_positions=4).load().eval()
        again_KTV = again.logits(["rock"], drawn.tokens_NKT, drawn.mask_NKT)[0]
        start = MusicGen(path, melody="optional", text_positions=4).load().eval()
        start_KTV = start.logits(["rock"], drawn.tokens_NKT, drawn.mask_NKT)[0]
    torch.testing.assert_close(ours_KTV, theirs_KTV, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours_KTV, again_KTV)
    assert not torch.allclose(ours_KTV, start_KTV, atol=1e-2)
    # The codec and the text encoder are the start model's, and saving again writes the same.
    sounds = [model.decode(drawn.tokens_NKT, drawn.mask_NKT)[0].samples for model in (start, again)]
    assert torch.equal(*sounds)
    again.save(tmp_path / "twice")
    for file in ("generation_config.json", "preprocessor_config.json", "tokenizer.json", "config.json"):
        assert (tmp_path / "twice" / file).read_text() == (tmp_path / "out" / file).read_text()


def test_nobody_guides_a_distilled_model_twice(tmp_path):
    path = tiny_musicgen(tmp_path / "start")
    assert json.loads((tmp_path / "start" / "generation_config.json").read_text())["guidance_scale"] == 3.0
    MusicGen(path).load().save(tmp_path / "out")
    settings = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out").generation_config
    neutral = {"do_sample": True, "guidance_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert {name: getattr(settings, name) for name in neutral} == neutral
    assert settings.max_length == 64  # 30 s would be 3,004 positions; the table ends before
    assert settings.decoder_start_token_id == settings.pad_token_id == PAD


def test_the_processor_and_the_pipeline_load_what_is_saved(tmp_path, caplog):
    path = tiny_musicgen(tmp_path / "start", "stereo")
    MusicGen(path).load().save(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(text=["rock piano"], return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[3, 7, 1]]
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "out").sampling_rate == 3200
    rows = []
    speaker = pipeline("text-to-audio", model=str(tmp_path / "out"))
    hook = speaker.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with caplog.at_level(logging.WARNING):
        heard = speaker("rock piano", generate_kwargs={"max_new_tokens": 11})
    hook.remove()
    assert heard["sampling_rate"] == 3200
    assert heard["audio"].shape == (2, 8 * 32)
    assert set(rows) == {8}  # one row of 8 codebooks: two under guidance


def test_melody_files_are_written_without_torchaudio(tmp_path):
    path = tiny_musicgen(tmp_path / "start", "melody")
    MusicGen(path).load().save(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert settings["hop_length"] == 256 and settings["feature_extractor_type"] == "MusicgenMelodyFeatureExtractor"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("rock")["input_ids"] == [3, 1]
    # 5 positions of melody and 64 of text leave none of 64: the tests' table is short, a real one has 2048.
    assert MusicGen(tiny_musicgen(tmp_path / "long", "melody", positions=200)).load().max_positions == 200


def test_weights_of_another_decoder_are_taken(tmp_path):
    path = tiny_musicgen(tmp_path / "start")
    student = moved(MusicGen(path).load())
    student.save(tmp_path / "out")
    fresh = MusicGen(path).load()
    fresh.load_weights(str(tmp_path / "out"))
    for name, tensor in student.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)


def test_a_folder_without_its_tokenizer_is_a_problem(tmp_path):
    path = tiny_musicgen(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_encoder"]["vocab_size"] = 32128  # that of T5: transformers makes a tokenizer of a hundred, silently
    (tmp_path / "config.json").write_text(json.dumps(config))
    (problem,) = MusicGen(path).problems()
    assert problem.path == "path" and "and its text encoder 32128. Copy the tokenizer's files" in str(problem)


@pytest.mark.parametrize(("method", "weights"), [("soup", []), ("weighted", [0.5, 0.3, 0.2])])
def test_a_merge_can_be_started_from(method, weights, tmp_path):
    start = MusicGen(tiny_musicgen(tmp_path / "start")).load()
    for name in "abc":
        student = MusicGen(start.path).load()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        student.save(tmp_path / name)
    folders = [tmp_path / name for name in "abc"]
    out = merge_folders(folders, weights, method, tmp_path / "out")
    start.load_weights(str(out))  # refuses a text encoder or codec that differs by a bit
    states = [MusicGen(str(folder)).load().model.state_dict() for folder in folders]
    for name, merged in start.model.state_dict().items():
        expected = sum(w * state[name].double() for w, state in zip(weights or [1 / 3] * 3, states, strict=True))
        torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-7)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    generator = MusicGen(tiny_musicgen(tmp_path / "start")).load()
    with pytest.raises(ConfigError, match="model_type musicgen, but got musicgen_melody"):
        generator.load_weights(tiny_musicgen(tmp_path / "melody", "melody"))
    with pytest.raises(ConfigError, match=r"do not fit.*embed_tokens"):
        generator.load_weights(tiny_musicgen(tmp_path / "stereo", "stereo"))
    with pytest.raises(ConfigError, match=r"text encoder and codec.*Only decoders of one model"):
        generator.load_weights(tiny_musicgen(tmp_path / "other", seed=1))


def test_half_precision_is_the_decoders_alone(tmp_path):
    path = tiny_musicgen(tmp_path / "start", text_width=16)
    student = MusicGen(path, dtype="bfloat16").load()
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in student.shared.whole.parameters()} == {torch.float32}
    drawn = rollout(student, ["rock"], Sampling(samples=2, max_new_tokens=4))
    assert student.decode(drawn.tokens_NKT, drawn.mask_NKT)[0].samples.dtype == torch.float32
    student.save(tmp_path / "out")
    again = MusicGen(str(tmp_path / "out"), dtype="bfloat16").load()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in student.state_dict().items())
