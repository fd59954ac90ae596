"""Bounds as they are written, and what they decide."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.guards import Guard, guards_of
from cfg_distill.evaluation.intervals import Interval, highest_share
from cfg_distill.evaluation.system import System


@pytest.mark.parametrize(
    ("text", "sign", "factor", "offset", "shown"),
    [
        ("< 0.02", "<", 0.0, 0.02, "m < 0.02"),
        ("<=.5", "<=", 0.0, 0.5, "m <= 0.5"),
        ("> -1e-3", ">", 0.0, -0.001, "m > -0.001"),
        ("<= base", "<=", 1.0, 0.0, "m <= base"),
        ("< base + 0.01", "<", 1.0, 0.01, "m < base + 0.01"),
        (">=base-2", ">=", 1.0, -2.0, "m >= base - 2"),
        ("< base * 1.5", "<", 1.5, 0.0, "m < base * 1.5"),
        ("< base - -0.1", "<", 1.0, 0.1, "m < base + 0.1"),
        ("< base + -0.1", "<", 1.0, -0.1, "m < base - 0.1"),
    ],
)
def test_a_bound_is_read_and_shown(text, sign, factor, offset, shown):
    assert Guard.parse("m", text) == Guard("m", sign, factor, offset)
    assert str(Guard.parse("m", text)) == shown


@pytest.mark.parametrize(
    "text", ["", "0.02", "< ", "= 3", "< bass", "< base + ", "< 1 2", "< base ** 2", "< nan", 0.02]
)
def test_all_bounds_that_cannot_be_read_are_named(text):
    with pytest.raises(ConfigError) as caught:
        guards_of({"rest_share": text, "other": "< 1", "third": "?"})
    first, second = map(str, caught.value.problems)
    assert first.startswith("Key `rest_share`: expected a bound such as `< 0.02`")
    assert second.endswith("but got '?'.")


@pytest.mark.parametrize(
    ("sign", "low", "high", "verdict"),
    [
        ("<", -0.2, -0.1, "holds"),
        ("<", -0.2, 0.0, "undecided"),
        ("<=", -0.2, 0.0, "holds"),
        ("<", 0.0, 0.2, "fails"),
        ("<=", 0.0, 0.2, "undecided"),
        ("<=", 0.0, 0.0, "holds"),
        ("<", -0.1, 0.1, "undecided"),
        (">", 0.1, 0.2, "holds"),
        (">", -0.2, -0.1, "fails"),
        (">=", 0.0, 0.1, "holds"),
    ],
)
def test_a_guard_is_decided_by_the_whole_interval(sign, low, high, verdict):
    assert Guard("m", sign, 0.0, 0.0).verdict(Interval((low + high) / 2, low, high)) == verdict


@pytest.mark.parametrize(("events", "number"), [(0, 96), (1, 32), (7, 400), (399, 400), (400, 400)])
def test_the_highest_share_is_that_of_clopper_and_pearson(events, number):
    """Were the share that high, so few events would come up in 2.5 % of the draws: a sum of binomial probabilities."""
    share = highest_share(events, number)
    if events == number:
        assert share == 1
        return
    terms = (comb(number, each) * share**each * (1 - share) ** (number - each) for each in range(events + 1))
    assert sum(terms) == pytest.approx(0.025, rel=1e-9)


def shares(rng, rate, prompts, samples=4):
    """The share of events in the samples of each prompt."""
    system = System("s", "student", "m", 1.0, 1.0, samples, [0], [str(number) for number in range(prompts)])
    system.values = {"m": [(rng.binomial(samples, rate, size=prompts) / samples).tolist()]}
    return system


@pytest.mark.parametrize(("prompts", "rate", "bound"), [(8, 0.05, "< 0.02"), (24, 0.03, "<= base + 0.02")])
def test_a_guard_on_rare_events_holds_by_chance_one_time_in_forty(prompts, rate, bound):
    """The true rate breaks the bound; without the exact end .21 and .04 of such guards hold."""
    rng, guard = np.random.default_rng(0), Guard.parse("m", bound)
    base = shares(rng, 0.0, prompts)
    held = [guard.verdict(guard.excess(shares(rng, rate, prompts), base)) == "holds" for _ in range(300)]
    assert np.mean(held) <= 0.025


def test_no_event_in_many_samples_holds():
    rng, guard = np.random.default_rng(0), Guard.parse("m", "<= base + 0.02")
    assert guard.verdict(guard.excess(shares(rng, 0.0, 96), shares(rng, 0.0, 96))) == "holds"


def test_a_metric_that_counts_no_events_keeps_its_interval():
    system, guard = shares(np.random.default_rng(0), 0.1, 24), Guard.parse("m", "< 0.5")
    system.values = {"m": [np.linspace(0.28, 0.31, 24).tolist()]}
    assert guard.excess(system, system).high < -0.18


def test_what_is_shown_is_what_decides_and_a_bound_without_room_is_as_before():
    system = shares(np.random.default_rng(0), 0.0, 24)
    assert Guard.parse("m", "< 0.02").value(system).high == pytest.approx(0.0377, abs=1e-4)
    for bound in ("<= base", "<= base * 1.5"):
        guard = Guard.parse("m", bound)
        assert guard.verdict(guard.excess(system, system)) == "holds" and guard.value(system).high == 0
