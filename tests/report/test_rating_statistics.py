"""Statistics of ratings, each against something independent: published examples, scipy, textbook formulas, simulation."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from cfg_distill.report.rating_statistics import (
    Spread,
    crossed_interval,
    krippendorff_alpha,
    more_to_decide,
    spread,
    win_interval,
)

_ = math.nan
# Krippendorff, 2011, "Computing Krippendorff's alpha-reliability", section C and D: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


def test_alpha_of_the_published_example():
    assert krippendorff_alpha(OBSERVERS) == pytest.approx(0.815, abs=5e-4)


def alpha_by_pairs(ratings: np.ndarray) -> float:
    """Ordinal alpha from its definition in words: pairs of ratings, no matrices of coincidences."""
    units = [[value for value in unit if not math.isnan(value)] for unit in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    everything = [value for unit in units for value in unit]

    def squared(one: float, other: float) -> float:
        low, high = sorted((one, other))
        between = sum(low <= value <= high for value in everything)
        return (between - (everything.count(low) + everything.count(high)) / 2) ** 2

    within = sum(sum(squared(*pair) for pair in permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    across = sum(squared(*pair) for pair in permutations(everything, 2)) / (len(everything) - 1)
    return 1 - within / across


def test_alpha_is_its_definition_by_pairs():
    random = np.random.default_rng(0)
    for raters in (2, 3, 5):
        ratings = random.integers(1, 6, (raters, 20)).astype(float)
        ratings[random.random(ratings.shape) < 0.2] = _
        assert krippendorff_alpha(ratings) == pytest.approx(alpha_by_pairs(ratings))


def test_alpha_where_it_means_nothing():
    assert math.isnan(krippendorff_alpha([[1, 2, _], [_, _, 3]]))  # no unit with two ratings
    assert math.isnan(krippendorff_alpha([[3, 3], [3, 3]]))  # no value to tell from another
    assert krippendorff_alpha([[1, 2, 5], [1, 2, 5]]) == 1


def test_spread_is_the_analysis_of_variance():
    """On full data the moments are those of the two-way layout without replication."""
    random = np.random.default_rng(1)
    values = random.normal(size=(9, 4)) + 2 * random.normal(size=(9, 1)) + random.normal(size=(1, 4))
    prompts, raters = values.shape
    rows, columns, mean = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    of_prompts = raters * ((rows - mean) ** 2).sum() / (prompts - 1)
    of_raters = prompts * ((columns - mean) ** 2).sum() / (raters - 1)
    of_rest = ((values - rows - columns + mean) ** 2).sum() / ((prompts - 1) * (raters - 1))
    expected = ((of_prompts - of_rest) / raters, (of_raters - of_rest) / prompts, of_rest)
    assert spread(values) == pytest.approx(expected)


def test_spread_with_gaps_and_with_one_rater():
    random = np.random.default_rng(2)
    values = 2 * random.normal(size=(400, 1)) + random.normal(size=(1, 40)) + 0.5 * random.normal(size=(400, 40))
    values[random.random(values.shape) < 0.5] = _
    assert spread(values) == pytest.approx((4, spread(values).rater, 0.25), rel=0.2)
    assert spread(values).rater == pytest.approx(1, rel=0.5)
    assert spread([[1.0], [2.0], [4.0]]) == pytest.approx((np.var([1, 2, 4], ddof=1), 0, 0))
    assert spread([[1.0, 2.0, 4.0]]) == pytest.approx((0, np.var([1, 2, 4], ddof=1), 0))


def test_raters_that_share_no_prompt_differ_all_the_same():
    """Their difference was dropped, and so was most of the interval's width."""
    random = np.random.default_rng(4)
    values = np.full((8000, 2000), _)
    for rater in range(2000):
        own = 2 * random.normal(size=4) + 3 * random.normal()  # a prompt's variance is 4, a rater's 9
        values[4 * rater : 4 * rater + 4, rater] = own
    found = spread(values)
    assert found.prompt == pytest.approx(4, rel=0.1) and found.rater == pytest.approx(9, rel=0.1) and found.rest == 0


def test_an_interval_of_one_rater_is_students():
    values = np.random.default_rng(3).normal(size=(40, 1))
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values[:, 0]))
    found = crossed_interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert crossed_interval(values, bounds=(0.0, 0.1)).high == 0.1
    # Values that are missing count nowhere.
    padded = np.full((60, 2), _)
    padded[:40, 0] = values[:, 0]
    assert crossed_interval(padded).mean == pytest.approx(found.mean)
    with pytest.raises(ValueError, match="a value"):
        crossed_interval([[_]])


def simulated(random: np.random.Generator, variances: Spread, prompts: int, raters: int, mean: float) -> np.ndarray:
    a, b, e = np.sqrt(variances)
    shapes = ((a, (prompts, 1)), (b, (1, raters)), (e, (prompts, raters)))
    return sum((scale * random.normal(size=shape) for scale, shape in shapes), np.full((1, 1), mean))


@pytest.mark.parametrize(
    ("variances", "prompts", "raters"),
    [
        (Spread(0.25, 0.04, 1.0), 12, 3),
        (Spread(0.25, 0.25, 1.0), 12, 6),
        (Spread(0.25, 0.0, 1.0), 40, 3),
        (Spread(0.5, 0.0, 1.0), 12, 1),
    ],
)
def test_coverage(variances, prompts, raters):
    """95 % intervals hold the true mean at least 91 times in a hundred, and are not so wide that they always do."""
    random, hits = np.random.default_rng(4), 0
    for seed in range(400):
        found = crossed_interval(simulated(random, variances, prompts, raters, 3.0), resamples=400, seed=seed)
        hits += found.low <= 3.0 <= found.high
    assert 0.91 <= hits / 400 <= 0.99


def test_coverage_where_raters_stopped_early():
    """Of three raters two rated 4 of 24 prompts: the mean is nearly that of one rater."""
    random, hits, variances = np.random.default_rng(6), 0, Spread(0.5, 0.5, 1.0)
    for seed in range(400):
        values = simulated(random, variances, 24, 3, 3.0)
        values[4:, 1:] = _
        found = crossed_interval(values, resamples=400, seed=seed)
        hits += found.low <= 3.0 <= found.high
    assert hits / 400 >= 0.9


@pytest.mark.parametrize(
    ("difference", "variances", "prompts", "raters"),
    [
        (0.5, Spread(1.0, 0.02, 1.0), 10, 6),
        (0.35, Spread(0.25, 0.0, 1.0), 12, 4),
        (0.6, Spread(0.1, 0.1, 1.0), 12, 3),
    ],
)
def test_the_further_ratings_decide_four_times_in_five(difference, variances, prompts, raters):
    more = more_to_decide(difference, variances, prompts, raters)
    assert more.prompts is not None or more.raters is not None

    def decided(prompts: int, raters: int) -> float:
        random, found = np.random.default_rng(5), 0
        for seed in range(300):
            values = simulated(random, variances, prompts, raters, difference)
            found += crossed_interval(values, resamples=300, seed=seed).low > 0
        return found / 300

    for further in filter(None, (more.prompts and (more.prompts, 0), more.raters and (0, more.raters))):
        assert 0.7 <= decided(prompts + further[0], raters + further[1]) <= 0.9
    assert decided(prompts, raters) < 0.7


def test_what_no_number_decides():
    assert more_to_decide(0.0, Spread(1, 1, 1), 10, 3) == (None, None)
    # Raters who differ are not averaged out by prompts, nor prompts by raters.
    assert more_to_decide(0.1, Spread(0, 1, 0), 10, 3).prompts is None
    assert more_to_decide(0.1, Spread(1, 0, 0), 10, 3).raters is None
    assert more_to_decide(0.5, Spread(1, 0, 0), 10, 1).raters is None  # one rater says nothing of another
    assert more_to_decide(5.0, Spread(1, 0, 0), 10, 3) == (0, 0)


def test_wins_that_all_agree_have_the_exact_bound():
    exact = stats.binomtest(12, 12).proportion_ci(0.95, method="exact")
    assert win_interval(np.ones((12, 3))) == pytest.approx((1.0, exact.low, 1.0))
    assert win_interval(np.zeros((12, 3))) == pytest.approx((0.0, 0.0, 1 - exact.low))
    mixed = win_interval(np.random.default_rng(6).choice([0, 0.5, 1], (30, 3)))
    assert 0 <= mixed.low < mixed.mean < mixed.high <= 1
