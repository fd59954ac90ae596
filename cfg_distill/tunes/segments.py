"""Segments of tunes as batches: labelled ones for the judge, and the loaders under the pairs of the encoder (pairs.py)."""

import random
from collections.abc import Sequence
from functools import partial

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cfg_distill.tunes.abc import BARS
from cfg_distill.tunes.corpus import Tune, load_corpus, tunes_of, vocabulary
from cfg_distill.tunes.split import SPLITS
from cfg_distill.tunes.tokenizer import VALUES

UNLABELLED = -1
ATTRIBUTES = ("origin", "rhythm", "mode")


def like_a_sample(tokens: Sequence[str], draw: random.Random, shortest: int, longest: int) -> Sequence[str]:
    """A segment as a model's sample would be: half of them begin where the tune does, the others at a bar."""
    bars = [place for place, token in enumerate(tokens) if token in BARS and len(tokens) - place > shortest]
    start = draw.choice(bars) if bars and draw.random() < 0.5 else 0
    return tokens[start : start + draw.randint(shortest, longest)]


class SegmentsData(lightning.LightningDataModule):
    """Tunes of the corpus as segments, drawn anew every epoch; validation and test segments stay the same.

    A batch is a dict: ``tokens`` [N, T] (0 is padding), ``family`` [N] (number of the family of near-duplicates), and
    ``origin``, ``rhythm``, ``mode`` [N], -1 where the source does not say.

    Attributes:
        parts: how many segments are cut from one tune. Several do not overlap, so shorter tunes are left out.

    Args:
        batch_size: tunes per batch.
        shortest, longest: tokens of a segment.
        seed: of the order and of the segments.
    """

    parts = 1

    def __init__(self, batch_size: int = 128, shortest: int = 48, longest: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.shortest, self.longest = shortest, longest
        self.tunes: dict[str, list[Tune]] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.tunes:  # Lightning asks again for each stage
            return
        self.music = vocabulary(load_corpus())
        self.numbers = {token: number for number, token in enumerate(self.music, start=1)}
        least = self.parts * self.shortest if self.parts > 1 else 0
        self.tunes = {split: [tune for tune in tunes_of(split) if len(tune.tokens) >= least] for split in SPLITS}

    def counts(self, attribute: str) -> Tensor:
        """How many training tunes have each value of an attribute, at least 1 (its logarithm is used), ``[values]``."""
        values = [tune.slots[attribute] for tune in self.tunes["train"]]
        return torch.tensor([values.count(value) for value in VALUES[attribute]], dtype=torch.float).clamp(min=1)

    def train_dataloader(self) -> DataLoader:
        draw = random.Random(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.tunes["train"],  # type: ignore[arg-type]
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=len(self.tunes["train"]) > self.batch_size,
            generator=generator,
            collate_fn=partial(self.collate, draw=draw),
        )

    def val_dataloader(self) -> DataLoader:
        return self._all_at_once("validation")

    def test_dataloader(self) -> DataLoader:
        return self._all_at_once("test")

    def _all_at_once(self, split: str) -> DataLoader:
        """One batch that holds every tune of a split: retrieval and calibration look at all of them together."""
        # A new generator for each batch gives the same segments in every epoch.
        return DataLoader(
            self.tunes[split],  # type: ignore[arg-type]
            batch_size=max(1, len(self.tunes[split])),
            collate_fn=lambda tunes: self.collate(tunes, random.Random(self.seed)),
        )

    def collate(self, tunes: Sequence[Tune], draw: random.Random) -> dict[str, Tensor]:
        rows = [like_a_sample(tune.tokens, draw, self.shortest, self.longest) for tune in tunes]
        family_N = torch.tensor([tune.cluster for tune in tunes])
        return {"tokens": self.padded(rows), "family": family_N, **labels_of(tunes)}

    def padded(self, rows: Sequence[Sequence[str]]) -> Tensor:
        """Token numbers ``[N, T]``, 0 behind the end of a row. Tokens that no tune has are skipped."""
        numbered = [[self.numbers[token] for token in tokens if token in self.numbers] for tokens in rows]
        tokens_NT = torch.zeros(len(rows), max(map(len, numbered)), dtype=torch.long)
        for row, numbers in enumerate(numbered):
            tokens_NT[row, : len(numbers)] = torch.tensor(numbers)
        return tokens_NT


def labels_of(tunes: Sequence[Tune]) -> dict[str, Tensor]:
    """Numbers of the values of each attribute, ``[N]``, in the order of :data:`cfg_distill.tunes.tokenizer.VALUES`."""
    labels = {}
    for attribute in ATTRIBUTES:
        known = {value: number for number, value in enumerate(VALUES[attribute])}
        labels[attribute] = torch.tensor([known.get(tune.slots[attribute], UNLABELLED) for tune in tunes])
    return labels
