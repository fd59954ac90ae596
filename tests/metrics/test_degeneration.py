"""The guard against text that is none: real prose passes, each way of falling apart is caught by its own sign."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cfg_distill.audio import Waveform
from cfg_distill.embedders import NGramCounts
from cfg_distill.metrics import (
    EAD,
    Degeneration,
    DistinctN,
    EmptyShare,
    PairwiseCosineDiversity,
    SelfBLEUDiversity,
    degenerate,
)
from cfg_distill.rewards import PairwiseDiversity

PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the"
    " epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness.",
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and nothing"
    " particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.",
    "1. Boil the water.\n2. Add the leaves.\n3. Wait - four minutes are enough.\n4. Pour, and drink it hot.",
    "Roses are red, violets are blue, sugar is sweet.",
    "Ingredients:\n- 4 carrots\n- 5 celery stalks\n- 4 potatoes\n- 1 ripe banana\n- 1 cup of sugar\n* 2 cups of coconut cream",
    "समुद्र शांत था और कोई नहीं बोला। नाव धीरे-धीरे किनारे की ओर लौट रही थी।",
    "In twilight's shade, a scarf | remembers the rain | and ends - like a breath -",
)
BROKEN = {
    "empty": "",
    "two words": "The end.",
    "a loop of words": "the wind and the rain and the wind and the rain and the wind and the rain and the wind",
    "a loop inside a word": "She cried " + "a" * 80 + " and it was over",
    "bytes that are no text": "The lantern was \ufffd\ufffd in the dark of the harbour",
    "signs without words": "a story { } : ; ( ) = > < | | about * * * a cat",
}


@pytest.mark.parametrize("text", PROSE)
def test_prose_passes(text):
    assert not degenerate(text)


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_caught(name):
    assert degenerate(BROKEN[name])


def test_the_metric_is_the_share_of_a_prompt(samples_of):
    metric = Degeneration()
    metric.update(samples_of(["a", "b"], [[PROSE[0], BROKEN["empty"]], [PROSE[1], PROSE[2]]]))
    assert metric.per_prompt().tolist() == [0.5, 0.0]


# Which samples earn no diversity


def test_the_share_of_empty_samples(samples_of):
    metric = EmptyShare()
    metric.update(samples_of(["a", "b", "c"], [["x", ""], [" ...", ""], ["x", "y"]]))
    assert metric.per_prompt().tolist() == [0.5, 1.0, 0.0]
    assert metric.axis == "guard" and metric.higher_is_better is False
    sound = samples_of(["a"], [["x", "y"]])
    sound.outputs = [Waveform(torch.zeros(1, 800), 8000), Waveform(torch.ones(1, 800), 8000)]
    assert EmptyShare().score(sound).tolist() == [0.5]


def test_the_share_of_empty_samples_by_the_rule_of_an_embedder(samples_of):
    class Short(NGramCounts):
        def load(self) -> "Short":
            raise AssertionError("its weights were loaded")

        def degenerate(self, outputs: Sequence[str]) -> Tensor:
            return torch.tensor([len(output) < 3 for output in outputs])

    metric = EmptyShare(Short())
    metric.load().update(samples_of(["a"], [["a", "b c", "", "d"]]))
    assert metric.per_prompt().tolist() == [0.75]
    assert not metric.state_dict() and not list(metric.modules())[1:]
    assert EmptyShare(NGramCounts(n=0)).problems()[0].path == "embedder.init_args.n"


LOOPS = [
    "the sea and the sea and the sea and the sea and the sea and",
    "a dog ran a dog ran a dog ran a dog ran a dog ran",
]


def test_loops_are_diverse_unless_they_are_ignored(samples_of):
    """Two loops share no word, so every measure of diversity pays for them; the rule `degenerate` takes the pay away."""

    def values(group: list[str], **rule: str) -> list[float]:
        samples = samples_of(["p"], [group])
        metrics = [
            PairwiseCosineDiversity(NGramCounts(**rule)),
            SelfBLEUDiversity(**rule),
            DistinctN(**rule),
            EAD(99, **rule),
        ]
        reward = PairwiseDiversity(NGramCounts(**rule), baseline="running_mean")(samples).reward_BG.mean()
        return [float(metric.score(samples)) for metric in metrics] + [float(reward)]

    assert min(values(LOOPS)) > 0.05
    assert values(LOOPS, ignored="degenerate") == [0.0] * 5
    assert values([PROSE[0], PROSE[1]], ignored="degenerate") == values([PROSE[0], PROSE[1]])
    assert values(["Yes.", "No."])[0] == pytest.approx(1)  # short answers count, unless the recipe says otherwise
    assert values(["Yes.", "No."], ignored="degenerate")[0] == 0.0


def test_a_rule_that_is_none_is_named():
    for part in (NGramCounts(ignored="loops"), DistinctN(ignored="loops"), SelfBLEUDiversity(ignored="loops")):
        (problem,) = part.problems()
        assert str(problem) == "Key `ignored`: expected `empty` or `degenerate`, but got `loops`."
