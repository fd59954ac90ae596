"""Hypervolume and Pareto front by brute force; the bootstrap against scipy and against what clusters must do."""

import importlib

import numpy as np
import pytest
import scipy.stats

from cfg_distill.evaluation import Headline
from cfg_distill.evaluation.front import bootstrap_interval, hypervolume, hypervolumes, hypervolumes_of, pareto


def test_hypervolume_against_a_grid():
    points = np.random.default_rng(0).integers(0, 20, size=(12, 2))
    covered = {(x, y) for px, py in points for x in range(3, px) for y in range(5, py)}
    assert hypervolume(points, reference=(3, 5)) == len(covered)


def test_hypervolume_ignores_order_repeats_and_beaten_points():
    points = [[1.0, 4.0], [3.0, 2.0], [2.0, 3.0]]
    volume = hypervolume(points, (0.0, 0.0))
    assert volume == 9.0
    assert hypervolume([*reversed(points), points[0], [1.0, 1.0]], (0.0, 0.0)) == volume
    assert hypervolume([[-1.0, 9.0], [9.0, -1.0]], (0.0, 0.0)) == 0.0
    assert hypervolume(np.empty((0, 2)), (0.0, 0.0)) == 0.0


def test_hypervolumes_of_resamples_are_those_of_one_after_another():
    quality_MB, diversity_MB = np.random.default_rng(8).integers(-3, 9, size=(2, 7, 40)).astype(float)
    squares = [  # of the grid, below and left of any point
        {(x, y) for px, py in zip(*pair, strict=True) for x in range(1, int(px)) for y in range(-1, int(py))}
        for pair in zip(quality_MB.T, diversity_MB.T, strict=True)
    ]
    assert hypervolumes_of(quality_MB, diversity_MB, (1.0, -1.0)).tolist() == [len(covered) for covered in squares]


def test_pareto_by_brute_force():
    points = np.random.default_rng(1).integers(0, 6, size=(30, 2)).tolist()
    expected = [
        not any((a >= x and b >= y) and (a > x or b > y) for a, b in points)
        for x, y in points
    ]  # fmt: skip
    assert pareto(points).tolist() == expected
    assert 0 < sum(expected) < len(points)


def test_points_of_another_shape():
    with pytest.raises(ValueError, match=r"shape \[M, 2\] but got \(3,\)"):
        pareto([1.0, 2.0, 3.0])


def entry(name: str, kind: str, quality: float, **diversity: float) -> dict:
    def mean(value: float) -> dict:
        return {"mean": value, "low": value, "high": value}

    return {
        "name": name,
        "kind": kind,
        "quality": {"q": mean(quality)},
        "diversity": {metric: mean(value) for metric, value in diversity.items()},
    }


POINTS = [
    entry("base", "base", 0.2, d=0.8, e=-1.0),
    entry("guidance", "guidance", 0.8, d=0.2, e=-3.0),
    entry("half", "merge", 0.7, d=0.7, e=-2.0),
    entry("beaten", "student", 0.1, d=0.1, e=-4.0),
    entry("silent", "student", 9.0),
]


def test_hypervolumes_of_each_kind_and_pair():
    volumes = hypervolumes(POINTS, Headline("q", "d", "e"))
    assert [(volume["quality"], volume["diversity"]) for volume in volumes] == [("q", "d"), ("q", "e")]
    first, second = volumes
    assert first["reference"] == {"q": 0.0, "d": 0.0}
    assert first["baselines"] == pytest.approx(0.2 * 0.8 + 0.6 * 0.2)
    assert first["students"] == pytest.approx(0.7 * 0.7)
    assert first["all"] == pytest.approx(0.2 * 0.8 + 0.5 * 0.7 + 0.1 * 0.2)
    assert first["front"] == ["base", "guidance", "half"]  # not what is beaten, and not what lacks the metric
    assert second["reference"] == {"q": 0.0, "e": -4.0}  # below all, where 0 is not
    assert second["baselines"] == pytest.approx(0.2 * 3 + 0.6 * 1)


def test_hypervolumes_where_there_is_nothing():
    assert hypervolumes(POINTS, None) == []
    (volume,) = hypervolumes(POINTS[:1], Headline("q", "d"))
    assert volume["students"] is None and volume["baselines"] == volume["all"]
    (volume,) = hypervolumes([entry("any", "model", 0.5, d=0.5)], Headline("q", "d"))  # may be a student or not
    assert volume["students"] is volume["baselines"] is None and volume["all"] == 0.25
    (volume,) = hypervolumes(POINTS, Headline("q", "other"))
    assert volume["all"] is None and volume["front"] == []


def test_names_of_the_room_that_it_left_are_the_same():
    metrics = importlib.import_module("cfg_distill.metrics")
    assert (metrics.pareto, metrics.hypervolume, metrics.bootstrap_interval) == (
        pareto,
        hypervolume,
        bootstrap_interval,
    )


def test_bootstrap_against_scipy():
    values = np.random.default_rng(2).gamma(2.0, size=60)
    found = bootstrap_interval(values, resamples=5000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.03)
    assert found.high == pytest.approx(theirs.high, abs=0.03)
    assert theirs.high - theirs.low > 0.5


def test_seeds_of_a_prompt_are_no_new_prompts():
    """With all the variance between prompts, more seeds must not narrow the interval; between seeds, they must."""
    random = np.random.default_rng(4)
    between = np.repeat(random.normal(size=(30, 1)), 20, axis=1)
    once, often = bootstrap_interval(between[:, :1]), bootstrap_interval(between)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.15)
    within = random.normal(size=(30, 20))
    once, often = bootstrap_interval(within[:, :1]), bootstrap_interval(within)
    assert often.high - often.low < 0.5 * (once.high - once.low)


def test_seeds_are_drawn_too():
    """One prompt: all that can vary is its seeds."""
    values = np.array([[0.0, 1.0, 2.0, 3.0]])
    interval = bootstrap_interval(values, resamples=4000)
    # Four values: the percentiles lie further out than .025 and .975.
    level = 1 - 2 * scipy.stats.norm.cdf(-np.sqrt(4 / 3) * scipy.stats.t.ppf(0.975, 3))
    theirs = scipy.stats.bootstrap(
        (values[0],), np.mean, confidence_level=level, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert interval.low == pytest.approx(theirs.low, abs=0.26)
    assert interval.high == pytest.approx(theirs.high, abs=0.26)
    assert interval.low < 1 < 2 < interval.high


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(6)
    intervals = [bootstrap_interval(random.normal(size=40), resamples=300, seed=trial) for trial in range(200)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.88 <= covered <= 0.99


def test_bootstrap_is_seeded_and_leaves_nan_out():
    values = np.random.default_rng(7).normal(size=(12, 3))
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    holed = np.vstack([values, np.full((2, 3), np.nan)])
    assert bootstrap_interval(holed).mean == pytest.approx(values.mean())
    assert np.isfinite(bootstrap_interval([np.nan, 1.0])).all()
    assert bootstrap_interval(values, level=0.5).high < bootstrap_interval(values).high
    with pytest.raises(ValueError, match="with a value"):
        bootstrap_interval([np.nan])
