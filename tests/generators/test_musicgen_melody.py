"""What a melody model reads besides the text: pitch classes, and who must bring them."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import scipy.signal
import torch
import yaml
from tiny_audio import tone
from tiny_musicgen import tiny_musicgen
from transformers.audio_utils import chroma_filter_bank

from cfg_distill import CFGDistillation
from cfg_distill.audio import Waveform, write_audio
from cfg_distill.data import PromptData
from cfg_distill.errors import ConfigError
from cfg_distill.generators import Prompt
from cfg_distill.generators.chroma import Chroma
from cfg_distill.generators.musicgen import MusicGen
from cfg_distill.guidance import Guidance
from cfg_distill.losses import ReverseKL
from cfg_distill.recipe.command_line import start
from cfg_distill.sampling import Sampling, problems_of_lengths, rollout

SAMPLING = Sampling(samples=2, max_new_tokens=4, temperature=0)
A = 9  # the pitch class of a filter bank that begins with C


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_musicgen(tmp_path_factory.mktemp("melody") / "model", "melody")


@pytest.fixture(scope="module")
def generator(folder):
    return MusicGen(folder, text_positions=6).load().eval()


def test_every_semitone_is_a_pitch_class():
    chroma = Chroma()
    for semitone in range(-12, 13):
        rows_SC = chroma(tone(440 * 2 ** (semitone / 12), seconds=1.0, rate=32000))
        assert rows_SC.shape == (8, 12)
        assert (rows_SC.sum(-1) == 1).all()
        assert (rows_SC.argmax(-1) == (A + semitone) % 12).all()


def test_pitch_classes_are_those_of_another_spectrogram():
    settings = Chroma(rate=8000, window=2048, hop=512, seconds=2.0)
    random = np.random.default_rng(0)
    sound_L = random.standard_normal(24000).astype(np.float32)
    ours_SC = settings(Waveform(torch.from_numpy(sound_L)[None], 8000))
    padded_L = np.pad(sound_L[:16000], 1024, mode="reflect")
    *_, spectrum_FS = scipy.signal.stft(
        padded_L, window="hann", nperseg=2048, noverlap=2048 - 512, boundary=None, padded=False
    )
    filters_CF = chroma_filter_bank(sampling_rate=8000, num_frequency_bins=2048, tuning=0, num_chroma=12)
    theirs_S = (filters_CF @ np.abs(spectrum_FS) ** 2).argmax(0)
    assert ours_SC.argmax(-1).tolist() == theirs_S.tolist()
    assert len(set(theirs_S)) > 5


def test_a_short_clip_is_padded_and_silence_is_the_first_class():
    rows_SC = Chroma()(Waveform(torch.zeros(1, 1000), 32000))
    assert rows_SC.shape == (5, 12)
    assert (rows_SC.argmax(-1) == 0).all()
    with pytest.raises(ValueError, match="32000 Hz but got 8000"):
        Chroma()(Waveform(torch.zeros(1, 1000), 8000))


def test_the_melody_is_heard_whatever_its_rate(generator, tmp_path):
    """The same tune at two rates gives the same condition; another tune another one."""
    for name, frequency, rate in (("a", 440.0, 8000), ("b", 440.0, 12800), ("c", 523.25, 8000)):
        write_audio(tmp_path / f"{name}.wav", tone(frequency, seconds=1.0, rate=rate))
    conditions = [
        generator.encode([Prompt("rock", melody=str(tmp_path / f"{name}.wav"))]).tensors["condition"] for name in "abc"
    ]
    torch.testing.assert_close(conditions[0], conditions[1])
    assert not torch.allclose(conditions[0], conditions[2])
    none = generator.encode(["rock"]).tensors["condition"]
    assert not torch.allclose(conditions[0], none)
    torch.testing.assert_close(conditions[0][:, 5:], none[:, 5:])
    assert torch.equal(generator.encode([Prompt("rock", melody="none")]).tensors["condition"], none)


def test_a_missing_melody_is_refused_for_samples_and_not_for_negative_prompts(generator, folder, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a melody.*`model.generator.init_args.melody` to optional"):
        rollout(generator, ["rock", "jazz"], SAMPLING)
    write_audio(tmp_path / "tune.wav", tone(440.0))
    prompt = Prompt("rock", melody=str(tmp_path / "tune.wav"))
    rollout(generator, [prompt], SAMPLING, Guidance(2.0, negative="noise"))
    rollout(generator, [Prompt("rock", melody="none")], SAMPLING)
    optional = MusicGen(folder, melody="optional", text_positions=6).load()
    assert rollout(optional, ["rock"], SAMPLING).mask_BGKT.any()


def test_what_cannot_be_read_is_known_before_the_weights(folder, tmp_path):
    unloaded = MusicGen(folder, text_positions=6)
    (tmp_path / "no.wav").write_text("words")
    write_audio(tmp_path / "tune.wav", tone(440.0))
    melodies = {"missing": "none.wav", "broken": "no.wav", "good": "tune.wav"}
    prompts = [Prompt(text, melody=str(tmp_path / file)) for text, file in melodies.items()]
    prompts += ["rock", Prompt("rock jazz calm loud piano pop", melody="none")]
    found = unloaded.problems_of_prompts(prompts)
    for problem, part in zip(
        found,
        ("none.wav` does not exist", "cannot be read", "expected a melody", "more positions than the 6"),
        strict=True,
    ):
        assert part in str(problem)
    assert str(found[0]).startswith("Prompt 'missing', melody: ")
    guidance = Guidance(2.0, negative="rock jazz calm loud piano pop")
    (problem,) = problems_of_lengths(unloaded, prompts[2:3], SAMPLING, guidance)
    assert "takes more positions than the 6" in str(problem)
    assert not problems_of_lengths(unloaded, prompts[2:3], SAMPLING, Guidance(2.0, negative="noise"))
    assert not hasattr(unloaded, "model")


def test_a_fit_is_refused_before_the_weights(folder, tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text('{"prompt": "rock", "conditions": {"melody": "none.wav"}}\n')
    monkeypatch.setattr(MusicGen, "load", lambda self: pytest.fail("loaded"))
    data = PromptData(str(tmp_path / "train.jsonl"))
    module = CFGDistillation(
        MusicGen(folder, text_positions=6), {"kl": ReverseKL()}, sampling=Sampling(samples=2, max_new_tokens=4)
    )
    fitted = L.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False
    )
    with pytest.raises(ConfigError, match=r"Prompt 'rock', melody: .*`none.wav` does not exist"):
        fitted.fit(module, datamodule=data)
    recipe = {
        "model": {
            "generator": {"class_path": "cfg_distill.generators.MusicGen", "init_args": {"path": folder, "text_positions": 6}},
            "losses": {"kl": {"class_path": "cfg_distill.losses.ReverseKL"}},
            "sampling": {"samples": 2, "max_new_tokens": 4},
        },
        "data": {"train": str(tmp_path / "train.jsonl")},
        "trainer": {"max_steps": 1, "accelerator": "cpu"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match=r"Prompt 'rock', melody: .*`none.wav` does not exist"):
        start("fit", ["--config", str(tmp_path / "recipe.yaml")], check_only=True)


def test_what_cannot_be_read_is_named(generator, folder, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        generator.encode([Prompt("rock", melody=str(tmp_path / "none.wav"))])
    with pytest.raises(
        ConfigError, match=r"takes more positions than the 6 of `model.generator.init_args.text_positions`"
    ):
        generator.encode(["rock jazz calm loud piano pop"])
    with pytest.raises(ConfigError, match=r"`chords`, which the model does not read. It knows melody"):
        generator.encode([Prompt("rock", chords="A B")])
    (problem,) = MusicGen(folder, text_positions=0).problems()
    assert problem.path == "text_positions" and "got 0" in str(problem)
    mono = MusicGen(tiny_musicgen(tmp_path / "mono")).load()
    with pytest.raises(ConfigError, match=r"`melody`, which the model does not read. Use a melody model"):
        rollout(mono, [Prompt("rock", melody="tune.wav")], SAMPLING)
