"""Bars that add up, guards and the metrics over groups, against worked values."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from cfg_distill.embedders.tokens import grams
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples
from cfg_distill.tunes.bars import bar_validity, likely_metre, read_bars
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.judge import Judge
from cfg_distill.tunes.metrics import (
    BarValidity,
    CopyRate,
    JudgeProbability,
    LongestRun,
    RepeatedBars,
    Repetition,
    RestShare,
    TuneBigramDiversity,
    TuneFactor,
    TuneQuality,
    longest_run,
    rest_share,
)
from cfg_distill.tunes.negatives import REAL
from cfg_distill.tunes.quality import (
    FACTORS,
    bounds_of,
    copied_share,
    factors,
    known_runs,
    measured,
    melody_runs,
    repeated_bars,
    repetition,
    training_melodies,
)
from cfg_distill.tunes.rewriting import in_values, rewritten_bars, transposed, with_rests
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
    assert grams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]


def test_copy_rate_counts_tunes_that_hold_a_known_run() -> None:
    metric = CopyRate(n=3)
    metric.known = known_runs(["C:1 D:1 E:1 F:1"], 3)
    metric.update(samples(["a jig"], ["G:1 D:1 E:1 F:1", "C:1 D:1 F:1 E:1"]))
    assert metric.compute().item() == pytest.approx(0.5)
    assert CopyRate(n=1).problems() and not CopyRate(n=2).problems()  # one note has no interval
    disguised = CopyRate(n=3)  # the same notes an octave up, in other values, with rests and bars
    disguised.known = metric.known
    disguised.update(samples(["a jig"], ["g:1 d:2 | z:1 e:2 f:1/2", "C:1 D:1 F:1 E:1"]))
    assert disguised.compute().item() == pytest.approx(0.5)


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


def test_quality_is_the_mean_of_what_was_asked_times_the_factors() -> None:
    prompt = "an Irish jig in a minor key"
    groups = samples([prompt] * 2, [MINOR, MAJOR])
    parts = [BarValidity(), *(JudgeProbability(attribute) for attribute in ("origin", "rhythm", "mode"))]
    found = [TuneFactor(factor) for factor in FACTORS]  # type: ignore[arg-type]
    quality, plain = TuneQuality(), TuneQuality(without=FACTORS)
    for metric in (*parts, *found, quality, plain):
        metric.load().update(groups)
    asked = torch.stack([part.per_prompt() for part in parts]).mean(0)
    torch.testing.assert_close(plain.per_prompt(), asked)
    factors = torch.stack([factor.per_prompt() for factor in found])
    torch.testing.assert_close(quality.per_prompt(), asked * factors.prod(0))
    assert 0 < quality.compute() < plain.compute()  # 4 times the same two bars


def test_a_factor_is_1_for_real_tunes_and_0_at_the_worst() -> None:
    measures = {"repetition": [0.2, 0.5, 0.75, 1.0], "length": [200, 80, 20, 0]}
    found = factors(
        {name: torch.tensor(values) for name, values in measures.items()}, {"repetition": 0.5, "length": 80.0}
    )
    torch.testing.assert_close(found["repetition"], torch.tensor([1, 1, 0.5, 0]))
    torch.testing.assert_close(found["length"], torch.tensor([1, 1, 0.25, 0]))


def test_a_twentieth_of_the_real_tunes_lies_beyond_each_bound() -> None:
    values = torch.arange(101.0)
    bounds = bounds_of({"repetition": values, "length": values})
    assert bounds == {"repetition": 95.0, "length": 5.0}


def test_measures_of_the_text_worked() -> None:
    tune = "C:1 D:1 E:1 | C:1 D:1 E:1 | z:3 | G:3"
    assert repetition(tune, n=2) == pytest.approx(2 / 7)  # CD DE EC CD DE Ez zG: the second CD and DE
    assert repetition("C:1 D:1", n=4) == 0
    assert repeated_bars(tune) == pytest.approx(1 / 3)
    assert repeated_bars("C:4 |") == 0
    known = known_runs(["C:1 D:1 E:1"], 3)
    assert copied_share("G:1 C:1 D:1 E:1 C:1 D:1 E:1 G:1", known, 3) == pytest.approx(6 / 8)
    assert copied_share("", known, 3) == copied_share("C:1 D:1", known, 3) == 0
    assert copied_share("C:1 D:1 E:1", known_runs([]), 3) == 0


def test_known_runs_are_a_set_of_eight_bytes_each() -> None:
    tunes = ["C:1 D:1 E:1 F:2 G:1 C:1 D:1 E:1", "A:1 C:1 E:1 A:1"]
    runs = {run for tune in tunes for run in melody_runs(tune, 3)}
    others = set(melody_runs("C:1 B:3 D:1 G:2 z:1 F:1", 3))
    known = known_runs(tunes, 3)
    assert all(run in known for run in runs)
    assert not any(run in known for run in others - runs) and others - runs
    assert len(known) == len(runs) and known.hashes.nbytes == 8 * len(runs)


@pytest.mark.parametrize(
    "change",
    [
        str,
        lambda t: transposed(t, 2),
        lambda t: rewritten_bars(t, "double"),
        lambda t: with_rests(t, 0.1),
        lambda t: in_values(t, Fraction(2)),
        lambda t: in_values(t, Fraction(1, 2)),
    ],
)
def test_a_copy_in_disguise_is_a_copy(change: Callable[[str], str]) -> None:
    tune = max(tunes_of("train"), key=lambda tune: len(tune.tokens))
    copy = change(" ".join(tune.tokens[:128]))
    assert copied_share(copy, training_melodies()) > 0.5


def test_shipped_bounds_leave_out_few_real_tunes() -> None:
    """They come from the validation tunes; of the test tunes about as many lie beyond."""
    tunes = [" ".join(tune.tokens[:128]) for tune in tunes_of("test")]
    judge = Judge()
    measures = measured(tunes, judge.probabilities(tunes)[REAL][:, 1], training_melodies())
    for name, factor in factors(measures, judge.bounds).items():
        assert (factor < 1).float().mean() < 0.1, name
        assert factor.mean() > 0.97, name


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
    rests, run, again, bars = RestShare(), LongestRun(), Repetition(n=1), RepeatedBars()
    for metric in (rests, run, again, bars):
        metric.update(samples(["a jig"], ["C:1 z:1", "C:1 C:1 | C:1 C:1 |"]))
    assert rests.compute().item() == pytest.approx(0.25)
    assert run.compute().item() == pytest.approx(2.5)
    assert again.compute().item() == pytest.approx((0 + 3 / 4) / 2)
    assert bars.compute().item() == pytest.approx((0 + 1) / 2)


def test_problems_name_the_key() -> None:
    (problem,) = JudgeProbability("tempo").problems()  # type: ignore[arg-type]
    assert str(problem).startswith("Key `attribute`: expected one of ['origin'")
    (problem,) = TuneFactor("beauty").problems()  # type: ignore[arg-type]
    assert str(problem).startswith("Key `factor`: expected one of ['real'")
    (problem,) = TuneQuality(without=["beauty"]).problems()
    assert str(problem).startswith("Key `without`: expected names among ['real'")
    (problem,) = Repetition(n=0).problems()
    assert str(problem) == "Key `n`: expected at least 1, but got 0."
    (problem,) = TuneQuality(path="/no/such/judge").problems()
    assert str(problem).startswith("Key `path`: expected a model folder, but `/no/such/judge`")


def test_a_judge_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    (problem,) = TuneQuality(path=str(tmp_path)).problems()
    assert str(problem) == (
        f"Key `path`: expected a judge with a file bounds.json, but `{tmp_path}` has none. Make it again by"
        " recipes/tunes/judge.yaml."
    )


def test_copies_of_a_bar_are_no_further_evidence() -> None:
    """Two full bars and a wrong one. Written out: 1 of 2 kinds is right, wherever it is copied to."""
    tune = f"{FULL} | " * 8 + f"C:5 | {FULL} |"
    assert bar_validity(tune, "6/8") == pytest.approx(9 / 10)
    assert bar_validity(tune, "6/8", once=True) == pytest.approx(1 / 2)
    metric = BarValidity()
    metric.update(samples(["a jig"], [tune]))
    assert metric.compute().item() == pytest.approx(1 / 2)


def test_metrics_are_cloned_with_one_judge() -> None:
    metric = TuneQuality().load()
    assert metric.clone().judge is metric.judge
    assert not metric.state_dict()
