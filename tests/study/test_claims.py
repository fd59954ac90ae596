"""Verdicts on constructed numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cfg_distill.evaluation import Headline, System
from cfg_distill.evaluation.front import Interval
from cfg_distill.study.claims import above, all_of, finding, judge, not_below
from cfg_distill.study.config import Claims

NAMES = Claims("base", "guidance 2", "quality", "diversity", "half", margin=0.02)
HEADLINE = Headline("q", "d", "b")
GOOD = {
    "base": ("base", 0.60, 0.70),
    "base T 0.8": ("base", 0.62, 0.68),
    "guidance 2": ("guidance", 0.70, 0.50),
    "quality": ("student", 0.70, 0.51),
    "half": ("merge", 0.69, 0.60),
    "diversity": ("student", 0.62, 0.70),
}


def systems(points: dict[str, tuple[str, float, float]], noise: float = 0.01) -> dict[str, System]:
    random = np.random.default_rng(0)
    found = {}
    for name, (kind, quality, diversity) in points.items():
        quality_SP = quality + random.normal(0, noise, size=(2, 24))
        diversity_SP = diversity + random.normal(0, noise, size=(2, 24))
        values = {"q": quality_SP.tolist(), "d": diversity_SP.tolist(), "b": diversity_SP.tolist()}
        axes = {"q": "quality", "d": "diversity", "b": "diversity"}
        prompts = [str(n) for n in range(24)]
        cost = 2.0 if kind == "guidance" else 1.0
        found[name] = System(name, kind, "m", 1.0, cost, 4, [0, 1], prompts, axes, values, cost)  # type: ignore[arg-type]
    return found


def verdicts(points: dict[str, tuple[str, float, float]], noise: float = 0.01) -> list[str]:
    return [claim["verdict"] for claim in judge(systems(points, noise), NAMES, HEADLINE)]


def test_all_hold_where_the_paper_is_right():
    assert verdicts(GOOD) == ["holds"] * 4


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"quality": ("student", 0.65, 0.51)}, 0),  # the student does not reach its teacher
        ({"guidance 2": ("guidance", 0.58, 0.50), "quality": ("student", 0.58, 0.51)}, 0),  # guidance does not help
        ({"quality": ("student", 0.70, 0.75)}, 1),  # distillation does not inherit the loss
        ({"diversity": ("student", 0.62, 0.45)}, 2),
        ({"half": ("merge", 0.69, 0.51)}, 3),  # as diverse as guidance, but below mixtures of the baselines
        ({"half": ("merge", 0.60, 0.60)}, 3),  # no quality
    ],
)
def test_each_fails_where_it_should(changed, broken):
    assert verdicts(GOOD | changed, noise=0.003)[broken] == "fails"


def test_a_cost_that_is_not_halved_fails():
    points = systems(GOOD)
    points["quality"].relative_cost = 2.0
    assert judge(points, NAMES, HEADLINE)[0]["verdict"] == "fails"


def test_noise_leaves_them_undecided():
    close = {name: (kind, 0.65 + (q - 0.65) * 0.01, 0.6 + (d - 0.6) * 0.01) for name, (kind, q, d) in GOOD.items()}
    assert set(verdicts(close, noise=0.3)) == {"undecided"}


def test_evidence_tells_numbers_margin_and_the_independent_measure():
    claims = judge(systems(GOOD), NAMES, HEADLINE)
    assert all(claim.keys() == {"claim", "verdict", "evidence"} for claim in claims)
    assert "margin 0.02" in claims[0]["evidence"]
    assert "cost ratio 0.5" in claims[0]["evidence"]
    assert "under b " in claims[2]["evidence"]
    assert "3 baselines" in claims[3]["evidence"]


def test_the_title_is_neutral_about_what_it_found():
    assert finding(systems(GOOD, 1e-9), NAMES, HEADLINE) == (
        "half: quality -0.010, diversity +0.100 against guidance 2, at half its cost"
    )


@pytest.mark.parametrize(
    ("half", "verdict"),
    [((0.69, 0.60), "holds"), ((0.60, 0.69), "fails"), ((0.62, 0.68), "undecided")],  # the last: as plain temperature
)
def test_the_merge_against_plain_temperature(half, verdict):
    names = replace(NAMES, temperature=["base T 0.8"])
    judged = judge(systems(GOOD | {"half": ("merge", *half)}), names, HEADLINE)
    assert judged[:4] == judge(systems(GOOD | {"half": ("merge", *half)}), NAMES, HEADLINE)
    assert judged[4]["verdict"] == verdict
    assert "above the front of base, base T 0.8 and their mixtures" in judged[4]["evidence"]


def test_verdicts_of_intervals():
    assert [above(Interval(0, *ends)) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == [
        *("holds", "fails", "undecided")
    ]
    assert [not_below(Interval(0, *ends), 0.15) for ends in ((-0.1, 0.2), (-0.3, -0.2), (-0.2, 0.1))] == [
        *("holds", "fails", "undecided")
    ]
    assert all_of("holds", "undecided") == "undecided"
    assert all_of("undecided", "fails", "holds") == "fails"
