"""Audio encoders: as transformers computes them, whatever the batch, the rate and the length; wrong ones are named."""

from __future__ import annotations

import gc
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_audio import noise, tiny_clap, tiny_hubert, tone
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AutoFeatureExtractor,
    AutoTokenizer,
    ClapModel,
    EncodecConfig,
    EncodecFeatureExtractor,
    HubertModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from cfg_distill.audio import Waveform, resampled
from cfg_distill.embedders import CLAP, AudioEmbedder, NGramCounts, TransformerEmbedder, clap
from cfg_distill.errors import ConfigError
from cfg_distill.metrics import Repetition
from cfg_distill.rewards import PairwiseDiversity
from cfg_distill.rewards.sample import PromptAdherence
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples
from cfg_distill.tunes.embedder import Tunes


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fusion"])
def clap_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    return tiny_clap(tmp_path_factory.mktemp("clap"), fusion=request.param)


@pytest.fixture(scope="module")
def hubert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_hubert(tmp_path_factory.mktemp("hubert"))


def test_clap_vectors_are_those_of_transformers(clap_folder: str) -> None:
    model = ClapModel.from_pretrained(clap_folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(clap_folder)
    clips = [tone(300), noise(1), tone(1200, seconds=0.8)]
    features = extractor([clip.samples[0].numpy() for clip in clips], sampling_rate=8000, return_tensors="pt")
    features["is_longer"] = torch.zeros(3, 1, dtype=torch.bool)
    with torch.no_grad():
        expected_ND = model.get_audio_features(**features).pooler_output
    embedder = CLAP(clap_folder)
    assert embedder.problems() == []
    vectors_ND = embedder.load().embed(clips)
    assert vectors_ND.shape == (3, 12) and not vectors_ND.requires_grad
    torch.testing.assert_close(vectors_ND, expected_ND)
    tokens = AutoTokenizer.from_pretrained(clap_folder)(["80s synth pop", "calm"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected_ND = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    torch.testing.assert_close(embedder.embed(["80s synth pop", "calm"]), expected_ND)


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_features_are_those_of_the_extractor(clap_folder: str, padding: str, truncation: str) -> None:
    embedder = CLAP(clap_folder)
    embedder.extractor.padding, embedder.extractor.truncation = padding, truncation
    for seconds in (0.11, 0.4, 0.5, 1.0):  # windows are never longer than a second here
        clips = [noise(1, seconds), tone(700, seconds), Waveform(torch.zeros(1, round(8000 * seconds)), 8000)]
        sounds = [clip.samples[0].numpy() for clip in clips]
        expected = embedder.extractor(sounds, sampling_rate=8000, return_tensors="pt")["input_features"]
        features = embedder._features(torch.from_numpy(np.stack(sounds)))
        torch.testing.assert_close(features, expected.float(), atol=0.02, rtol=1e-3)  # decibels, from -100 on


def test_a_clip_has_one_vector_whatever_lies_beside_it(clap_folder: str, hubert_folder: str) -> None:
    # Two windows and a bit: transformers' own extractor would crop it at random.
    long = Waveform(torch.cat([tone(300, 1.2).samples, noise(3, 1.1).samples], dim=1), 8000)
    for embedder in (CLAP(clap_folder, batch_size=2), AudioEmbedder(hubert_folder, batch_size=2, window=1.0)):
        embedder.load().train()  # a parent's train() must not switch dropout on
        alone_D = embedder.embed([Waveform(long.samples, 8000)])[0]
        again = Waveform(long.samples, 8000)  # another clip of the same sound: what was heard is not heard again
        crowd_ND = embedder.embed([noise(5), long, tone(200, 0.3), again, noise(6, 1.7)])
        torch.testing.assert_close(crowd_ND[1], alone_D, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(crowd_ND[3], alone_D, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(crowd_ND.norm(dim=-1), torch.ones(5))
        assert (crowd_ND[0] - crowd_ND[2]).abs().max() > 1e-3


def test_one_encoder_hears_each_clip_once(clap_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = CLAP(clap_folder).load(), CLAP(clap_folder).load()
    assert one.model is other.model
    calls: list[int] = []
    vectors = CLAP._vectors

    def counted(self: CLAP, windows: list[np.ndarray]) -> torch.Tensor:
        calls.append(len(windows))
        return vectors(self, windows)

    monkeypatch.setattr(CLAP, "_vectors", counted)
    clips = [tone(310), noise(11), tone(310)]
    first_ND = one.embed([*clips, clips[0]])
    assert sum(calls) == 3  # equal sound is another clip, the same clip is not
    torch.testing.assert_close(other.embed(clips[1:]), first_ND[1:3])
    assert sum(calls) == 3
    known = len(one.encoder.heard)
    del clips
    gc.collect()
    assert len(one.encoder.heard) <= known - 3  # nothing is kept longer than the clips themselves


def test_windows_cover_a_long_clip_evenly(clap_folder: str) -> None:
    embedder = CLAP(clap_folder).load()
    long = noise(4, seconds=2.5)
    windows = embedder._windows(long)
    assert [len(window) for window in windows] == [8000] * 3
    np.testing.assert_array_equal(windows[1], long.samples[0, 6000:14000])
    parts_MD = embedder.embed([Waveform(torch.from_numpy(window)[None], 8000) for window in windows])
    mean_D = parts_MD.mean(0)
    torch.testing.assert_close(embedder.embed([long])[0], mean_D / mean_D.norm())
    # Clips of no length are silence.
    torch.testing.assert_close(
        *embedder.embed([Waveform(torch.zeros(1, 0), 8000), Waveform(torch.zeros(1, 800), 8000)])
    )


def test_other_rates_and_channels(hubert_folder: str, caplog: pytest.LogCaptureFixture) -> None:
    clap._tell_once.cache_clear()
    embedder = AudioEmbedder(hubert_folder).load()
    mono, stereo = noise(0, channels=1), noise(0, channels=2)
    with caplog.at_level(logging.WARNING):
        vectors_ND = embedder.embed([mono, stereo, noise(1)])
        embedder.embed([mono])
    said = [record.getMessage() for record in caplog.records if "resampled" in record.getMessage()]
    assert said == [f"Sound of 8000 Hz is resampled to the 16000 Hz of `{hubert_folder}`."]
    # The same as resampling and mixing down beforehand, and then transformers alone.
    model = HubertModel.from_pretrained(hubert_folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(hubert_folder)
    for vector_D, clip in zip(vectors_ND, (mono, stereo), strict=False):
        mixed = resampled(clip, 16000).samples.mean(0).numpy()
        features = extractor(mixed, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            mean_D = model(features["input_values"]).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector_D, mean_D / mean_D.norm(), atol=1e-4, rtol=1e-4)


def test_a_spectrogram_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64, num_mel_bins=16,
        patch_size=8, frequency_stride=8, time_stride=8,
    )  # fmt: skip
    ASTModel(config).save_pretrained(tmp_path)
    ASTFeatureExtractor(sampling_rate=16000, num_mel_bins=16, max_length=64).save_pretrained(tmp_path)
    embedder = AudioEmbedder(str(tmp_path), window=0.6)
    assert embedder.problems() == []
    clips = [noise(0, rate=16000), tone(500, rate=16000)]
    features = ASTFeatureExtractor.from_pretrained(tmp_path)(
        [clip.samples[0].numpy() for clip in clips], sampling_rate=16000, return_tensors="pt"
    )
    with torch.no_grad():
        expected_ND = ASTModel.from_pretrained(tmp_path).eval()(features["input_values"]).last_hidden_state.mean(1)
    expected_ND = expected_ND / expected_ND.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(embedder.load().embed(clips), expected_ND)


def test_whisper_hears_the_sound_and_not_what_it_is_padded_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, num_mel_bins=16,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=50, vocab_size=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(tmp_path)
    embedder = AudioEmbedder(str(tmp_path), window=0.5)
    assert embedder.problems() == []
    clip = tone(500, rate=16000)
    (vector_D,) = embedder.load().embed([clip])
    features = WhisperFeatureExtractor.from_pretrained(tmp_path)(
        [clip.samples[0].numpy()[:8000]], sampling_rate=16000, return_tensors="pt"
    )
    with torch.no_grad():
        states_TD = (
            WhisperModel.from_pretrained(tmp_path).encoder.eval()(features["input_features"]).last_hidden_state[0]
        )
    heard_D = states_TD[: math.ceil(50 * min(len(clip.samples[0]), 8000) / 16000)].mean(0)
    torch.testing.assert_close(vector_D, heard_D / heard_D.norm(), atol=1e-4, rtol=1e-4)


def test_rewards_take_clap(clap_folder: str) -> None:
    empty = torch.zeros(2, 3, 1, 1)
    outputs = [tone(200), tone(200), noise(1), tone(900), tone(300), noise(2)]
    samples = Samples(["calm piano", "loud rock"], outputs, Rollout(empty.long(), empty.bool(), empty))
    embedder = CLAP(clap_folder).load()
    reward_BG = PairwiseDiversity(embedder)(samples).reward_BG
    vectors_BGD, texts_BD = embedder.embed(outputs).unflatten(0, (2, 3)), embedder.embed(samples.prompts)
    # The two equal tones of the first prompt differ from the noise only.
    expected = (1 - vectors_BGD[0, 0] @ vectors_BGD[0, 2]) / 2
    torch.testing.assert_close(reward_BG[0, 0], expected, atol=1e-5, rtol=1e-4)
    adherence_BG = PromptAdherence(embedder).score(samples)
    torch.testing.assert_close(adherence_BG[1, 2], vectors_BGD[1, 2] @ texts_BD[1])


def test_wrong_encoders_are_named(clap_folder: str, hubert_folder: str, tiny_model: str) -> None:
    assert "config.json says `hubert`" in str(CLAP(hubert_folder).problems()[0])
    (problem,) = AudioEmbedder(clap_folder).problems()
    assert "it is a CLAP model, which `cfg_distill.embedders.CLAP` reads. Use that class for it." in str(problem)
    assert "`./nowhere` does not exist" in str(AudioEmbedder("./nowhere").problems()[0])
    assert "expected at least 1, but got 0" in str(CLAP(clap_folder, batch_size=0).problems()[0])
    for window in (0.01, float("nan"), float("inf")):
        assert "expected at least 0.1 seconds" in str(AudioEmbedder(hubert_folder, window=window).problems()[0])
    assert "of an audio encoder (wav2vec 2.0, HuBERT, AST), but" in str(AudioEmbedder(tiny_model).problems()[0])
    with pytest.raises(ConfigError, match="expected sound, but got a str"):
        AudioEmbedder(hubert_folder).load().embed(["w1"])
    with pytest.raises(ConfigError, match="got a str"):
        CLAP(clap_folder).load().embed([tone(200), "w1"])


def test_a_codec_is_no_encoder(tmp_path: Path) -> None:
    EncodecConfig().save_pretrained(tmp_path)
    EncodecFeatureExtractor().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (problem,) = AudioEmbedder(str(tmp_path)).problems()
    assert "it is a codec (encodec), which makes codes and no vectors" in str(problem)


def test_a_clap_without_its_tokenizer_is_a_problem(tmp_path: Path) -> None:
    folder = tiny_clap(tmp_path)
    for file in (*tmp_path.glob("tokenizer*"), *tmp_path.glob("special_tokens*")):
        file.unlink()
    (problem,) = CLAP(folder).problems()
    # transformers itself says nothing, and reads every text as unknown.
    assert "its tokenizer knows 5 tokens, and its text tower 12. Copy the tokenizer's files" in str(problem)
    with pytest.raises(ConfigError, match="its tokenizer knows 5 tokens"):
        CLAP(folder).load()


def test_readers_of_text_refuse_sound(tiny_model: str) -> None:
    for embedder in (NGramCounts(), TransformerEmbedder(tiny_model), Tunes()):
        with pytest.raises(ConfigError, match=r"Embedder `.*`: expected text, but the model writes a Waveform"):
            embedder.load().embed(["w1", tone(200)])
    empty = torch.zeros(1, 1, 1, 1)
    samples = Samples(["w1"], [tone(200)], Rollout(empty.long(), empty.bool(), empty))
    with pytest.raises(ConfigError, match="Metric `Repetition`: expected text, but the model writes a Waveform"):
        Repetition().update(samples)


def test_a_hub_name_out_of_reach_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (problem,) = CLAP("laion/larger_clap_music_that_is_not_here").problems()
    assert str(problem).startswith("Key `path`: expected a model folder, or the name of a model on the hub")
    assert "no folder `laion/larger_clap_music_that_is_not_here`" in str(problem)
    assert "Check the path, or go on with a network." in str(problem)


def test_a_missing_extra_is_a_problem(clap_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clap, "problems_of_audio_extra", lambda: ['Run `pip install ".[audio]"`.'])
    assert list(map(str, CLAP(clap_folder).problems())) == ['Run `pip install ".[audio]"`.']
