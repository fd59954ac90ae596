"""Metrics of sound: against scipy, loops in Python and torchmetrics; guards see what they guard against."""

from __future__ import annotations

import math
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from jsonargparse import ArgumentParser
from tiny_audio import noise, tiny_clap, tiny_hubert, tone

from cfg_distill.audio import Waveform, read_audio, write_audio
from cfg_distill.embedders import CLAP, AudioEmbedder, cosine_distances
from cfg_distill.errors import ConfigError
from cfg_distill.metrics import (
    FAD,
    KAD,
    AudioRepetition,
    CLAPAdherence,
    ClippingRate,
    EmptyShare,
    PairwiseCosineDiversity,
    SampleMetric,
    SilenceRate,
    VendiScore,
    clipped_share,
    corpus,
    frechet_distance,
    kernel_distance,
    repeated_share,
    silent_share,
)
from cfg_distill.metrics.corpus import jackknife
from cfg_distill.references import kernels
from cfg_distill.rewards import PairwiseDiversity
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples


def samples_of(groups: list[list[Waveform]], prompts: list[str] | None = None) -> Samples:
    empty = torch.zeros(len(groups), len(groups[0]), 1, 1)
    outputs = [clip for group in groups for clip in group]
    return Samples(prompts or ["rock"] * len(groups), outputs, Rollout(empty.long(), empty.bool(), empty))


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> CLAP:
    return CLAP(tiny_clap(tmp_path_factory.mktemp("clap"))).load()


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> AudioEmbedder:
    return AudioEmbedder(tiny_hubert(tmp_path_factory.mktemp("hubert"))).load()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Noise: two files of four clips each, one in a subfolder, and a text that is no sound."""
    folder = tmp_path_factory.mktemp("reference")
    for seed in (0, 1):
        write_audio(folder / ("deeper" if seed else "") / f"{seed}.wav", noise(seed, seconds=2.2, level=0.1))
    (folder / "about.txt").write_text("white noise")
    return str(folder)


# Guards


def test_silence_in_frames() -> None:
    half = Waveform(torch.cat([tone(440, 0.5).samples, torch.zeros(1, 4000)], dim=1), 8000)
    assert silent_share(half) == 0.5
    assert silent_share(tone(440, level=0.001)) == 1.0  # a root mean square of -63 dBFS
    assert silent_share(tone(440, level=0.001), level=-64.0) == 0.0
    assert silent_share(Waveform(torch.zeros(1, 0), 8000)) == 1.0
    assert silent_share(Waveform(torch.zeros(1, 3), 8000)) == 1.0  # shorter than a frame
    # The louder channel decides: 58 dBFS below it is no silence, though the mean of both powers would be.
    quiet = tone(440, level=0.0018).samples
    assert silent_share(Waveform(torch.cat([quiet, torch.zeros(1, 4000)]), 8000)) == 0.0


def test_clipping_counts_samples_at_full_scale() -> None:
    loud = tone(50, seconds=1.0, level=2.0)
    # |2 sin| >= 1 for two thirds of the time.
    assert clipped_share(loud) == pytest.approx(2 / 3, abs=0.01)
    assert clipped_share(tone(50, level=0.99)) == 0.0
    assert clipped_share(Waveform(torch.zeros(1, 0), 8000)) == 0.0


def test_repetition_finds_loops_and_drones_only() -> None:
    bar = noise(0, seconds=0.8).samples
    looped = Waveform(bar.repeat(1, 5), 8000)
    assert repeated_share(looped) > 0.85
    once = Waveform(torch.cat([bar, noise(1, 2.4).samples, bar], dim=1), 8000)
    # Only the windows inside the second playing are repeats: 0.8 - 0.5 s of 4.0 - 1.0 s that can be.
    assert repeated_share(once) == pytest.approx(0.1, abs=0.02)
    assert repeated_share(noise(2, 4.0)) == 0.0
    assert repeated_share(tone(440, 4.0)) == 1.0
    assert repeated_share(Waveform(looped.samples * 0.01, 8000)) == repeated_share(looped)  # loudness does not matter
    assert repeated_share(Waveform(torch.zeros(1, 32000), 8000)) == 0.0  # silence has its own guard
    assert repeated_share(noise(0, 0.9)) == 0.0  # too short for two windows


def test_repetition_is_what_its_definition_says() -> None:
    clip = Waveform(torch.cat([noise(0, 0.7).samples, noise(1, 0.6).samples, noise(0, 0.7).samples], dim=1), 8000)
    step, frames = 160, 5
    spectra = [
        np.abs(
            np.fft.rfft(clip.samples[0].numpy()[start : start + 2 * step] * scipy.signal.get_window("hann", 2 * step))
        )
        for start in range(0, clip.samples.shape[1] - 2 * step + 1, step)
    ]
    windows = [np.concatenate(spectra[start : start + frames]) for start in range(len(spectra) - frames + 1)]
    windows = [window / np.linalg.norm(window) for window in windows]
    again = [any(windows[i] @ windows[j] >= 0.97 for j in range(i - frames + 1)) for i in range(frames, len(windows))]
    assert 0 < sum(again) < len(again)
    assert repeated_share(clip, window=0.1, hop=0.02, similarity=0.97) == pytest.approx(sum(again) / len(again))


def test_guards_are_means_of_a_prompts_clips() -> None:
    silent, loud = Waveform(torch.zeros(1, 32000), 8000), tone(440, 4.0, level=2.0)
    samples = samples_of([[silent, loud], [loud, loud], [noise(0, 4.0, level=0.1), silent]])
    for metric, expected in (
        (SilenceRate(), [0.5, 0.0, 0.5]),
        (AudioRepetition(), [0.5, 1.0, 0.0]),
        (ClippingRate(), [clipped_share(loud) / 2, clipped_share(loud), 0.0]),
    ):
        metric.update(samples)
        torch.testing.assert_close(metric.per_prompt(), torch.tensor(expected))
        assert metric.axis == "guard" and metric.higher_is_better is False
    with pytest.raises(ConfigError, match="Metric `SilenceRate`: expected sound, but the model writes a str"):
        SilenceRate().update(Samples(["w1"], ["w2"], samples.rollout))


def test_wrong_settings_are_named() -> None:
    assert "expected decibels below 0, but got 3" in str(SilenceRate(level=3).problems()[0])
    assert "Key `frame`: expected a number above 0" in str(SilenceRate(frame=0).problems()[0])
    assert "Key `level`: expected a number above 0" in str(ClippingRate(level=-1.0).problems()[0])
    assert "Key `hop`: expected at most `window`, 0.1," in str(AudioRepetition(window=0.1, hop=0.2).problems()[0])
    assert "expected a number in (0, 1], but got 1.5" in str(AudioRepetition(similarity=1.5).problems()[0])
    assert not SilenceRate().problems() + ClippingRate().problems() + AudioRepetition().problems()


# Adherence and diversity


def test_adherence_and_diversity_under_clap_and_another(clap: CLAP, second: AudioEmbedder) -> None:
    samples = samples_of([[tone(200), noise(0), tone(900)], [tone(300)] * 3], ["calm piano", "loud rock"])
    vectors_BGD = clap.embed(samples.outputs).unflatten(0, (2, 3))
    texts_BD = clap.embed(samples.prompts)
    adherence = CLAPAdherence(clap)
    adherence.update(samples)
    expected_B = torch.einsum("bgd,bd->bg", vectors_BGD, texts_BD).mean(1)
    torch.testing.assert_close(adherence.per_prompt(), expected_B)
    for embedder in (clap, second):
        diversity, vendi = PairwiseCosineDiversity(embedder), VendiScore(embedder)
        for metric in (diversity, vendi):
            metric.update(samples)
        group_GD = embedder.embed(samples.outputs[:3])
        pairs = [float(1 - group_GD[i] @ group_GD[j]) for i, j in combinations(range(3), 2)]
        torch.testing.assert_close(diversity.per_prompt(), torch.tensor([sum(pairs) / 3, 0.0]), atol=1e-5, rtol=1e-4)
        assert vendi.per_prompt()[0] > 1.01 and float(vendi.per_prompt()[1]) == pytest.approx(1.0, abs=1e-3)


def test_silent_clips_earn_no_diversity(clap: CLAP, second: AudioEmbedder) -> None:
    """Encoders give silence a vector of its own; its pairs count 0, and what is left keeps its distances."""
    silence = Waveform(torch.zeros(1, 8000), 8000)
    group = [tone(200), noise(0), tone(900)]
    assert float(cosine_distances(clap.embed([silence, noise(0)]))[0, 1]) > 1e-4
    for embedder in (clap, second):
        pairs = [PairwiseCosineDiversity(embedder).score(samples_of([clips])) for clips in (group, [*group, silence])]
        torch.testing.assert_close(pairs[1], pairs[0] * 3 / 6)
        reward_BG = PairwiseDiversity(embedder)(samples_of([[silence, *group], [silence] * 4])).reward_BG
        assert reward_BG[0, 0] == 0 < reward_BG[0, 2] and not reward_BG[1].any()
        assert EmptyShare(embedder).score(samples_of([[silence, *group]])).tolist() == [0.25]


# FAD and KAD


def test_frechet_distance_is_scipys() -> None:
    random = torch.Generator().manual_seed(0)
    x_ND, y_RD = torch.randn(40, 6, generator=random), torch.randn(50, 6, generator=random) * 1.3 + 0.2
    means = [part.double().numpy().mean(0) for part in (x_ND, y_RD)]
    covs = [np.cov(part.double().numpy(), rowvar=False) for part in (x_ND, y_RD)]
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * root)
    assert float(frechet_distance(x_ND, y_RD)) == pytest.approx(expected, rel=1e-9)
    assert abs(float(frechet_distance(x_ND, x_ND))) < 1e-9
    # Fewer vectors than dimensions: singular covariances.
    assert math.isfinite(frechet_distance(x_ND[:4], y_RD))


def test_kernel_distance_is_a_double_loop() -> None:
    random = torch.Generator().manual_seed(1)
    x_ND, y_RD = torch.randn(7, 4, generator=random), torch.randn(9, 4, generator=random) + 0.5
    x, y = x_ND.double().numpy(), y_RD.double().numpy()
    sigma = np.median([np.linalg.norm(a - b) for a, b in combinations(y, 2)])  # of 36: the mean of the middle two

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-((a - b) @ (a - b)) / (2 * sigma**2))

    expected = (
        sum(k(a, b) for a, b in combinations(x, 2)) / math.comb(7, 2)
        + sum(k(a, b) for a, b in combinations(y, 2)) / math.comb(9, 2)
        - 2 * sum(k(a, b) for a, b in product(x, y)) / 63
    )
    assert float(kernel_distance(x_ND, y_RD)) == pytest.approx(expected, rel=1e-9)
    assert float(kernel_distance(x_ND, y_RD, bandwidth=float(sigma))) == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(kernel_distance(x_ND, y_RD[:1].expand(3, 4)))  # a reference of copies has no distances


def test_kernels_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(8)
    x_ND, y_RD = torch.randn(23, 4, generator=random), torch.randn(50, 4, generator=random)
    whole = kernel_distance(x_ND, y_RD)
    sizes: list[int] = []
    cdist = torch.cdist

    def counted(a: torch.Tensor, b: torch.Tensor, **settings: str) -> torch.Tensor:
        sizes.append(len(a) * len(b))
        return cdist(a, b, **settings)

    monkeypatch.setattr(torch, "cdist", counted)
    monkeypatch.setattr(kernels, "CELLS", 7 * 50)
    torch.testing.assert_close(kernel_distance(x_ND, y_RD), whole, rtol=1e-12, atol=0)
    assert max(sizes) <= 7 * 50
    monkeypatch.setattr(kernels, "CELLS", 1)  # a row at a time, at the least
    torch.testing.assert_close(kernel_distance(x_ND, y_RD), whole, rtol=1e-12, atol=0)


def test_the_bandwidth_of_a_large_reference_is_that_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    many = torch.randn(3000, 8, generator=torch.Generator().manual_seed(9))
    exact = float(np.median(torch.pdist(many.double()).numpy()))
    assert kernels.median_distance(many) == pytest.approx(exact, rel=1e-12)
    monkeypatch.setattr(kernels, "MOST_FOR_BANDWIDTH", 500)
    sampled = kernels.median_distance(many)
    assert sampled != exact and sampled == pytest.approx(exact, rel=0.02) and sampled == kernels.median_distance(many)


def test_the_reference_is_compared_with_itself_once(
    clap: CLAP, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    within = corpus.mean_kernel_within
    monkeypatch.setattr(corpus, "mean_kernel_within", lambda x, sigma: (sizes.append(len(x)), within(x, sigma))[1])
    metric = KAD(clap, reference, seconds=0.5).load()
    metric.update(samples_of([[noise(4 * p + g) for g in range(3)] for p in range(5)]))
    metric.per_prompt()
    metric.compute()
    assert sizes.count(len(metric._clips())) == 1


def test_kernel_distance_is_unbiased() -> None:
    # Two sets of one distribution: the biased estimate would be about 2 (1 - E k) / 5, far above 0.
    random = torch.Generator().manual_seed(2)
    values = [
        float(kernel_distance(*torch.randn(2, 5, 3, generator=random), bandwidth=1.5))
        for _ in range(2000)
    ]  # fmt: skip
    assert abs(np.mean(values)) < 4 * scipy.stats.sem(values) < 0.02


def test_jackknife_values_average_to_the_statistic_and_spread_as_it_does() -> None:
    random = torch.Generator().manual_seed(3)
    groups, reference = torch.randn(6, 2, 3, generator=random), torch.randn(20, 3, generator=random)

    def mean_gap(vectors: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return vectors.double().mean() - others.double().mean()

    # Of a mean, the values are the prompts' own means.
    expected = groups.mean((1, 2)) - reference.mean()
    torch.testing.assert_close(jackknife(groups, reference, mean_gap), expected)
    values = jackknife(groups, reference, kernel_distance)
    whole = kernel_distance(groups.flatten(0, 1), reference)
    torch.testing.assert_close(values.mean(), whole.float())
    left_out = [kernel_distance(torch.cat([groups[:p], groups[p + 1 :]]).flatten(0, 1), reference) for p in range(6)]
    variance = 5 / 6 * sum((value - sum(left_out) / 6) ** 2 for value in left_out)
    torch.testing.assert_close((values.var() / 6).double(), variance, rtol=1e-4, atol=1e-9)
    assert jackknife(groups[:1, :1], reference, kernel_distance).isnan().all()
    torch.testing.assert_close(jackknife(groups[:1], reference, mean_gap), expected[:1])


@pytest.mark.parametrize("kind", [FAD, KAD])
def test_distances_to_real_sound(kind: type[FAD | KAD], clap: CLAP, reference: str) -> None:
    like = [[noise(10 * p + g + 5, level=0.1) for g in range(4)] for p in range(3)]
    unlike = [[tone(200 + 100 * p + 30 * g) for g in range(4)] for p in range(3)]
    metric = kind(clap, reference, seconds=0.5)
    assert not metric.problems() and metric.axis == "guard" and metric.higher_is_better is False
    metric.load()
    # Four clips of half a second a file, and 0.2 s that are too short to count.
    files = [read_audio(Path(reference, name)).samples[:, :16000] for name in ("0.wav", "deeper/1.wav")]
    clips = [Waveform(part, 8000) for file in files for part in file.split(4000, dim=1)]
    function = frechet_distance if kind is FAD else lambda x, y: 100 * kernel_distance(x, y)
    values = {}
    for name, groups in (("like", like), ("unlike", unlike)):
        metric.reset()
        for group, prompt in zip(groups, ("rock", "jazz", "calm"), strict=True):
            metric.update(samples_of([group], [prompt]))
        values[name] = float(metric.compute())
        vectors = clap.embed([clip for group in groups for clip in group])
        assert values[name] == pytest.approx(float(function(vectors, clap.embed(clips))), rel=1e-4)
        assert metric.per_prompt().shape == (3,)
        assert float(metric.per_prompt().mean()) == pytest.approx(values[name], rel=1e-5)
    assert values["unlike"] > 3 * abs(values["like"])
    torch.testing.assert_close(metric.score(samples_of(unlike)), metric.per_prompt())


def test_distances_refuse_what_is_no_reference(clap: CLAP, tmp_path: Path) -> None:
    assert "expected a folder with sound files" in str(FAD(clap, str(tmp_path)).problems()[0])
    assert "Key `seconds`: expected a number above 0" in str(KAD(clap, str(tmp_path), seconds=0).problems()[0])
    write_audio(tmp_path / "one.wav", noise())
    with pytest.raises(ConfigError, match=r"expected at least two clips of 10 s in `.*`, but it holds 0"):
        FAD(clap, str(tmp_path)).load()


def test_a_recipe_names_them(clap: CLAP, reference: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SampleMetric, "metric", required=True)
    embedder = {"class_path": "cfg_distill.embedders.CLAP", "init_args": {"path": clap.path}}
    for name, arguments in (
        ("CLAPAdherence", {"embedder": embedder}),
        ("FAD", {"embedder": embedder, "reference": reference, "seconds": 0.5}),
        ("SilenceRate", {"level": -50.0}),
    ):
        spec = {"class_path": f"cfg_distill.metrics.{name}", "init_args": arguments}
        metric = parser.instantiate_classes(parser.parse_object({"metric": spec})).metric
        assert type(metric).__name__ == name and not metric.problems()


@pytest.mark.parametrize("metric", [AudioRepetition, ClippingRate, SilenceRate])
def test_autocast_changes_nothing(metric: type[SampleMetric]) -> None:
    clips = [Waveform(torch.cat([noise(s, 0.7).samples, noise(s % 2, 0.7).samples], -1), 8000) for s in range(4)]
    samples = samples_of([clips[:2], clips[2:]])
    plain = metric().score(samples)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metric().score(samples), plain)


def test_loops_are_told_apart_under_autocast_as_finely_as_without() -> None:
    first = noise(0, 0.7).samples
    clip = Waveform(torch.cat([first, first + noise(1, 0.7, level=0.05).samples], -1), 8000)
    bounds = [0.97 + step * 0.0001 for step in range(300)]
    plain = [repeated_share(clip, similarity=bound) for bound in bounds]
    assert len(set(plain)) > 2
    with torch.autocast("cpu", torch.bfloat16):
        assert [repeated_share(clip, similarity=bound) for bound in bounds] == plain


def test_distances_between_sets_keep_their_digits_under_autocast() -> None:
    vectors_ND, reference_RD = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0)).unbind()
    for statistic in (frechet_distance, kernel_distance):
        plain = statistic(vectors_ND, reference_RD)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(statistic(vectors_ND, reference_RD), plain)
