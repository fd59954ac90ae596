"""Waveforms: what is read is what was written, resampling keeps pitch and phase, nothing clips, a missing extra is named."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from tiny_audio import noise, tone

from cfg_distill import audio
from cfg_distill.audio import (
    Waveform,
    compressed,
    problems_of_audio_extra,
    read_audio,
    resampled,
    within_full_scale,
    write_audio,
)
from cfg_distill.errors import ConfigError


def test_a_quiet_clip_is_written_as_it_is(tmp_path: Path) -> None:
    clip = noise(level=0.1, channels=2)
    assert write_audio(tmp_path / "new" / "clip.wav", clip) == 0.0
    with wave.open(str(tmp_path / "new" / "clip.wav")) as file:  # the standard library as the witness
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 8000, 2)
        steps_LC = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    torch.testing.assert_close(torch.from_numpy(steps_LC.T / 32768.0).float(), clip.samples, atol=1 / 32768, rtol=0)
    again = read_audio(tmp_path / "new" / "clip.wav")
    torch.testing.assert_close(again.samples, clip.samples, atol=1 / 32768, rtol=0)
    assert again.rate == 8000 and again.seconds == clip.seconds
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["clip.wav"]


def test_long_sound_is_written_as_ogg(tmp_path: Path) -> None:
    """libvorbis copies what it gets at once onto the stack: 100 s ended the process without a message."""
    rate = 22_050
    wave_L = torch.sin(torch.arange(100 * rate) * (2 * torch.pi * 220 / rate)) / 4
    write_audio(tmp_path / "clip.wav", Waveform(wave_L[None], rate))
    file = compressed(tmp_path / "clip.wav", "ogg")
    again = read_audio(file)
    assert file.name == "clip.ogg" and again.rate == rate and again.seconds == pytest.approx(100)
    torch.testing.assert_close(again.samples[0, -rate:], wave_L[-rate:], atol=0.02, rtol=0)


def test_a_loud_clip_is_turned_down_as_a_whole(tmp_path: Path) -> None:
    clip = Waveform(torch.stack([tone(440, level=3.0).samples[0], tone(300, level=0.6).samples[0]]), 8000)
    gain = write_audio(tmp_path / "loud.wav", clip)
    assert gain == pytest.approx(20 * np.log10(0.99 / clip.peak))
    written = read_audio(tmp_path / "loud.wav")
    assert written.peak == pytest.approx(0.99, abs=1e-4)
    # One gain for both channels, and no sample distorted.
    torch.testing.assert_close(written.samples, clip.samples * 0.99 / clip.peak, atol=1 / 32768, rtol=0)


def test_a_diverged_clip_is_no_sound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NaN or infinity: the model diverged"):
        write_audio(tmp_path / "nan.wav", Waveform(torch.tensor([[0.0, torch.nan]]), 8000))
    assert not list(tmp_path.iterdir())
    assert within_full_scale(Waveform(torch.zeros(1, 0), 8000))[1] == 0.0
    with pytest.raises(ValueError, match=r"shape \[C, L\] but got \[3\]"):
        Waveform(torch.zeros(3), 8000)


@pytest.mark.parametrize("rate", [16000, 48000, 44100, 6000])
def test_resampling_keeps_the_sound(rate: int) -> None:
    clip = tone(440, seconds=1.0, channels=2)
    moved = resampled(clip, rate)
    assert moved.rate == rate and moved.samples.shape == (2, rate) and moved.samples.dtype == torch.float32
    inner = slice(rate // 10, -rate // 10)  # filters ring at the ends
    expected = tone(440, seconds=1.0, rate=rate, channels=2).samples
    torch.testing.assert_close(moved.samples[:, inner], expected[:, inner], atol=2e-3, rtol=0)


def test_resampling_down_does_not_fold() -> None:
    # 3 kHz cannot exist at 4 kHz: scipy's polyphase filter leaves next to nothing of it, and so must this.
    high = tone(3000, seconds=1.0)
    expected = scipy.signal.resample_poly(high.samples[0].numpy(), 1, 2)
    left = resampled(high, 4000).samples[0].numpy()
    assert np.abs(expected[400:-400]).max() < 0.01
    assert np.abs(left[400:-400]).max() < 0.01
    assert resampled(high, 8000) is high


def test_reading_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"`nowhere\.wav` does not exist"):
        read_audio("nowhere.wav")
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ConfigError, match=r"text.wav`: expected sound \(WAV, FLAC, OGG, MP3\), but it cannot be read"):
        read_audio(tmp_path / "text.wav")
    assert problems_of_audio_extra() == []

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(audio.importlib, "import_module", missing)
    monkeypatch.setattr(audio.importlib.util, "find_spec", lambda name: None)
    for use in (
        lambda: read_audio("x.wav"),
        lambda: resampled(tone(440), 16000),
        lambda: write_audio("x.wav", tone(1)),
    ):
        with pytest.raises(ConfigError, match=r'pip install "\.\[audio\]"'):
            use()
    assert [*map(str, problems_of_audio_extra())] == [
        'Sound needs soundfile and soxr, which are not installed. Run `pip install ".[audio]"`.'
    ]


def test_a_rate_is_asked_for(tmp_path: Path) -> None:
    write_audio(tmp_path / "clip.wav", tone(440, seconds=1.0))
    assert read_audio(tmp_path / "clip.wav", rate=16000).samples.shape == (1, 16000)
