"""What the judge learns to tell from tunes as in the books: degenerate tunes, made of the bars of real ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cfg_distill.tunes.corpus import Tune
from cfg_distill.tunes.ladder import looped, matches, random_notes, shuffled_bars, with_rests
from cfg_distill.tunes.segments import UNLABELLED, SegmentsData, like_a_sample
from cfg_distill.tunes.split import SPLITS

REAL = "real"
"""The judge's head, and the key of its labels: 1 for a segment of a real tune, 0 for one of a degenerate tune."""

# Shuffled bars twice: they are right in every bar and repeat no more than real tunes, so only the judge can tell them. Two
# bars, an empty tune and a copy are no negatives: they are music as far as they go. Other factors of the quality see them.
OF_BARS = (looped, shuffled_bars, shuffled_bars)
"""Makers that choose among the commonest bars of all tunes."""
OF_TUNES = (random_notes, with_rests)
"""Makers that change each tune by itself."""


def degenerate(tunes: Sequence[Tune], prompts: int, each: int, seed: int) -> list[list[str]]:
    """Degenerate tunes, one list for each maker of :data:`OF_BARS` and of :data:`OF_TUNES`.

    Args:
        tunes: whose slots are asked for, and of whose bars the degenerate tunes are made.
        prompts: how often the slots of a tune are drawn. The bars are those of all tunes that fit them.
        each: degenerate tunes per drawn slots and maker; fewer where fewer tunes fit.
        seed: of all that is drawn.
    """
    draw = random.Random(seed)
    made: list[list[str]] = [[] for _ in (*OF_BARS, *OF_TUNES)]
    for _ in range(prompts):
        slots = draw.choice(tunes).slots
        fitting = [" ".join(tune.tokens) for tune in tunes if matches(tune.slots, slots)]
        few = draw.sample(fitting, min(each, len(fitting)))
        new = [make(fitting, draw)[: len(few)] for make in OF_BARS] + [make(few, draw) for make in OF_TUNES]
        for kind, tunes_of_kind in zip(made, new, strict=True):
            kind += tunes_of_kind
    return made


class JudgeData(SegmentsData):
    """Segments of tunes, and as many of degenerate tunes behind them.

    A batch has the keys of :class:`SegmentsData`, and ``real`` [N]: 1, and 0 for the degenerate ones, whose other labels
    are all -1.

    Args:
        prompts, each: see :func:`degenerate`, for the training tunes. The other sets have a quarter of the prompts.
        common: the arguments of :class:`SegmentsData`.
    """

    def __init__(self, prompts: int = 160, each: int = 8, **common: Any) -> None:
        super().__init__(**common)
        self.prompts, self.each = prompts, each
        self.negatives: dict[str, list[list[str]]] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.tunes:  # Lightning asks again for each stage
            return
        super().setup(stage)
        for place, split in enumerate(SPLITS):
            prompts = self.prompts if split == "train" else self.prompts // 4
            self.negatives[split] = degenerate(self.tunes[split], prompts, self.each, self.seed + place)

    def collate(self, tunes: Sequence[Tune], draw: random.Random) -> dict[str, Tensor]:
        batch = super().collate(tunes, draw)
        kinds = self.negatives[tunes[0].split]
        chosen = [draw.choice(kinds[place % len(kinds)]) for place in range(len(tunes))]
        made_NT = self.padded([like_a_sample(tune.split(), draw, self.shortest, self.longest) for tune in chosen])
        tokens_NT = batch.pop("tokens")
        longest = max(tokens_NT.shape[1], made_NT.shape[1])
        rows = [torch.nn.functional.pad(part_NT, (0, longest - part_NT.shape[1])) for part_NT in (tokens_NT, made_NT)]
        none_N = torch.full((len(chosen),), UNLABELLED)
        labels = {name: torch.cat([labels_N, none_N]) for name, labels_N in batch.items()}
        return {"tokens": torch.cat(rows), REAL: torch.tensor([1] * len(tunes) + [0] * len(chosen)), **labels}
