"""Print the ladder of the quality of tunes, whole and without each factor: the table of docs/tunes.md. Minutes.

    python tests/tune_ladder.py            # on the validation tunes, which every choice was made on
    python tests/tune_ladder.py test

The prompts ask for 48 sets of slots of the tunes of the split. Each rung has up to eight tunes per prompt. Intervals are
95 % bootstraps over prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from random import Random

import torch

from cfg_distill.evaluation.front import bootstrap_interval
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Rollout, Sampling
from cfg_distill.sampling.samples import Samples, draw
from cfg_distill.tunes import ladder
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.metrics import TuneQuality
from cfg_distill.tunes.prompts import understand
from cfg_distill.tunes.quality import FACTORS
from cfg_distill.tunes.rewriting import rewritten_bars, transposed

PROMPTS, GROUP, RARE = 48, 8, 200
SAMPLED = {
    "guidance 3": (3.0, 0.8), "guidance 2": (2.0, 0.8), "guidance 3, T 1": (3.0, 1.0), "guidance 2, T 1": (2.0, 1.0),
    "base, T 1": (1.0, 1.0), "base": (1.0, 0.8),
}  # fmt: skip
STICKS = {"whole": (), **{f"- {name}": (name,) for name in FACTORS}, "no factor": FACTORS}

Groups = list[list[str]]


def matching(prompt: str, split: str) -> list[str]:
    asked = understand(prompt).slots
    return [ladder.cut(" ".join(tune.tokens)) for tune in tunes_of(split) if ladder.matches(tune.slots, asked)]


def prompts_of(split: str) -> list[str]:
    """Sets of slots that at least a group of training tunes fits."""
    found = list(dict.fromkeys(ladder.prompt_of(tune.slots) for tune in tunes_of(split)))
    Random(0).shuffle(found)
    return [prompt for prompt in found if len(matching(prompt, "train")) >= GROUP][:PROMPTS]


class Rungs:
    """The rungs of a split, as groups of tunes for each prompt."""

    def __init__(self, split: str) -> None:
        self.split, self.prompts, self.random = split, prompts_of(split), Random(0)
        self.known = [matching(prompt, "train") for prompt in self.prompts]

    def named(self) -> Iterator[tuple[str, Groups]]:
        yield "real tunes", [self._few(matching(prompt, self.split)) for prompt in self.prompts]
        generator = CausalLM("tunes:base").load()
        for name, (scale, temperature) in SAMPLED.items():
            samples: Groups = []
            for start in range(0, len(self.prompts), 24):
                sampling = Sampling(GROUP, ladder.LONGEST, temperature)
                samples += draw(generator, self.prompts[start : start + 24], sampling, Guidance(scale), start).groups()
            yield name, samples
        for make in (ladder.looped, ladder.shuffled_bars):
            yield make.__name__, [make(tunes, self.random)[:GROUP] for tunes in self.known]
        yield "loops of four bars", [self._loops(ladder.common_bars(tunes), 4) for tunes in self.known]
        for make in (ladder.random_notes, ladder.with_rests, ladder.two_bars, ladder.empty):
            yield make.__name__, [make(self._few(tunes), self.random) for tunes in self.known]
        copies = [ladder.copied(tunes, self.random)[:GROUP] for tunes in self.known]
        yield "copied", copies
        yield "copied, two semitones up", [[transposed(tune, 2) for tune in group] for group in copies]
        yield "copied, double bar signs", [[rewritten_bars(tune, "double") for tune in group] for group in copies]

    def chosen(self) -> Iterator[tuple[str, Groups]]:
        """Pools of which an adversary takes the best group, by the measure that is asked."""
        bars = [ladder.common_bars(tunes) for tunes in self.known]
        yield "chosen loops of one bar", [[ladder.loop([bar]) for bar in pool] for pool in bars]
        rare = [ladder.common_bars(tunes, number=10**6) for tunes in self.known]
        some = [self.random.sample(pool, min(RARE, len(pool))) for pool in rare]
        yield "chosen loops, of 200 bars of any kind", [[ladder.loop([bar]) for bar in pool] for pool in some]
        yield "chosen pairs of bars, then the end", [self._pairs(pool) for pool in bars]

    def _few(self, tunes: list[str]) -> list[str]:
        return self.random.sample(tunes, min(GROUP, len(tunes)))

    def _loops(self, bars: list[str], each: int) -> list[str]:
        return [ladder.loop(self.random.choices(bars, k=each)) for _ in range(GROUP)]

    def _pairs(self, bars: list[str]) -> list[str]:
        return [" | ".join(self.random.choices(bars, k=2)) + " ||" for _ in bars]


def scores(stick: TuneQuality, prompt: str, tunes: Sequence[str]) -> list[float]:
    """The quality of each tune by itself."""
    nothing = torch.zeros(0)
    return stick.score(Samples([prompt] * len(tunes), list(tunes), Rollout(nothing, nothing, nothing))).tolist()


def row(name: str, rungs: Rungs, groups: Groups, best: bool) -> str:
    cells, number = [], 0
    for stick in (TuneQuality(without=without).load() for without in STICKS.values()):
        found = [
            sorted(scores(stick, *pair), reverse=True)[: GROUP if best else None]
            for pair in zip(rungs.prompts, groups, strict=True)
        ]
        means = torch.tensor([sum(group) / len(group) for group in found])
        number = sum(map(len, found))
        mean, low, high = bootstrap_interval(means[:, None].numpy())
        cells.append(f"{mean:.3f}" if cells else f"{mean:.3f} [{low:.3f}, {high:.3f}]")
    return f"| {name} | {number} | {' | '.join(cells)} |"


def main(split: str = "validation") -> None:
    rungs = Rungs(split)
    print(f"{len(rungs.prompts)} prompts")
    print(f"| {split} | n | {' | '.join(STICKS)} |\n|{'---|' * (2 + len(STICKS))}")
    for best, source in ((False, rungs.named()), (True, rungs.chosen())):
        for name, groups in source:
            print(row(name, rungs, groups, best), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
