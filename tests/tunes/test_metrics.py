"""Bars that add up, guards and the metrics over groups, against worked values."""

import math

import pytest
import torch

from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples
from cfg_distill.tunes.bars import bar_validity, likely_metre, read_bars
from cfg_distill.tunes.metrics import (
    BarValidity,
    CopyRate,
    JudgeProbability,
    LongestRun,
    RestShare,
    TuneBigramDiversity,
    TuneQuality,
    longest_run,
    ngram_set,
    rest_share,
)
from cfg_distill.tunes.tokenizer import VALUES

FULL = "C:1 D:1 E:1 F:1 G:1 A:1"
MINOR = "C:1 _E:1 G:1 c:1 _B:1 G:1 | _A:1 G:1 F:1 _E:1 D:1 C:1 | " * 4
MAJOR = "C:1 E:1 G:1 c:1 B:1 G:1 | A:1 G:1 F:1 E:1 D:1 C:1 | " * 4


def samples(prompts: list[str], outputs: list[str]) -> Samples:
    empty = torch.zeros(0)
    return Samples(prompts, outputs, Rollout(empty, empty, empty))


@pytest.mark.parametrize(
    ("tune", "metre", "expected"),
    [
        (f"{FULL} | {FULL} | {FULL} |", "6/8", 1.0),
        (f"{FULL} | C:5 | {FULL} |", "6/8", 2 / 3),
        (f"G:1 | {FULL} | {FULL} | C:5 |", "6/8", 1.0),  # upbeat and its complement
        (f"G:1 | {FULL} | C:5 :| G:1 | {FULL} | C:5 :|", "6/8", 1.0),
        (f"G:1 | {FULL} | C:4 :| G:1 | {FULL} | C:5 :|", "6/8", 2 / 4),  # 4 + 1 is no bar, on neither side
        (f"{FULL} | {FULL} | C:2", "6/8", 1.0),  # breaks off
        (f"{FULL} | C:7", "6/8", 1 / 2),  # too long already
        (f"{FULL} {FULL}", "6/8", 0.0),  # no bar sign: one bar, too long
        ("C:1 C:1", "6/8", 0.0),  # nothing to count
        ("", "6/8", 0.0),
        ("| | || :|", "6/8", 0.0),
        ("C:2 || C:2 || C:2 || C:2 || C:2 ||", "6/8", 0.0),  # double bars everywhere buy nothing
        (f"{FULL} | {FULL} |", "4/4", 0.0),
        (f"{FULL} | {FULL} |", None, 1.0),
        ("G:2/3 G:2/3 G:2/3 z:2 | C:4 |", "2/4", 1.0),
        ("nonsense C:4 | C:4 <s> | c:1/0 C:4 |", "2/4", 1.0),
    ],
)
def test_bar_validity(tune: str, metre: str | None, expected: float) -> None:
    assert bar_validity(tune, metre) == pytest.approx(expected)


def test_signs_in_a_row_count_as_one() -> None:
    bars = read_bars("C:4 :| |: D:4 | [1 E:4 :| [2 F:4 ||")
    assert len(bars) == 4
    assert bars[0].right is not None
    assert (bars[0].right.closes, bars[0].right.opens) == (True, True)
    assert [bar.left.ending for bar in bars] == [0, 0, 1, 2]
    assert likely_metre("C:4 | D:4 | E:4") == "2/4"


def test_guards_worked() -> None:
    assert rest_share("C:1 z:3 | D:2") == pytest.approx(0.5)
    assert rest_share("| ||") == 1.0
    assert longest_run("C:1 C:2 | C:1 D:1 D:1") == 3
    assert longest_run("") == 0
    assert ngram_set([("a", "b", "c")], 2) == {("a", "b"), ("b", "c")}


def test_copy_rate_counts_tunes_that_hold_a_known_run() -> None:
    metric = CopyRate(n=3)
    metric.known = frozenset(ngram_set([("C:1", "D:1", "E:1", "F:1")], 3))
    metric.update(samples(["a jig"], ["G:1 D:1 E:1 F:1", "C:1 D:1 F:1 E:1"]))
    assert metric.compute().item() == pytest.approx(0.5)


def test_one_value_a_prompt_and_what_was_not_asked_is_left_out() -> None:
    groups = samples(["a jig", "an Irish tune"], [f"{FULL} | {FULL} |", "C:5 | C:5 | C:5 | C:5 |", MAJOR, MAJOR])
    validity, rhythm, origin = BarValidity(), JudgeProbability("rhythm"), JudgeProbability("origin")
    for metric in (validity, rhythm, origin):
        metric.load().update(groups)
    # No metre asked: the best one. C:5 in 6/8: first and last are left out, the two inside are short.
    torch.testing.assert_close(validity.per_prompt(), torch.tensor([0.5, 1.0]))
    assert [math.isnan(value) for value in rhythm.per_prompt()] == [False, True]
    assert [math.isnan(value) for value in origin.per_prompt()] == [True, False]
    assert rhythm.compute() == rhythm.per_prompt()[0]


def test_quality_is_the_mean_of_what_was_asked() -> None:
    prompt = "an Irish jig in a minor key"
    groups = samples([prompt], [MINOR, MAJOR])
    parts = [BarValidity(), *(JudgeProbability(attribute) for attribute in ("origin", "rhythm", "mode"))]
    quality = TuneQuality()
    for metric in (*parts, quality):
        metric.load().update(groups)
    assert quality.compute().item() == pytest.approx(sum(part.compute().item() for part in parts) / 4, abs=1e-6)


def test_judge_prefers_the_mode_that_sounds() -> None:
    probability = TuneQuality().load().judge.probabilities([MINOR, MAJOR, "| |"])["mode"]
    major, minor = VALUES["mode"].index("major"), VALUES["mode"].index("minor")
    assert probability[0, minor] > probability[0, major]
    assert probability[1, major] > probability[1, minor]
    assert probability[2].sum() == 0  # silence does not earn the prior
    torch.testing.assert_close(probability[:2].sum(-1), torch.ones(2))


def test_bigram_diversity_worked() -> None:
    """Bigram counts (ab, bc), (ab, bd) and (xy): cosines 1/2, 0, 0."""
    metric = TuneBigramDiversity()
    metric.update(samples(["a jig"], ["a b c", "a b d", "x y"]))
    assert metric.compute().item() == pytest.approx((1 / 2 + 1 + 1) / 3)


def test_guard_metrics_average_a_group() -> None:
    rests, run = RestShare(), LongestRun()
    for metric in (rests, run):
        metric.update(samples(["a jig"], ["C:1 z:1", "C:1 C:1 C:1 C:1"]))
    assert rests.compute().item() == pytest.approx(0.25)
    assert run.compute().item() == pytest.approx(2.5)


def test_problems_name_the_key() -> None:
    (problem,) = JudgeProbability("tempo").problems()  # type: ignore[arg-type]
    assert str(problem).startswith("Key `attribute`: expected one of ['origin'")
    (problem,) = TuneQuality(path="/no/such/judge").problems()
    assert str(problem).startswith("Key `path`: expected a model folder, but `/no/such/judge`")


def test_metrics_are_cloned_with_one_judge() -> None:
    metric = TuneQuality().load()
    assert metric.clone().judge is metric.judge
    assert not metric.state_dict()
