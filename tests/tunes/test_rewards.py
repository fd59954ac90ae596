"""The reward of music: the listener's probability, and what a product with it pays for."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import torch

from cfg_distill.errors import ConfigError
from cfg_distill.rewards import Mixed, PairwiseDiversity, Reward
from cfg_distill.sampling.rollout import Rollout
from cfg_distill.sampling.samples import Samples
from cfg_distill.tunes import ladder
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.judge import Judge
from cfg_distill.tunes.negatives import REAL
from cfg_distill.tunes.rewards import RealTune

GROUP = 8


def group(tunes: list[str]) -> Samples:
    nothing = torch.zeros(len(tunes), 1, 1)
    return Samples(["a reel"] * (len(tunes) // GROUP), tunes, Rollout(nothing, nothing, nothing))


@pytest.fixture(scope="module")
def real() -> list[str]:
    """The first 96 tokens of test tunes, of which the listener has seen none."""
    return [" ".join(tune.tokens[:96]) for tune in tunes_of("test")][: 8 * GROUP]


def test_it_is_the_listener_s_probability(real: list[str]) -> None:
    reward = RealTune().load()(group(real)).reward_BG
    assert reward.shape == (8, GROUP)
    assert torch.equal(reward.flatten(), Judge("tunes:listener").probabilities(real)[REAL][:, 1])
    assert not torch.allclose(reward.flatten(), Judge().probabilities(real)[REAL][:, 1], atol=1e-3)


def test_words_that_are_no_tune_are_refused_and_samples_without_a_note_earn_nothing() -> None:
    reward = RealTune().load()
    with pytest.raises(ConfigError, match=r"^Reward `RealTune`: expected tunes .* the model writes `a fox ran away`"):
        reward(group(["a fox ran away"] * GROUP))
    assert not reward(group(["", "|1 |1", "z:1 z:1"] + [""] * (GROUP - 3))).reward_BG.any()


@pytest.mark.parametrize("make", [ladder.looped, ladder.shuffled_bars, ladder.random_notes, ladder.with_rests])
def test_degenerate_tunes_earn_less_than_real_ones(make: Callable[..., list[str]], real: list[str]) -> None:
    of_each = make in (ladder.random_notes, ladder.with_rests)
    made = make(real[:GROUP] if of_each else [" ".join(tune.tokens) for tune in tunes_of("train")[:64]], Random(0))
    reward = RealTune().load()
    paid = float(reward(group(real)).reward_BG.mean())
    assert paid > 0.8
    assert float(reward(group((made * GROUP)[:GROUP])).reward_BG.mean()) < paid / 2


@pytest.mark.parametrize("kind", ["two bars", "random notes", "rests", "loop", "shuffled bars", "twin", "empty"])
def test_a_sample_that_is_no_new_music_loses_in_the_product(kind: str, real: list[str]) -> None:
    """One sample among seven real tunes; the mean of several groups. Distance alone would pay random notes."""
    known = [" ".join(tune.tokens) for tune in tunes_of("train")[:64]]
    makers: dict[str, Callable[[list[str], Random], list[str]]] = {
        "two bars": lambda tunes, draw: ladder.two_bars(tunes[:1], draw),
        "random notes": lambda tunes, draw: ladder.random_notes(tunes[:1], draw),
        "rests": lambda tunes, draw: ladder.with_rests(tunes[:1], draw),
        "loop": lambda _, draw: ladder.looped(known, draw),
        "shuffled bars": lambda _, draw: ladder.shuffled_bars(known, draw),
        "twin": lambda tunes, _: tunes[:1],
        "empty": lambda *_: [""],
    }
    groups = [real[start : start + GROUP - 1] for start in range(0, len(real), GROUP)]
    made = [[*tunes, makers[kind](tunes, Random(number))[0]] for number, tunes in enumerate(groups)]
    phrases, figures = PairwiseDiversity(Tunes()), PairwiseDiversity(Tunes("tunes:figures"))
    parts: dict[str, Reward] = {"real": RealTune(), "phrases": phrases, "figures": figures}
    weights = {"real": 2.0, "phrases": 0.5, "figures": 0.5}
    product = Mixed(parts, weights, mode="multiplicative", calibration=0).load()
    assert float(product(group([tune for tunes in made for tune in tunes])).advantage_BG[:, -1].mean()) < -0.05


def test_a_folder_without_a_judge_is_refused() -> None:
    (problem,) = RealTune("tunes:encoder").problems()
    assert str(problem).startswith(
        "Key `path`: expected a judge with a file bounds.json, but `tunes:encoder` has none."
    )
    with pytest.raises(ConfigError, match="expected text"):
        RealTune().load().score(Samples(["a"], [torch.zeros(1)] * 2, Rollout(*[torch.zeros(0)] * 3)))
