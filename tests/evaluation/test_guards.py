"""Bounds as they are written, and what they decide."""

from __future__ import annotations

import pytest

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.guards import Guard, guards_of
from cfg_distill.evaluation.intervals import Interval


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
