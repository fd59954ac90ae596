"""The guard against text that is none: real prose passes, each way of falling apart is caught by its own sign."""

import pytest

from cfg_distill.metrics import Degeneration, degenerate

PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the"
    " epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness.",
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and nothing"
    " particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.",
    "1. Boil the water.\n2. Add the leaves.\n3. Wait - four minutes are enough.\n4. Pour, and drink it hot.",
    "Roses are red, violets are blue, sugar is sweet.",
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
