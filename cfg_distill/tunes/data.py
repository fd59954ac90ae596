"""The tunes as batches for pre-training: sequences of like length together, conditions dropped at random."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cfg_distill.tunes.corpus import load_corpus, tunes_of, vocabulary
from cfg_distill.tunes.prompts import NULL, SLOTS
from cfg_distill.tunes.split import SPLITS
from cfg_distill.tunes.tokenizer import build_tokenizer, sequence_of

IGNORED = -100


@dataclass
class DropConditions:
    """Replaces condition tokens by null ones: each with probability ``each``, all of a sequence with ``together``.

    So one network learns the conditional and the unconditional distribution (Ho & Salimans 2022, section 3.2).
    """

    null: Sequence[int]
    each: float = 0.1
    together: float = 0.1

    def __call__(self, tokens: Sequence[int], draw: random.Random) -> list[int]:
        all_null = draw.random() < self.together
        kept = list(tokens)
        for place, null in enumerate(self.null):
            if all_null or draw.random() < self.each:
                kept[place] = null
        return kept


def collate(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Rows of token numbers to ``tokens_NT``, padded on the right, and ``labels_NT``: music and end token; the conditions,
    the begin token and the padding are not predicted."""
    longest = max(len(row) for row in rows)
    tokens_NT = torch.full((len(rows), longest), pad)
    labels_NT = torch.full((len(rows), longest), IGNORED)
    music = len(SLOTS) + 1
    for row, tokens in enumerate(rows):
        tokens_NT[row, : len(tokens)] = torch.tensor(tokens)
        labels_NT[row, music : len(tokens)] = torch.tensor(tokens[music:])
    return {"tokens": tokens_NT, "labels": labels_NT}


class LengthBuckets(Sampler[list[int]]):
    """Batches of at most ``budget`` tokens, padding included, of sequences of like length; another order every epoch.

    Args:
        lengths: length of each sequence.
        budget: tokens per batch.
        seed: of the order; the same seed gives the same epochs. None: always from short to long.
        rank, replicas: of several processes each takes its share of the batches, all equally many.
    """

    def __init__(self, lengths: Sequence[int], budget: int, seed: int | None, rank: int = 0, replicas: int = 1) -> None:
        self.lengths, self.budget, self.seed, self.epoch = lengths, budget, seed, 0
        self.rank, self.replicas = rank, replicas

    def batches(self, epoch: int) -> list[list[int]]:
        draw = random.Random(f"{self.seed}-{epoch}")
        # The noise keeps batches of an epoch from always holding the same tunes.
        noise = 0.0 if self.seed is None else 12.0
        order = sorted(range(len(self.lengths)), key=lambda index: self.lengths[index] + noise * draw.random())
        batches: list[list[int]] = [[]]
        longest = 0
        for index in order:
            longest = max(longest, self.lengths[index])
            if batches[-1] and longest * (len(batches[-1]) + 1) > self.budget:
                batches.append([])
                longest = self.lengths[index]
            batches[-1].append(index)
        if self.seed is not None:
            draw.shuffle(batches)
        return batches[: len(batches) // self.replicas * self.replicas][self.rank :: self.replicas]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.epoch)
        self.epoch += 1

    def __len__(self) -> int:
        return len(self.batches(self.epoch))


class TunesData(lightning.LightningDataModule):
    """The corpus, split by families of near-duplicates, as batches of tokens.

    Args:
        batch_tokens: tokens per batch, padding included.
        drop_each: probability that a condition of a training sequence becomes null.
        drop_all: probability that all of them do.
        seed: of the order of the batches and of the dropped conditions.
        max_length: positions of the model; the tokenizer records it.
    """

    def __init__(
        self,
        batch_tokens: int = 4096,
        drop_each: float = 0.1,
        drop_all: float = 0.1,
        seed: int = 0,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        self.batch_tokens, self.drop_each, self.drop_all = batch_tokens, drop_each, drop_all
        self.seed, self.max_length = seed, max_length
        self.rows: dict[str, list[list[int]]] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.rows:  # Lightning asks again for each stage
            return
        self.tokenizer = build_tokenizer(vocabulary(load_corpus()), self.max_length)
        self.rows = {split: [self._numbers(sequence_of(tune)) for tune in tunes_of(split)] for split in SPLITS}
        null = self._numbers([f"<{slot}:{NULL}>" for slot in SLOTS])
        self.drop = DropConditions(null, self.drop_each, self.drop_all)
        self.drop_everything = DropConditions(null, together=1.0)
        self.draw = random.Random(self.seed)

    def _numbers(self, tokens: Sequence[str]) -> list[int]:
        numbers = self.tokenizer.convert_tokens_to_ids(list(tokens))
        return [numbers] if isinstance(numbers, int) else numbers

    def train_dataloader(self) -> DataLoader:
        rows, trainer = self.rows["train"], self.trainer
        rank, replicas = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=LengthBuckets([len(row) for row in rows], self.batch_tokens, self.seed, rank, replicas),
            collate_fn=lambda chosen: collate([self.drop(row, self.draw) for row in chosen], self._pad),
        )

    def val_dataloader(self) -> list[DataLoader]:
        """Two loaders over the same tunes: with their conditions, and with all of them dropped."""
        return self._both("validation")

    def test_dataloader(self) -> list[DataLoader]:
        return self._both("test")

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def _both(self, split: str) -> list[DataLoader]:
        without = [self.drop_everything(row, self.draw) for row in self.rows[split]]
        return [self._in_order(rows) for rows in (self.rows[split], without)]

    def _in_order(self, rows: Sequence[Sequence[int]]) -> DataLoader:
        return DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=LengthBuckets([len(row) for row in rows], 4 * self.batch_tokens, None),
            collate_fn=lambda chosen: collate(chosen, self._pad),
        )
