"""The reward of music: the listener's probability, and what a product with it pays for."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import torch

from cfg_distill.errors import ConfigError
from cfg_distill.rewards import Mixed, PairwiseDiversity
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


@pytest.mark.parametrize("make", [ladder.looped, ladder.shuffled_bars, ladder.random_notes, ladder.with_rests])
def test_degenerate_tunes_earn_less_than_real_ones(make: Callable[..., list[str]], real: list[str]) -> None:
    of_each = make in (ladder.random_notes, ladder.with_rests)
    made = make(real[:GROUP] if of_each else [" ".join(tune.tokens) for tune in tunes_of("train")[:64]], Random(0))
    reward = RealTune().load()
    paid = float(reward(group(real)).reward_BG.mean())
    assert paid > 0.8
    assert float(reward(group((made * GROUP)[:GROUP])).reward_BG.mean()) < paid / 2


def test_a_product_pays_a_tune_that_differs_only_where_it_is_music(real: list[str]) -> None:
    """Random notes are as far from all others as a tune is. Alone, diversity pays them; in the product a tune gets more."""
    noise = ladder.random_notes(real[:1], Random(0))
    samples = group([*real[: GROUP - 1], *noise])
    alone = PairwiseDiversity(Tunes()).load()(samples).advantage_BG[0]
    product = Mixed({"real": RealTune(), "phrases": PairwiseDiversity(Tunes())}, mode="multiplicative", calibration=0)
    both = product.load()(samples).advantage_BG[0]
    assert int(both.argmin()) == GROUP - 1
    assert both[-1] < alone[-1]


def test_a_folder_without_a_judge_is_refused() -> None:
    (problem,) = RealTune("tunes:encoder").problems()
    assert str(problem).startswith(
        "Key `path`: expected a judge with a file bounds.json, but `tunes:encoder` has none."
    )
    with pytest.raises(ConfigError, match="expected text"):
        RealTune().load().score(Samples(["a"], [torch.zeros(1)] * 2, Rollout(*[torch.zeros(0)] * 3)))
