"""Noise against scipy, and copies against what was changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import signal, stats
from tiny_audio import noise, tone

from cfg_distill.audio import Waveform
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.ladder import samples_of
from cfg_distill.evaluation.ladder_sound import clipped, delayed, hum, looped, louder, silence, white_noise, with_noise
from cfg_distill.metrics import AudioRepetition, ClippingRate, Noise, SiblingCopies, SilenceRate, flatness, is_copy


def test_flatness_is_scipys_ratio_of_means():
    clip = Waveform(noise(1, seconds=2.0).samples + tone(440.0, seconds=2.0).samples, 8000)
    window = signal.get_window("hann", 1024)
    frames = np.lib.stride_tricks.sliding_window_view(clip.samples[0].numpy(), 1024)[::512]
    power = np.abs(np.fft.rfft(frames * window))[:, 1:] ** 2
    assert flatness(clip) == pytest.approx(float((stats.gmean(power, axis=-1) / power.mean(-1)).mean()), rel=1e-3)


def test_white_noise_is_flat_and_tones_and_silence_are_not():
    euler = 0.5772156649
    assert flatness(noise(0, seconds=20.0)) == pytest.approx(np.exp(-euler), abs=0.01)
    assert flatness(tone(440.0, seconds=1.0)) < 0.001
    assert flatness(louder(noise(0, seconds=1.0), -80.0)) == 0.0  # nobody hears it
    assert flatness(Waveform(torch.zeros(1, 8000), 8000)) == 0.0 == flatness(Waveform(torch.ones(2, 100), 8000))


def test_a_copy_is_a_copy_at_any_volume_and_no_two_clips_are():
    clip, other = noise(0, seconds=1.0), noise(1, seconds=1.0)
    assert is_copy(clip, louder(clip, -12.0)) and is_copy(clip, Waveform(-clip.samples, 8000))
    assert not is_copy(clip, other) and not is_copy(clip, silence(clip)) and not is_copy(silence(clip), silence(clip))
    shorter, half = Waveform(clip.samples[:, :-700], 8000), Waveform(clip.samples[:, :3000], 8000)
    assert is_copy(clip, shorter) and is_copy(shorter, clip) and not is_copy(clip, half) and not is_copy(shorter, other)
    samples = samples_of(["a", "b"], [[clip, louder(clip, -3.0), other], [other, clip, silence(clip)]])
    assert SiblingCopies().score(samples).tolist() == pytest.approx([1 / 3, 0.0])
    assert SiblingCopies().score(samples_of(["a"], [[clip]])).isnan().all()
    with pytest.raises(ConfigError, match="expected sound"):
        SiblingCopies().score(samples_of(["a"], [["text", "text"]]))


def test_each_kind_of_bad_sound_is_seen_by_its_guard():
    clip = Waveform(torch.cat([tone(f, seconds=0.5).samples for f in (220.0, 330.0, 262.0, 294.0)], dim=-1), 8000)
    guards = {"silence": SilenceRate(), "clipping": ClippingRate(), "repetition": AudioRepetition(), "noise": Noise()}
    score = {name: guard.score_clip for name, guard in guards.items()}
    seen = {"silence": silence(clip), "clipping": clipped(clip), "repetition": hum(clip), "noise": white_noise(clip, 0)}
    for name, bad in seen.items():
        assert bad.samples.shape == clip.samples.shape
        assert score[name](bad) > score[name](clip) + 0.4, name
    assert score["repetition"](looped(clip)) == 1.0


def test_opposite_channels_hide_nothing():
    """Mixed down they would be silence, which no guard but that of silence hears."""

    def opposite(clip: Waveform) -> Waveform:
        return Waveform(torch.cat([clip.samples, -clip.samples]), clip.rate)

    clip, loop = noise(0, seconds=4.0), looped(noise(1, seconds=4.0))
    assert flatness(opposite(clip)) == pytest.approx(flatness(clip))
    assert is_copy(opposite(clip), opposite(clip)) and not is_copy(opposite(clip), opposite(noise(2, seconds=4.0)))
    assert AudioRepetition().score_clip(opposite(loop)) == AudioRepetition().score_clip(loop) == 1.0
    assert AudioRepetition().score_clip(opposite(clip)) == 0.0


def test_swapped_and_panned_channels_are_the_same_recording():
    left, right = noise(0, seconds=1.0).samples, tone(440.0, seconds=1.0).samples * 0.1
    clip, swapped = (Waveform(torch.cat(pair), 8000) for pair in ((left, right), (right, left)))
    assert is_copy(clip, swapped) and not is_copy(clip, noise(1, seconds=1.0, channels=2))
    assert is_copy(Waveform(torch.cat([left, left]), 8000), Waveform(torch.cat([left, left * 0.3]), 8000))
    alternating, again = (
        Waveform(torch.cat([clip.samples, other.samples] * 2, dim=-1), 8000) for other in (swapped, clip)
    )
    assert AudioRepetition().score_clip(alternating) == AudioRepetition().score_clip(again) > 0.8


def test_the_loudest_channel_says_how_far_a_clip_is_noise():
    music, hiss = tone(440.0, seconds=1.0).samples, noise(0, seconds=1.0).samples * 1e-3
    assert flatness(Waveform(torch.cat([hiss, music]), 8000)) == flatness(Waveform(music, 8000)) < 0.001


def test_rewritings_keep_length_and_loudness_says_what_it_says():
    clip = noise(0, seconds=1.0, channels=2)
    assert louder(clip, -6.0).peak == pytest.approx(clip.peak * 0.5012, rel=1e-3)
    assert torch.equal(delayed(clip, 0.25).samples[:, 2000:], clip.samples[:, :-2000])
    power = (with_noise(clip, 1).samples - clip.samples).square().mean() / clip.samples.square().mean()
    assert 10 * torch.log10(power).item() == pytest.approx(-40.0, abs=0.2)
