"""Intervals against tables, t tests of scipy, and against the truth in simulations of prompts, samples and training runs."""

from __future__ import annotations

from math import lgamma, log, pi

import numpy as np
import pytest
from scipy import stats

from cfg_distill.evaluation.intervals import LEAST_PROMPTS, Resampler, outer_share, shortage, t_quantile

RUNS, RESAMPLES = 300, 300  # the standard error of a coverage of .95 is .013; docstrings have 20,000 runs


def mean(means_MB: np.ndarray) -> np.ndarray:
    return means_MB[0]


def between(means_MB: np.ndarray) -> np.ndarray:
    return means_MB[0] - means_MB[1]


def drawn(random: np.random.Generator, training: float, seeds: int = 3, prompts: int = 24) -> np.ndarray:
    """Values ``[R, P, S]`` with mean 0: training runs, prompts, their interaction and two samples of each."""
    return (
        random.normal(0, training, (seeds, 1, 1))
        + random.normal(0, 0.03, (seeds, prompts, 1))
        + random.normal(0, 0.06, (seeds, prompts, 2))
    )


# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: shares .9, .95, .975 and .995 of Student's t.
TABLE = {
    1: (3.078, 6.314, 12.706, 63.657),
    2: (1.886, 2.920, 4.303, 9.925),
    3: (1.638, 2.353, 3.182, 5.841),
    7: (1.415, 1.895, 2.365, 3.499),
    23: (1.319, 1.714, 2.069, 2.807),
    96: (1.290, 1.661, 1.985, 2.628),
}


@pytest.mark.parametrize(("freedom", "row"), TABLE.items())
def test_quantiles_of_students_t_are_those_of_the_table(freedom, row):
    assert [t_quantile(share, freedom) for share in (0.9, 0.95, 0.975, 0.995)] == pytest.approx(row, abs=6e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3.5, 12.25, 400, 3000])
@pytest.mark.parametrize("share", [0.6, 0.95, 0.975])
def test_the_density_of_students_t_up_to_a_quantile_is_its_share(share, freedom):
    """Degrees of freedom need not be whole numbers."""
    log_height = lgamma((freedom + 1) / 2) - lgamma(freedom / 2) - log(freedom * pi) / 2
    at_G, step = np.linspace(0, t_quantile(share, freedom), 100_001, retstep=True)
    density_G = np.exp(log_height - (freedom + 1) / 2 * np.log1p(at_G**2 / freedom))
    inside = step * (density_G.sum() - (density_G[0] + density_G[-1]) / 2)
    assert 0.5 + inside == pytest.approx(share, abs=1e-8)


@pytest.mark.parametrize("prompts", [3, 8, 24, 96])
def test_percentiles_of_few_prompts_are_moved_outwards(prompts):
    expected = stats.norm.cdf(-np.sqrt(prompts / (prompts - 1)) * stats.t.ppf(0.975, prompts - 1))
    assert outer_share(prompts) == pytest.approx(expected)
    assert outer_share(prompts) < 0.025


def test_two_prompts_have_an_interval_of_a_front():
    """The share inside of it is 1 in floating point. Its ends are the resamples that hold one prompt twice."""
    found = Resampler.of(np.array([[[1.0], [3.0]]])).interval(mean, corrected=True)
    assert found == (2.0, 1.0, 3.0)


def test_an_interval_of_normal_prompts_is_that_of_a_t_test():
    values_P = np.random.default_rng(0).normal(size=40)
    found = Resampler.of(values_P[None, :, None], resamples=20_000).interval(mean)
    expected = stats.t.interval(0.95, 39, values_P.mean(), stats.sem(values_P))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.02)


def test_prompts_without_a_value_make_no_interval_narrower():
    """Eight values among 96 prompts are eight values: the interval is about as wide as that of a t test of them."""
    random, ratios = np.random.default_rng(5), []
    for run in range(100):
        values_P = np.full(96, np.nan)
        values_P[random.permutation(96)[:8]] = random.normal(size=8)
        means = Resampler.of(values_P[None, :, None], RESAMPLES, run)
        assert means.prompts == 8
        found, known = means.interval(mean), values_P[~np.isnan(values_P)]
        low, high = stats.t.interval(0.95, 7, known.mean(), stats.sem(known))
        ratios.append((found.high - found.low) / (high - low))
    assert np.mean(ratios) > 0.95  # taken for 96 prompts, they were 0.85


def test_the_least_number_of_values_of_several_metrics_counts():
    known_RPS, few_RPS = np.zeros((1, 24, 2)), np.full((1, 24, 2), np.nan)
    few_RPS[0, :3, 1] = 1.0
    assert Resampler([[known_RPS], [few_RPS]], [""]).prompts == 3
    assert Resampler([[known_RPS]], [""]).prompts == 24
    assert Resampler([[known_RPS[:, :1]]], [""]).prompts == 1  # its two samples are no two prompts


def test_few_prompts_are_said_in_words():
    assert shortage(1) == "1 prompt with a value is fewer than the 8 that an interval needs"
    assert shortage(LEAST_PROMPTS - 1).startswith("7 prompts with a value are") and shortage(LEAST_PROMPTS) == ""


def test_training_that_dominates_gives_a_t_test_of_its_runs():
    """Prompts and samples without noise: what is left is a t interval of three numbers."""
    runs_R = np.array([0.1, 0.3, 0.8])
    values_RPS = np.broadcast_to(runs_R[:, None, None], (3, 24, 2))
    found = Resampler.of(values_RPS).interval(mean)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, runs_R.mean(), stats.sem(runs_R)))


def test_systems_of_one_chain_share_their_training_seeds():
    """What a training seed does to a student and to its merge cancels between them; between two chains it adds up."""
    runs_R = np.array([0.1, 0.3, 0.8])
    values_RPS = np.broadcast_to(runs_R[:, None, None], (3, 24, 2))
    together = Resampler([[values_RPS + 0.1, values_RPS]], ["tunes", "tunes"]).interval(between)
    assert (together.low, together.high) == pytest.approx((0.1, 0.1))
    apart = Resampler([[values_RPS + 0.1, values_RPS]], ["one", "other"]).interval(between)
    half = stats.t.ppf(0.975, 2) * np.sqrt(2) * stats.sem(runs_R)
    assert (apart.low, apart.high) == pytest.approx((0.1 - half, 0.1 + half))


def test_a_base_without_training_is_compared_with_trained_systems():
    runs_R = np.array([0.1, 0.3, 0.8])
    student_RPS = np.broadcast_to(runs_R[:, None, None], (3, 24, 2))
    found = Resampler([[student_RPS, np.zeros((1, 24, 2))]], ["chain", ""]).interval(between)
    assert found == pytest.approx(Resampler.of(student_RPS).interval(mean))


def test_systems_sampled_under_different_seeds_are_paired_by_prompts():
    values_RPS = np.random.default_rng(0).normal(size=(1, 24, 1))
    left_RPS = np.concatenate([values_RPS - 0.1, values_RPS + 0.3], axis=2)
    found = Resampler([[left_RPS, values_RPS]], ["", ""]).interval(between)
    assert found == pytest.approx((0.1, 0.1, 0.1))


def test_the_same_seed_gives_the_same_interval():
    values_RPS = drawn(np.random.default_rng(0), 0.01)
    assert Resampler.of(values_RPS, 500, 1).interval(mean) == Resampler.of(values_RPS, 500, 1).interval(mean)
    assert Resampler.of(values_RPS, 500, 1).interval(mean) != Resampler.of(values_RPS, 500, 2).interval(mean)


def covered(training: float, seeds: int, prompts: int = 24) -> float:
    """How often the interval of one mean holds the truth, which is 0."""
    random = np.random.default_rng(1)
    hits = 0
    for run in range(RUNS):
        shared_1P1 = random.normal(0, 0.04, (1, prompts, 1))  # what a prompt does to every training run
        values_RPS = shared_1P1 + drawn(random, training, seeds, prompts)
        low, high = Resampler.of(values_RPS, RESAMPLES, run).interval(mean)[1:]
        hits += low <= 0 <= high
    return hits / RUNS


@pytest.mark.parametrize("training", [0.0, 0.01, 0.05])
def test_three_training_seeds_cover_the_truth_as_often_as_they_say(training):
    """Training that adds nothing, as much as the prompts' noise (.01), or nearly all: 2000 runs gave .970, .961, .961."""
    assert covered(training, seeds=3) >= 0.93


def test_a_single_mean_of_24_prompts_covers_95_percent():
    """Plain percentiles covered .928 here; 2000 runs gave .942."""
    assert covered(0.0, seeds=1) >= 0.93


def test_percentiles_of_three_training_runs_would_cover_too_little():
    """Why there is a t quantile: a bootstrap that redraws three runs like prompts."""
    random, hits = np.random.default_rng(2), 0
    for _ in range(RUNS):
        runs_R = (random.normal(0, 0.05, (3, 1, 1)) + random.normal(0, 0.04, (1, 24, 1))).mean((1, 2))
        drawn_B = runs_R[random.integers(3, size=(500, 3))].mean(1)
        low, high = np.quantile(drawn_B, [0.025, 0.975])
        hits += low <= 0 <= high
    assert hits / RUNS < 0.85


@pytest.mark.parametrize("training", [0.0, 0.01])
def test_two_equal_chains_are_rarely_called_different(training):
    """A false verdict `above` may come up in .025 of the studies; 2000 runs gave .007 and .010."""
    random, above = np.random.default_rng(3), 0
    for run in range(RUNS):
        shared_1P1 = random.normal(0, 0.04, (1, 24, 1))
        systems = [shared_1P1 + drawn(random, training) for _ in range(2)]
        above += Resampler([systems], ["one", "other"], RESAMPLES, run).interval(between).low > 0
    assert above / RUNS <= 0.025


def test_sampling_noise_is_counted_once():
    """Prompts without any effect of their own: to redraw the sampling seeds as well gave .984."""
    random, hits = np.random.default_rng(4), 0
    for run in range(RUNS):
        low, high = Resampler.of(random.normal(size=(1, 24, 2)), RESAMPLES, run).interval(mean)[1:]
        hits += low <= 0 <= high
    assert 0.92 <= hits / RUNS <= 0.97
