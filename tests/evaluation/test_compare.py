"""Paired comparisons against scipy: its bootstrap, and its linear programmes for mixtures of systems."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from cfg_distill.evaluation import System, difference, height_above
from cfg_distill.evaluation.compare import mixture_diversity, paired


def system(name: str, quality: np.ndarray, diversity: np.ndarray, kind: str = "base") -> System:
    """A system with values ``[S, P]``."""
    return System(
        name,
        kind,  # type: ignore[arg-type]
        model=name,
        temperature=1.0,
        guidance=1.0,
        samples=4,
        seeds=list(range(len(quality))),
        prompts=[f"prompt {n}" for n in range(quality.shape[1])],
        axes={"q": "quality", "d": "diversity"},
        values={"q": quality.tolist(), "d": diversity.tolist()},
    )


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 30))


def test_a_difference_is_that_of_scipys_paired_bootstrap(values):
    other_SP = values + np.random.default_rng(1).normal(0.3, 0.2, size=values.shape)
    found = difference(system("a", other_SP, other_SP), system("b", values, values), "q")
    expected = stats.bootstrap(
        ((other_SP - values)[0],), np.mean, method="percentile", n_resamples=8000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx((other_SP - values).mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_what_prompts_do_to_both_cancels(values):
    hard = 100 * values
    found = difference(system("a", hard + 0.1, hard), system("b", hard, hard), "q")
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_values_that_one_lacks_count_for_neither():
    left, right = np.array([[1.0, np.nan, 3.0]]), np.array([[0.0, 5.0, 1.0]])
    assert difference(system("a", left, left), system("b", right, right), "q").mean == pytest.approx(1.5)
    assert np.isnan(paired([system("a", left, left), system("b", right, right)], "q")[:, 1]).all()


def test_other_prompts_cannot_be_compared(values):
    left, right = system("a", values, values), system("b", values, values)
    right.prompts = [prompt.upper() for prompt in right.prompts]
    with pytest.raises(ValueError, match="same prompts"):
        difference(left, right, "q")


def test_mixtures_are_those_of_a_linear_programme():
    random = np.random.default_rng(3)
    for _ in range(50):
        quality_M, diversity_M = random.random((2, 6))
        wanted = random.random()
        best = optimize.linprog(
            -diversity_M, A_ub=-quality_M[None], b_ub=[-wanted], A_eq=np.ones((1, 6)), b_eq=[1.0], bounds=(0, 1)
        )
        expected = -best.fun if best.success else 0.0
        assert mixture_diversity(wanted, quality_M, diversity_M) == pytest.approx(expected, abs=1e-8)


def test_height_above_the_line_between_two_baselines():
    noise = np.random.default_rng(4).normal(0, 0.01, size=(2, 20))
    low = system("base", 0.2 + noise, 0.8 + noise)
    high = system("guidance", 0.8 + noise, 0.2 + noise)
    above = system("merge", 0.5 + noise, 0.6 + noise)
    found = height_above(above, [low, high], "q", "d")
    assert found.mean == pytest.approx(0.1, abs=0.02)
    assert found.low > 0
    inside = height_above(system("merge", 0.5 + noise, 0.4 + noise), [low, high], "q", "d")
    assert inside.high < 0
