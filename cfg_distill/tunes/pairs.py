"""Pairs of parts of one tune, some of their notes made rests: what the tune encoder learns from. Shapes: M tunes, L notes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cfg_distill.tunes.canonical import Sounding, sounding_notes
from cfg_distill.tunes.corpus import Tune
from cfg_distill.tunes.notes import rows_of
from cfg_distill.tunes.rewriting import dotted
from cfg_distill.tunes.segments import SegmentsData

T = TypeVar("T")


def two_parts(tokens: Sequence[T], draw: random.Random, shortest: int, longest: int) -> list[Sequence[T]]:
    """Two segments of a tune that do not overlap. The tune must hold at least twice ``shortest`` tokens."""
    cut = draw.randint(shortest, len(tokens) - shortest)
    parts = []
    for part in (tokens[:cut], tokens[cut:]):
        length = draw.randint(shortest, max(shortest, min(longest, len(part))))
        start = draw.randint(0, len(part) - length)
        parts.append(part[start : start + length])
    return parts


class TunePairs(SegmentsData):
    """Two parts of each tune that do not overlap, drawn anew every epoch; validation and test parts stay the same.

    A batch is a dict: ``notes`` [3, M, L, 3] (:func:`cfg_distill.tunes.notes.rows_of`): the first parts with rests, some of
    them in other rhythms; the second parts with rests; the first parts as they are. And ``family`` [M], the number of the
    family of near-duplicates.

    Args:
        batch_size: M, tunes per batch.
        shortest, longest: tokens of a part.
        rests: of each part a share of the notes, drawn between 0 and this, is made rests.
        dotted: share of the tunes whose first part is in other rhythms (:func:`cfg_distill.tunes.rewriting.dotted`).
        seed: of the order, the parts and the rests.
    """

    parts = 2

    def __init__(
        self,
        batch_size: int = 128,
        shortest: int = 24,
        longest: int = 96,
        rests: float = 0.6,
        dotted: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, shortest, longest, seed)
        self.rests, self.dotted = rests, dotted

    def heard(self, split: str) -> list[tuple[Sounding, ...]]:
        """The first and the last ``longest`` tokens of each tune of a split."""
        return [
            sounding_notes(" ".join(part))
            for tune in self.tunes[split]
            for part in (tune.tokens[: self.longest], tune.tokens[-self.longest :])
        ]

    def collate(self, tunes: Sequence[Tune], draw: random.Random) -> dict[str, Tensor]:
        views: tuple[list[list[Sounding]], ...] = ([], [], [])
        for tune in tunes:
            text = " ".join(tune.tokens)
            plain = sounding_notes(text)
            other = sounding_notes(dotted(text)) if draw.random() < self.dotted else plain
            first, second = two_parts(range(len(tune.tokens)), draw, self.shortest, self.longest)
            parts = [
                [note for note in notes if note.place in part]
                for notes, part in ((other, first), (plain, second), (plain, first))
            ]
            for view, part in zip(views[:2], parts[:2], strict=True):
                # Every onset is kept: a note that is left out is a rest.
                share = draw.uniform(0, self.rests)
                view.append([note for note in part if draw.random() >= share])
            views[2].append(parts[2])
        notes_3ML3 = rows_of([part for view in views for part in view]).unflatten(0, (3, -1))
        return {"notes": notes_3ML3, "family": torch.tensor([tune.cluster for tune in tunes])}
