"""The ladder of tunes: held-out tunes, samples of the base with and without guidance, and tunes that must not be paid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from random import Random
from typing import Any

from cfg_distill.data import read_prompts
from cfg_distill.errors import Problem, PromptProblem
from cfg_distill.evaluation.ladder import Ladder, Rung, RungKind, enough, samples_of
from cfg_distill.generators import CausalLM, Guidance, Prompt, PromptLike, device
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw
from cfg_distill.tunes import ladder as makers
from cfg_distill.tunes import rewriting
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.metrics import TuneQuality
from cfg_distill.tunes.prompts import NULL, problems_of_prompts, understand

HELD_OUT = ("validation", "test")
STYLES: tuple[rewriting.Style, ...] = ("plain", "double", "none", "everywhere")
SEMITONES = (0, 2, 5, 7)
SHARES = (0.0, 0.1, 0.2, 0.4)
VALUES = (Fraction(1), Fraction(2), Fraction(1, 2), Fraction(1))


class TuneLadder(Ladder):
    """The ladder of tunes; derive from it and change its attributes for another model.

    Attributes:
        path: the model of the rungs ``base`` and ``guided``.
        guidance: the scale of the guided rung.
        temperature: of both.
        samples: tunes per prompt.
        longest: tokens of a tune.
        seed: of the samples and of all that is random.
    """

    path = "tunes:base"
    guidance = 2.0
    temperature = 0.8
    samples = 4
    longest = 128
    seed = 0

    def prompts(self) -> Sequence[PromptLike]:
        """The development prompts for which there are enough held-out tunes."""
        prompts = read_prompts("recipes/tunes/prompts/validation.txt")
        return [prompt for prompt in prompts if len(self.tunes(prompt, HELD_OUT)) >= self.samples]

    def prompts_among(self, prompts: Sequence[PromptLike]) -> Sequence[PromptLike]:
        """The prompts of a study for which there are enough held-out tunes."""
        read = [p for p in prompts if not problems_of_prompts([str(p)])]  # of the others the study itself has problems
        return enough([p for p in read if len(self.tunes(p, HELD_OUT)) >= self.samples]) or self.prompts()

    def problems(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        if unread := problems_of_prompts(map(str, prompts)):
            return unread
        found = [] if len(prompts) >= 2 else [Problem("", f"Expected at least 2 prompts, but got {len(prompts)}.")]
        for prompt in prompts:
            if (count := len(self.tunes(prompt, HELD_OUT))) < self.samples:
                text = f"expected {self.samples} held-out tunes of its kind, but there are {count}. Leave it out."
                found.append(PromptProblem.of(prompt, text))
        return found

    def tunes(self, prompt: PromptLike, splits: Sequence[str]) -> list[str]:
        """The tunes of some splits that are what a prompt asks for, each cut to the length of a sample."""
        asked = understand(Prompt.of(prompt).text).slots
        return [
            " ".join(tune.tokens[: self.longest])
            for split in splits
            for tune in tunes_of(split)
            if all(value in (NULL, tune.slots[slot]) for slot, value in asked.items())
        ]

    def rungs(self, prompts: Sequence[PromptLike]) -> Iterator[Rung]:
        generator = CausalLM(self.path).load().to(device())
        random, judge = Random(self.seed), TuneQuality().load()
        real = [Random(self.seed).sample(self.tunes(prompt, HELD_OUT), self.samples) for prompt in prompts]
        known = [self.tunes(prompt, ["train"]) or self.tunes(prompt, HELD_OUT) for prompt in prompts]

        def rung(name: str, kind: RungKind, groups: Sequence[Sequence[Any]]) -> Rung:
            return Rung(name, kind, samples_of(prompts, groups, generator, self.longest))

        def made(name: str, maker: Callable[..., list[str]], pools: Sequence[Sequence[str]]) -> Rung:
            return rung(name, "degenerate", [maker(pool, random)[: self.samples] for pool in pools])

        def first(name: str, change: Callable[[str, int], str]) -> Rung:
            return rung(name, "same", [[change(group[0], n) for n in range(len(group))] for group in real])

        yield rung("held-out tunes", "real", real)
        sampling = Sampling(self.samples, self.longest, self.temperature)
        yield Rung(
            "guided", "guided", partial(draw, generator, prompts, sampling, Guidance(self.guidance), self.seed + 1)
        )
        yield Rung("base", "base", partial(draw, generator, prompts, sampling, None, self.seed))
        yield made("looped bar", makers.looped, known)
        chosen = [
            makers.chosen_loops(pool, random, partial(self._qualities, judge, prompt))
            for prompt, pool in zip(prompts, known, strict=True)
        ]
        yield rung("chosen loops", "degenerate", [loops[: self.samples] for loops in chosen])
        yield made("shuffled bars", makers.shuffled_bars, known)
        yield made("random notes", makers.random_notes, real)
        yield made("every third note a rest", makers.with_rests, real)
        yield made("two bars", makers.two_bars, real)
        yield made("empty", makers.empty, real)
        yield made("a training tune copied", makers.copied, known)
        yield rung("different tunes", "different", real)
        yield first("transposed", lambda tune, n: rewriting.transposed(tune, SEMITONES[n % len(SEMITONES)]))
        yield first("bar signs", lambda tune, n: rewriting.rewritten_bars(tune, STYLES[n % len(STYLES)]))
        yield first("note values", lambda tune, n: rewriting.in_values(tune, VALUES[n % len(VALUES)]))
        yield first("notes made rests", lambda tune, n: rewriting.with_rests(tune, SHARES[n % len(SHARES)]))
        yield first("rests put in", lambda tune, n: rewriting.between_rests(tune, SHARES[n % len(SHARES)]))
        yield first("an empty one", lambda tune, n: tune if n else "")
        yield first("all empty", lambda tune, n: "")

    @staticmethod
    def _qualities(judge: TuneQuality, prompt: PromptLike, tunes: Sequence[str]) -> list[float]:
        return judge.score(samples_of([prompt] * len(tunes), [[tune] for tune in tunes])).tolist()
