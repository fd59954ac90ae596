"""Verdicts on constructed numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cfg_distill.evaluation import Headline, System
from cfg_distill.evaluation.compare import Height
from cfg_distill.evaluation.intervals import Interval
from cfg_distill.study.claims import above, all_of, finding, judge, not_below, shown
from cfg_distill.study.parts import Claims

NAMES = Claims("base", "guidance 2", "quality", 0.02, "diversity", "half", guards={"rests": "< 0.05"})
HEADLINE = Headline("q", "d", "b")
GOOD = {
    "base": ("base", 0.60, 0.70),
    "base T 0.8": ("base", 0.70, 0.55),
    "guidance 2": ("guidance", 0.70, 0.50),
    "quality": ("student", 0.70, 0.51),
    "half": ("merge", 0.69, 0.62),
    "diversity": ("student", 0.62, 0.70),
}


def systems(points: dict[str, tuple[str, float, float]], noise: float = 0.01) -> dict[str, System]:
    random = np.random.default_rng(0)
    found = {}
    for name, (kind, quality, diversity) in points.items():
        quality_SP = quality + random.normal(0, noise, size=(2, 24))
        diversity_SP = diversity + random.normal(0, noise, size=(2, 24))
        rests_SP = 0.01 + random.normal(0, 1e-4, size=(2, 24))
        values = {"q": quality_SP.tolist(), "d": diversity_SP.tolist(), "b": diversity_SP.tolist()}
        axes = {"q": "quality", "d": "diversity", "b": "diversity", "rests": "guard"}
        prompts = [str(n) for n in range(24)]
        cost = 2.0 if kind == "guidance" else 1.0
        values |= {"rests": rests_SP.tolist()}
        found[name] = System(name, kind, "m", 1.0, cost, 4, [0, 1], prompts, axes, values, cost)  # type: ignore[arg-type]
    return found


def verdicts(points: dict[str, tuple[str, float, float]], noise: float = 0.01) -> list[str]:
    return [claim["verdict"] for claim in judge(systems(points, noise), NAMES, HEADLINE)]


def test_all_hold_where_the_paper_is_right():
    assert verdicts(GOOD) == ["holds"] * 5


@pytest.mark.parametrize(
    ("left_out", "claims", "shown"),
    [
        ({"diversity": None, "merge": None}, ["C1", "C2"], "quality"),
        ({"merge": None}, ["C1", "C2", "C3"], "diversity"),
        ({"diversity": None}, ["C1", "C2", "C4a", "C4b"], "half"),
    ],
)
def test_a_study_without_a_diversity_student_or_a_merge_has_the_other_claims(left_out, claims, shown):
    names = replace(NAMES, **left_out)
    known = {name: system for name, system in systems(GOOD).items() if name not in left_out or name in names.named}
    judged = judge(known, names, HEADLINE)
    assert [claim["name"] for claim in judged] == claims
    assert all(claim["verdict"] == "holds" for claim in judged)
    assert finding(known, names, HEADLINE).startswith(f"{shown}: quality")


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"quality": ("student", 0.65, 0.51)}, 0),  # the student does not reach its teacher
        ({"guidance 2": ("guidance", 0.58, 0.50), "quality": ("student", 0.58, 0.51)}, 0),  # guidance does not help
        ({"quality": ("student", 0.70, 0.75)}, 1),  # distillation does not inherit the loss
        ({"diversity": ("student", 0.62, 0.45)}, 2),
        ({"half": ("merge", 0.69, 0.51)}, 3),  # below a cooler base and its mixtures
        ({"half": ("merge", 0.69, 0.51)}, 4),
        ({"half": ("merge", 0.60, 0.80)}, 3),  # no quality
        ({"half": ("merge", 0.75, 0.05)}, 4),  # collapsed: of more quality than any baseline
    ],
)
def test_each_fails_where_it_should(changed, broken):
    assert verdicts(GOOD | changed, noise=0.003)[broken] == "fails"


def test_equal_cost_leaves_guidance_out():
    """A base under guidance that is better than the merge decides C4b, and has no say in C4a."""
    judged = verdicts(GOOD | {"guidance 3": ("guidance", 0.72, 0.70)}, noise=0.003)
    assert judged[3:] == ["holds", "fails"]


def test_a_cost_that_is_not_halved_fails():
    points = systems(GOOD)
    points["quality"].relative_cost = 2.0
    assert judge(points, NAMES, HEADLINE)[0]["verdict"] == "fails"


def test_noise_leaves_them_undecided():
    close = {name: (kind, 0.65 + (q - 0.65) * 0.01, 0.6 + (d - 0.6) * 0.01) for name, (kind, q, d) in GOOD.items()}
    assert set(verdicts(close, noise=0.3)) == {"undecided"}


def test_both_measures_of_diversity_must_agree():
    """A diversity that only the reward's own encoder sees is no claim."""
    points = systems(GOOD)
    for name in ("diversity", "half"):
        points[name].values["b"] = (np.array(points[name].values["b"]) - 0.3).tolist()
    assert [claim["verdict"] for claim in judge(points, NAMES, HEADLINE)][2:] == ["fails"] * 3
    alone = judge(systems(GOOD), NAMES, Headline("q", "d"))
    assert [claim["verdict"] for claim in alone] == ["holds", "holds", "undecided", "undecided", "undecided"]
    assert "names no measure of diversity that was no reward" in alone[2]["evidence"]


def with_rests(value: float, noise: float = 0.0) -> dict[str, System]:
    points = systems(GOOD)
    rests_SP = value + np.random.default_rng(1).normal(0, noise, size=(2, 24))
    points["diversity"].values["rests"] = rests_SP.tolist()
    return points


def test_a_claim_fails_when_a_guard_of_its_student_fails():
    judged = judge(with_rests(0.10), NAMES, HEADLINE)
    assert [claim["verdict"] for claim in judged] == ["holds", "holds", "fails", "holds", "holds"]
    (guard,) = judged[2]["guards"]
    assert (guard["system"], guard["metric"], guard["bound"]) == ("diversity", "rests", "rests < 0.05")
    assert guard["verdict"] == "fails" and guard["value"]["mean"] == pytest.approx(0.10)
    assert "guard rests < 0.05 of diversity, which has 0.100 [0.100, 0.100]: fails" in judged[2]["evidence"]
    assert judge(with_rests(0.05, noise=0.02), NAMES, HEADLINE)[2]["verdict"] == "undecided"


@pytest.mark.parametrize(("bound", "verdict"), [("< base + 0.02", "fails"), ("<= base * 11", "holds")])
def test_a_guard_relative_to_the_base(bound, verdict):
    names = replace(NAMES, guards={"rests": bound})
    assert judge(with_rests(0.10), names, HEADLINE)[2]["verdict"] == verdict


def test_claims_without_guards_stay_open_and_say_so():
    judged = judge(with_rests(0.10), replace(NAMES, guards={}), HEADLINE)
    assert {claim["verdict"] for claim in judged} == {"undecided"}
    assert all("no guards are named" in claim["evidence"] for claim in judged)


def test_a_system_that_was_evaluated_without_a_guard_is_named():
    points = with_rests(0.01)
    del points["half"].values["rests"], points["half"].axes["rests"]
    judged = judge(points, NAMES, HEADLINE)
    assert [claim["verdict"] for claim in judged] == ["holds", "holds", "holds", "undecided", "undecided"]
    assert "rests < 0.05 of half: half was evaluated without rests" in judged[3]["evidence"]


@pytest.mark.parametrize("prompts", [1, 7])
def test_claims_on_fewer_prompts_than_an_interval_needs_stay_open_and_say_so(prompts):
    points = with_rests(0.01)
    for system in points.values():
        system.prompts = system.prompts[:prompts]
        system.values = {metric: [row[:prompts] for row in rows] for metric, rows in system.values.items()}
    judged = judge(points, NAMES, HEADLINE)
    assert {claim["verdict"] for claim in judged} == {"undecided"}
    assert all(
        f"{prompts} prompts are fewer than the 8 that an interval needs" in claim["evidence"] for claim in judged
    )


def test_evidence_has_numbers_margin_and_the_independent_measure():
    claims = judge(systems(GOOD), NAMES, HEADLINE)
    assert [claim["name"] for claim in claims] == ["C1", "C2", "C3", "C4a", "C4b"]
    assert all(claim.keys() == {"name", "claim", "verdict", "evidence", "parts", "guards"} for claim in claims)
    assert "margin 0.02" in claims[0]["evidence"]
    assert "forward passes = 0.5 of those of guidance" in claims[0]["evidence"]
    assert "b(base) - b(quality)" in claims[1]["evidence"] and "not part of the verdict" in claims[1]["evidence"]
    assert "b(diversity) - b(guidance 2)" in claims[2]["evidence"]
    assert "above the front of 2 baselines of equal cost and their mixtures, under d = " in claims[3]["evidence"]
    assert "above the front of 3 baselines of any cost and their mixtures, under b = " in claims[4]["evidence"]
    part = claims[3]["parts"][1]
    assert part["interval"].keys() == {"mean", "low", "high", "beyond", "beyond_share"}
    assert part["verdict"] == "holds"


def test_a_quality_that_no_baseline_has_is_said():
    judged = judge(systems(GOOD | {"half": ("merge", 0.80, 0.9)}, 0.003), NAMES, HEADLINE)
    assert judged[4]["verdict"] == "holds"
    assert "(no baseline has this quality: compared with the best)" in judged[4]["evidence"]
    sometimes = Height(0.1, 0.0, 0.2, False, 0.25)
    assert shown(sometimes) == (
        "+0.100 [+0.000, +0.200] (no baseline has this quality in 25 % of the resamples: compared with the best)"
    )


def test_prompts_without_a_value_are_counted_and_named():
    points = systems(GOOD)
    points["half"].values["q"][0][3] = float("nan")
    assert "(prompts left out: 1 where q is NaN)" in judge(points, NAMES, HEADLINE)[3]["evidence"]
    points["half"].values["q"] = [[float("nan")] * 24] * 2
    judged = judge(points, NAMES, HEADLINE)[3]
    assert judged["verdict"] == "undecided"
    assert "Expected a prompt on which every system has a value" in judged["evidence"]


def with_values_on(points: dict[str, System], metric: str, known: int, names: tuple[str, ...]) -> dict[str, System]:
    """The systems, some of which have a metric on the first prompts alone."""
    for name in names:
        values_SP = np.array(points[name].values[metric])
        values_SP[:, known:] = np.nan
        points[name].values[metric] = values_SP.tolist()
    return points


@pytest.mark.parametrize(("known", "verdict"), [(1, "undecided"), (7, "undecided"), (8, "holds")])
def test_prompts_without_a_value_decide_nothing(known, verdict):
    points = systems(GOOD, 0.003)
    for metric in ("q", "d", "b"):
        with_values_on(points, metric, known, tuple(GOOD))
    judged = judge(points, NAMES, HEADLINE)
    assert [claim["verdict"] for claim in judged] == [verdict] * 5
    said = f"{known} prompt{'s' * (known > 1)} with a value {'are' if known > 1 else 'is'} fewer than the 8"
    assert all((said in claim["evidence"]) == (known < 8) for claim in judged)
    for claim in judged:  # each part that compares has its interval, and says so itself
        compared = [part for part in claim["parts"] if part["interval"]]
        assert {part["verdict"] for part in compared} == {verdict} and all(said in p["part"] for p in compared) == (
            known < 8
        )


@pytest.mark.parametrize(("bound", "names"), [("< 0.05", ("diversity",)), ("< base + 0.05", ("base",))])
def test_a_guard_with_a_value_on_few_prompts_is_undecided(bound, names):
    points = with_values_on(systems(GOOD), "rests", 2, names)
    judged = judge(points, replace(NAMES, guards={"rests": bound}), HEADLINE)[2]
    (guard,) = judged["guards"]
    assert judged["verdict"] == guard["verdict"] == "undecided"
    assert "2 prompts with a value are fewer than the 8 that an interval needs" in guard["text"]


def test_a_part_that_decides_nothing_has_its_own_verdict():
    points = systems(GOOD, 0.003)
    for name in ("guidance 2", "quality"):
        points[name].values["b"] = (np.array(points[name].values["b"]) + 0.5).tolist()
    claim = judge(points, NAMES, HEADLINE)[1]
    shown_only = [part for part in claim["parts"] if "not part of the verdict" in part["part"]]
    assert claim["verdict"] == "holds" and [part["verdict"] for part in shown_only] == ["fails", "fails"]
    assert all(part["interval"]["high"] < 0 for part in shown_only)


def test_training_that_varies_leaves_open_what_one_run_would_decide():
    """Three runs whose quality differs: each alone is decided, and their mean is not."""
    points = systems(GOOD, 0.003)
    for name in ("quality", "diversity", "half"):
        system = points[name]
        system.chain = "quality"
        runs = {metric: np.array(values) for metric, values in system.values.items()}
        shifts = {"q": (-0.05, 0.0, 0.05)}
        system.values = {m: [(v + s).tolist() for s in shifts.get(m, (0.0,) * 3)] for m, v in runs.items()}
    assert verdicts(GOOD, 0.003)[0] == "holds"
    assert judge(points, NAMES, HEADLINE)[0]["verdict"] == "undecided"


def test_the_title_is_neutral_about_what_it_found():
    assert finding(systems(GOOD, 1e-9), NAMES, HEADLINE) == (
        "half: quality -0.010, diversity +0.120 against guidance 2, at half its cost"
    )


def test_the_title_of_a_merge_without_a_value_says_so():
    points = with_values_on(systems(GOOD, 1e-9), "q", 0, ("half",))
    assert finding(points, NAMES, HEADLINE) == (
        "half: quality unknown, diversity +0.120 against guidance 2, at half its cost"
    )


def test_verdicts_of_intervals():
    assert [above(Interval(0, *ends)) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == [
        *("holds", "fails", "undecided")
    ]
    assert [not_below(Interval(0, *ends), 0.15) for ends in ((-0.1, 0.2), (-0.3, -0.2), (-0.2, 0.1))] == [
        *("holds", "fails", "undecided")
    ]
    assert all_of("holds", "undecided") == "undecided"
    assert all_of("undecided", "fails", "holds") == "fails"
