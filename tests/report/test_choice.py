"""The choice on made-up systems whose right answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_study import LINE, line

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import System
from cfg_distill.evaluation.choice import Rule, choose, default_rule, guard_of, problems_of_rule
from cfg_distill.evaluation.guards import Guard

RULE = Rule("quality", ["diversity", "bigram"], margin=0.02)


def chosen(systems: list[System], rule: Rule = RULE) -> str | None:
    by_name = {system.name: system for system in systems}
    choice = choose(systems, by_name["guidance 2"], rule, by_name["base"])
    return None if choice.chosen is None else choice.chosen.system.name


def with_values_on(systems: list[System], metric: str, known: int, *names: str) -> list[System]:
    """The systems, of which the named ones have a metric on the first prompts alone."""
    for each in systems:
        if each.name in names:
            each.values[metric] = [[*values[:known], *[float("nan")] * (12 - known)] for values in each.values[metric]]
    return systems


def row(name: str, **changes: float) -> tuple:
    """A row of the line with some means changed."""
    kind, quality, diversity, bigram, rests, knob = LINE[name]
    means = {"quality": quality, "diversity": diversity, "bigram": bigram, "rests": rests} | changes
    return (kind, *means.values(), knob)


def test_the_most_diverse_point_within_the_margin() -> None:
    assert chosen(line()) == "half"  # .010 below guidance; the diversity student is .100 below
    assert chosen(line(), Rule("quality", ["diversity"], margin=0.2)) == "diversity"


def test_no_model_can_be_shipped_that_begins_by_another() -> None:
    annealed = [replace(system, anneal={"base": "base"}) if system.name == "half" else system for system in line()]
    assert chosen(annealed) == "quality"


def test_the_lower_end_of_the_interval_must_lie_above_the_margin() -> None:
    # The mean of half, .010 below, is within this margin, and its interval is not.
    assert chosen(line(), Rule("quality", ["diversity", "bigram"], margin=0.0105)) == "quality"


def test_the_least_gain_counts() -> None:
    # A point that buys one measure at the cost of the other: no more than its loss.
    bought = {"bought": ("merge", 0.70, 0.90, 0.70, 0.0, 0.25)}
    assert chosen(line(bought)) == "half"
    assert chosen(line(bought), Rule("quality", ["diversity"], margin=0.02)) == "bought"


def test_gains_are_shares_of_what_the_guided_base_has() -> None:
    # Absolutely the second gains more (+.05 of .8 and of .4): as a share its least gain is .06, that of the first .10.
    rivals = {"half": row("half", diversity=0.44, bigram=0.90), "other": ("merge", 0.70, 0.45, 0.85, 0.0, 0.25)}
    choice = choose(line(rivals), line()[1], RULE)
    gains = {each.system.name: each.gain for each in choice.candidates}
    assert gains["half"].share == pytest.approx(0.1, abs=1e-6) and gains["half"].metric == "diversity"
    assert gains["other"].share == pytest.approx(0.0625, abs=1e-6) and gains["other"].metric == "bigram"


@pytest.mark.parametrize(
    ("guard", "expected"),
    [
        ("rests < 0.04", "half"),
        ("rests < 0.06", "half"),
        ("rests < 0.2", "diversity"),
        ("rests <= base + 0.04", "half"),
    ],
)
def test_a_point_that_breaks_a_guard_is_not_chosen(guard: str, expected: str) -> None:
    rule = Rule("quality", ["diversity", "bigram"], margin=0.2, guards=[guard_of(guard)])
    assert chosen(line(), rule) == expected


def test_a_guard_may_be_relative_to_the_base() -> None:
    rested = line({"base": row("base", rests=0.09)})
    relative = Rule("quality", ["diversity"], 0.2, [Guard.parse("rests", "< base * 1.5")])
    assert chosen(rested, relative) == "diversity"  # .10 < .135
    assert chosen(rested, Rule("quality", ["diversity"], 0.2, [Guard.parse("rests", "< base")])) == "half"


def test_where_nothing_keeps_the_rule_the_nearest_is_named() -> None:
    systems = line({"quality": row("quality", quality=0.67), "half": row("half", quality=0.64)})
    choice = choose(systems, systems[1], RULE)
    assert choice.chosen is None and choice.nearest is not None
    assert choice.nearest.system.name == "quality"
    entry = choice.entry()
    assert entry["system"] is None and entry["nearest"] == "quality"
    assert entry["reason"].startswith(
        "No point keeps the rule; the nearest is `quality`: quality is more than 0.02 below"
    )
    assert [each["system"] for each in entry["rejected"]] == ["quality", "half", "diversity"]


def test_an_undecided_quality_says_what_would_decide() -> None:
    systems = line({"half": row("half", quality=0.68)})
    choice = choose(systems, systems[1], RULE)
    (why,) = [each["why"] for each in choice.entry()["rejected"] if each["system"] == "half"]
    assert "may be more than 0.02 below `guidance 2`" in why and why.endswith("more prompts or seeds would decide")


def test_the_reason_is_one_sentence_with_its_numbers() -> None:
    systems = line()
    entry = choose(systems, systems[1], RULE).entry()
    reason = entry["reason"]
    assert reason.count(". ") == 0 and reason.endswith(".")
    assert reason.startswith(
        "`half` is, under its least favourable measure, the most diverse point whose quality is not more than 0.02 below"
        " `guidance 2` (-0.010 ["
    )
    assert "; under that measure, bigram, its diversity is 4 % higher (+0.03" in reason
    assert "; the largest of 2 such gains is rather too high; no guard was set" in reason
    rejected = {each["system"]: each["why"] for each in entry["rejected"]}
    assert rejected["quality"].startswith("less diverse: bigram ") and rejected["quality"].endswith(
        "`half` has at least +4 %"
    )
    assert "more than 0.02 below" in rejected["diversity"]
    assert entry["differences"]["half"]["diversity"]["mean"] == pytest.approx(0.1, abs=1e-6)
    assert set(entry["differences"]["half"]) == {"quality", "diversity", "bigram", "rests"}


@pytest.mark.parametrize("known", [0, 1, 7])
def test_a_quality_on_few_prompts_is_not_reached(known: int) -> None:
    systems = with_values_on(line(), "quality", known, "half")
    choice = choose(systems, systems[1], RULE)
    assert choice.chosen is not None and choice.chosen.system.name == "quality"
    (why,) = [each["why"] for each in choice.entry()["rejected"] if each["system"] == "half"]
    assert why.startswith("quality cannot be judged: ") and "fewer than the 8 that an interval needs" in why
    assert ("quality" in choice.entry()["differences"]["half"]) == (known > 0)
    assert chosen(with_values_on(line(), "quality", 8, "half")) == "half"


@pytest.mark.parametrize(("guard", "without"), [("rests < 0.04", "half"), ("rests < base + 0.02", "base")])
@pytest.mark.parametrize("known", [0, 3])
def test_a_guard_on_few_prompts_is_not_held(guard: str, without: str, known: int) -> None:
    systems = with_values_on(line(), "rests", known, without)
    choice = choose(systems, systems[1], Rule("quality", ["diversity"], 0.02, [guard_of(guard)]), systems[0])
    (why,) = [each["why"] for each in choice.entry()["rejected"] if each["system"] == "half"]
    assert why.startswith(f"guard {guard} cannot be judged: ") and "fewer than the 8" in why


@pytest.mark.parametrize("known", [0, 1])
@pytest.mark.parametrize("without", ["guidance 2", "half"])
def test_a_diversity_on_few_prompts_leaves_the_rule_for_all(without: str, known: int) -> None:
    """Else the point that lacks a metric would have one measure less to lose under."""
    rows = {"half": row("half", bigram=0.70)}
    assert chosen(line(rows)) == "quality"
    systems = with_values_on(line(rows), "bigram", known, without)
    choice = choose(systems, systems[1], RULE)
    assert choice.chosen is not None and choice.chosen.system.name == "half"
    assert choice.entry()["left_out"] == ["bigram"] and choice.chosen.gain.metric == "diversity"  # type: ignore[union-attr]
    assert "; bigram did not count, which too few prompts have; no guard was set" in choice.reason
    # A point that is out for its quality takes no metric with it.
    apart = with_values_on(line(rows), "bigram", known, "diversity")
    assert chosen(apart) == "quality"


def test_without_any_diversity_nothing_is_chosen() -> None:
    systems = with_values_on(line(), "diversity", 0, "guidance 2")
    choice = choose(systems, systems[1], Rule("quality", ["diversity"]))
    assert choice.chosen is None and "its diversity cannot be judged: too few prompts have a value" in choice.reason


def test_systems_of_other_prompts_are_refused() -> None:
    systems = line()
    systems[3].prompts = [f"other {prompt}" for prompt in systems[3].prompts]
    with pytest.raises(ValueError, match="on the prompts of guidance 2"):
        choose(systems, systems[1], RULE)


def test_baselines_are_never_chosen() -> None:
    choice = choose(line(), line()[1], Rule("quality", ["diversity"], margin=9.0))
    assert {each.system.kind for each in choice.candidates} == {"student", "merge"}


def test_a_study_without_students_has_nothing_to_choose() -> None:
    systems = line()[:2]
    choice = choose(systems, systems[1], RULE)
    assert choice.entry()["nearest"] is None and "nothing to choose" in choice.reason


def test_the_rule_of_a_study_comes_from_its_claims() -> None:
    claims = {"margin": 0.3, "guards": {"rests": "< 0.05"}}
    rule = default_rule(claims, "quality", ["diversity", "bigram"])
    assert (rule.margin, list(map(str, rule.guards))) == (0.3, ["rests < 0.05"])
    assert chosen(line(), rule) == "half"
    assert chosen(line(), default_rule({"margin": 0.3}, "quality", ["diversity"])) == "diversity"
    assert default_rule(None, "quality", ["diversity"]).margin == 0.02


@pytest.mark.parametrize("text", ["rests", "rests<", "<0.02", "rests < low", "rests = 0.02"])
def test_a_guard_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a"):
        guard_of(text)


def test_problems_of_a_rule() -> None:
    rule = Rule("quality", ["diversity"], -0.1, [guard_of("rest<0.02")])
    margin, guard = problems_of_rule(rule, line())
    assert "at least 0, but got -0.1" in str(margin)
    for margin_of in (float("inf"), float("nan")):
        (problem,) = problems_of_rule(Rule("quality", ["diversity"], margin_of), line())
        assert "expected a finite number of at least 0" in str(problem)
    assert "Did you mean `rests`?" in str(guard)
