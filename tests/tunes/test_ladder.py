"""The quality of tunes orders what it must: real tunes, guided samples, samples of the base, then all that is degenerate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from random import Random

import pytest
import torch

from cfg_distill.data import read_prompts
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Rollout, Sampling
from cfg_distill.sampling.samples import Samples, draw
from cfg_distill.tunes import ladder
from cfg_distill.tunes.bars import METRES, bar_validity, likely_metre, read_bars, read_note
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.metrics import TuneQuality
from cfg_distill.tunes.prompts import understand

GROUP = 6
MOST = 100  # tunes that fit a prompt, of whose bars the degenerate ones are made: all of them take long to read
REAL = "C:2 E:2 G:2 c:2 | B:2 G:2 F:2 D:2 | C:2 E:2 G:2 c:2 | c:4 z:4 | G:3 F:1 E:2 D:2 | C:8 |"


def of(prompts: Sequence[str], groups: Sequence[Sequence[str]]) -> Samples:
    nothing = torch.zeros(0)
    return Samples(list(prompts), [tune for group in groups for tune in group], Rollout(nothing, nothing, nothing))


class Ladder:
    """The rungs on the development prompts: six tunes per prompt that some held-out tune fits, from fixed seeds."""

    def __init__(self) -> None:
        prompts = read_prompts("recipes/tunes/prompts/validation.txt")
        self.prompts = [prompt for prompt in prompts if self.matching(prompt, "validation")]
        self.stick = TuneQuality().load()
        self.qualities: dict[str, float] = {}
        self.generator = CausalLM("tunes:base").load()

    def quality(self, name: str, make: Callable[[], Samples]) -> float:
        """The quality of a rung; measured once."""
        if name not in self.qualities:
            self.qualities[name] = float(self.stick.score(make()).mean())
        return self.qualities[name]

    def sampled(self, scale: float) -> float:
        sampling = Sampling(samples=GROUP, max_new_tokens=128, temperature=0.8)
        return self.quality(
            f"guidance {scale}", lambda: draw(self.generator, self.prompts, sampling, Guidance(scale), seed=1)
        )

    def real(self) -> float:
        def groups() -> Samples:
            return of(self.prompts, [_some(self.matching(prompt, "validation")) for prompt in self.prompts])

        return self.quality("real", groups)

    def degenerate(self, make: Callable[..., list[str]]) -> float:
        def groups() -> Samples:
            made = [self._made(make, prompt, Random(f"{prompt}")) for prompt in self.prompts]
            return of(self.prompts, made)

        return self.quality(make.__name__, groups)

    @staticmethod
    @cache
    def matching(prompt: str, split: str) -> list[str]:
        asked = understand(prompt).slots
        fitting = (tune for tune in tunes_of(split) if ladder.matches(tune.slots, asked))
        return [ladder.cut(" ".join(tune.tokens)) for tune in islice(fitting, MOST)]

    def _made(self, make: Callable[..., list[str]], prompt: str, random: Random) -> list[str]:
        tunes = self.matching(prompt, "train")
        if make is ladder.chosen_loops:
            return make(tunes, random, lambda loops: self.stick.score(of([prompt] * len(loops), [[t] for t in loops])))[
                :GROUP
            ]
        of_each = make in (ladder.random_notes, ladder.with_rests, ladder.two_bars)
        return make(random.sample(tunes, GROUP) if of_each else tunes, random)[:GROUP]


def _some(tunes: list[str]) -> list[str]:
    """As many of the tunes as a group holds, drawn at random; some twice where there are fewer."""
    return (Random(0).sample(tunes, len(tunes)) * GROUP)[:GROUP]


@pytest.fixture(scope="module")
def climbed() -> Ladder:
    return Ladder()


@pytest.mark.slow
def test_real_tunes_stand_above_guided_samples_and_these_above_the_base(climbed: Ladder) -> None:
    guided = [climbed.sampled(2.0), climbed.sampled(3.0)]
    assert climbed.real() > max(guided)
    assert min(guided) > climbed.sampled(1.0)


@pytest.mark.parametrize(
    "make",
    [
        ladder.looped,
        ladder.chosen_loops,
        ladder.shuffled_bars,
        ladder.random_notes,
        ladder.with_rests,
        ladder.two_bars,
        ladder.empty,
        ladder.copied,
    ],
)
def test_no_degenerate_tune_buys_quality(climbed: Ladder, make: Callable[..., list[str]]) -> None:
    assert climbed.degenerate(make) < climbed.sampled(1.0) - 0.03


# The makers


def test_loops_repeat_one_bar() -> None:
    for tune in ladder.looped([REAL, REAL], Random(0)) + ladder.chosen_loops(
        [REAL], Random(0), lambda loops: [0] * len(loops)
    ):
        assert len({bar.content for bar in read_bars(tune)[:-1]}) == 1
        assert len(tune.split()) == ladder.LONGEST


def test_the_commonest_bar_is_first_and_no_bar_that_does_not_add_up() -> None:
    assert ladder.common_bars([REAL, "C:1 D:1 | " + REAL], number=2)[0] == "C:2 E:2 G:2 c:2"
    assert all("D:1" not in bar for bar in ladder.common_bars(["C:1 D:1 | " + REAL]))


def test_chosen_loops_are_the_best_of_the_common_bars_first() -> None:
    wanted = {"C:2 E:2 G:2 c:2": 3.0, "C:8": 2.0, "c:4 z:4": 1.0}
    scores = lambda loops: [wanted.get(loop.split(" |")[0], 0.0) for loop in loops]  # noqa: E731
    assert [tune.split(" |")[0] for tune in ladder.chosen_loops([REAL] * 3, Random(0), scores)] == list(wanted)


def test_shuffled_bars_are_common_bars() -> None:
    (tune,) = ladder.shuffled_bars([REAL], Random(0))
    assert set(tune.split(" | ")[:-1]) <= set(ladder.common_bars([REAL]))


def test_random_notes_add_up_and_are_notes_of_the_tunes() -> None:
    for tune in ladder.random_notes([REAL, "C:1 D:1 E:1 F:1 G:1 A:1 | " * 4], Random(0)):
        assert bar_validity(tune, likely_metre(tune)) == 1.0
        assert all(bar.eighths == METRES[likely_metre(tune)] for bar in read_bars(tune)[:-1])


def test_every_third_note_a_rest_of_its_length() -> None:
    (tune,) = ladder.with_rests([REAL], Random(0))
    notes, made = ([read_note(token) for token in text.split() if read_note(token)] for text in (REAL, tune))
    assert [note.length for note in notes] == [note.length for note in made]  # type: ignore[union-attr]
    changed = [place for place, (one, other) in enumerate(zip(notes, made, strict=True)) if one != other]
    assert {place % 3 for place in changed} == {changed[0] % 3}
    assert len(changed) >= len(notes) // 3 - 1


def test_two_bars_empty_and_copied() -> None:
    (short,) = ladder.two_bars([REAL], Random(0))
    assert len(read_bars(short)) == 2
    assert ladder.empty([REAL, REAL], Random(0)) == ["", ""]
    assert ladder.copied([REAL, "C:8 |"], Random(0)) in ([REAL] * 2, ["C:8 |"] * 2)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_prompt_of_slots_asks_for_these_slots(split: str) -> None:
    for slots in {tuple(tune.slots.items()) for tune in tunes_of(split)}:
        assert understand(ladder.prompt_of(dict(slots))).slots == dict(slots)
