"""What the sticks of diversity pay for: copies of a tune, however rewritten, against different tunes, all held out.

A group of eight samples that are one tune, written in different ways, must earn next to nothing.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from random import Random

import pytest
import torch

from cfg_distill.metrics import PairwiseCosineDiversity, SampleMetric
from cfg_distill.sampling import Rollout, Samples
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.metrics import MelodicDiversity, TuneBigramDiversity
from cfg_distill.tunes.rewriting import between_rests, dotted, in_values, rewritten_bars, transposed, with_rests

NEXT_TO_NOTHING = 0.15  # of what different tunes earn
GROUPS, GROUP = 24, 8

STICKS: dict[str, Callable[[], SampleMetric]] = {
    "reward": lambda: PairwiseCosineDiversity(Tunes()),
    "figures": lambda: PairwiseCosineDiversity(Tunes("tunes:figures")),
    "rhythms": lambda: PairwiseCosineDiversity(Tunes("tunes:rhythms")),
    "melodic": MelodicDiversity,
    "bigram": TuneBigramDiversity,
}
LOOP = "C:1 E:1 G:1 E:1 C:1 E:1 G:1 c:1 | "
RUNGS: dict[str, Callable[[str, Random], list[str]]] = {
    "duplicates": lambda tune, draw: [tune] * GROUP,
    "transpositions": lambda tune, draw: [transposed(tune, by) for by in (-5, -3, 0, 2, 4, 5, 7, 12)],
    "bar signs": lambda tune, draw: [rewritten_bars(tune, s) for s in ("none", "double", "plain", "everywhere")] * 2,
    "notes made rests": lambda tune, draw: [with_rests(tune, draw.uniform(0, 0.3), draw) for _ in range(GROUP)],
    "other note values": lambda tune, draw: [in_values(tune, Fraction(f)) for f in ("1/2", "1", "2", "1")] * 2,
    "rests added": lambda tune, draw: [between_rests(tune, 0.03 * n, draw) for n in range(GROUP)],
    "all at once": lambda tune, draw: [
        with_rests(transposed(rewritten_bars(tune, "double" if n % 2 else "none"), n - 4), 0.1, draw)
        for n in range(GROUP)
    ],
    "a tune among empty samples": lambda tune, draw: [tune, "", "|", "", tune, "z:8 |", "C:1", ""],
    "a tune among loops of a bar": lambda tune, draw: [tune, *(transposed(LOOP * n, n) for n in range(5, 12))],
}


def value(stick: SampleMetric, groups: list[list[str]]) -> float:
    nothing = torch.zeros(0)
    texts = [tune for group in groups for tune in group]
    samples = Samples(["a jig"] * len(groups), texts, Rollout(nothing, nothing, nothing))
    stick.update(samples)
    return float(stick.compute())


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    tunes = [" ".join(tune.tokens[:96]) for tune in tunes_of("test")]
    Random(0).shuffle(tunes)
    return tunes[: GROUPS * GROUP]


def different(held_out: list[str]) -> list[list[str]]:
    return [held_out[start : start + GROUP] for start in range(0, GROUPS * GROUP, GROUP)]


@pytest.fixture(scope="module")
def most_of(held_out: list[str]) -> Callable[[str], float]:
    """What a stick pays for groups of different tunes; measured once."""
    return cache(lambda name: value(STICKS[name](), different(held_out)))


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", ["reward", "figures", "rhythms", pytest.param("melodic", marks=pytest.mark.slow)])
def test_rewriting_a_tune_earns_next_to_nothing(
    name: str, rung: str, held_out: list[str], most_of: Callable[[str], float]
) -> None:
    most, draw = most_of(name), Random(1)
    got = value(STICKS[name](), [RUNGS[rung](tune, draw) for tune in held_out[:GROUPS]])
    assert most > {"reward": 0.85, "figures": 0.85, "rhythms": 0.85, "melodic": 0.65}[name]
    assert got <= NEXT_TO_NOTHING * most


RHYTHMS: dict[str, Callable[[str], list[str]]] = {
    "other note values": lambda tune: [in_values(tune, Fraction(f)) for f in ("1/2", "1", "3/2", "2")] * 2,
    "other rhythms in the same bars": lambda tune: [tune, dotted(tune)] * 4,
}


@pytest.mark.slow
def test_another_rhythm_earns_next_to_nothing_from_the_reward_alone(held_out: list[str]) -> None:
    got, most = {}, {}
    for name, stick in STICKS.items():
        most[name] = value(stick(), different(held_out))
        got[name] = value(stick(), [[tune, dotted(tune)] * (GROUP // 2) for tune in held_out[:GROUPS]])
    assert got["reward"] <= NEXT_TO_NOTHING * most["reward"]
    # The measures beside it pay for rhythm; docs/tunes.md says so.
    assert all(got[name] > 3 * NEXT_TO_NOTHING * most[name] for name in ("figures", "rhythms", "melodic", "bigram"))


@pytest.mark.parametrize("name", ["reward", "figures", "rhythms", pytest.param("melodic", marks=pytest.mark.slow)])
def test_an_empty_sample_in_place_of_a_tune_never_pays(name: str, held_out: list[str]) -> None:
    groups = different(held_out)
    earned = [value(STICKS[name](), [group[: GROUP - n] + [""] * n for group in groups]) for n in (0, 1, 2, 4)]
    assert earned == sorted(earned, reverse=True)
    # One of eight takes part in a quarter of the pairs.
    assert earned[1] == pytest.approx(0.75 * earned[0], rel=0.05)


@pytest.mark.parametrize("rung", ["transpositions", "bar signs", "all at once"])
def test_bigrams_pay_for_rewriting_and_so_are_no_headline(
    rung: str, held_out: list[str], most_of: Callable[[str], float]
) -> None:
    draw = Random(1)
    got = value(STICKS["bigram"](), [RUNGS[rung](tune, draw) for tune in held_out[:GROUPS]])
    assert got > 2 * NEXT_TO_NOTHING * most_of("bigram")
