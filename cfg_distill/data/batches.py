"""Which prompts make which batch on which process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler


class Prompts(Dataset):
    """Prompts, taken a list of indices at a time."""

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, indices: list[int]) -> list[str]:
        return [self.prompts[index] for index in indices]


class PromptBatches(DistributedSampler):
    """Indices of whole batches, as even in size as can be, the same number of them on every process.

    The order depends on seed and epoch only. It is cut into ``len(self) * world`` batches of near-equal size, dealt to
    the processes in turn: no prompt is dropped; one is repeated only when there are more batches than prompts.
    So a metric over all processes sees each prompt once, and no process waits for a forward that another never makes.

    It is a DistributedSampler, so that Lightning tells it the epoch and puts no sampler of its own in its place.

    Args:
        size: the number of prompts.
        batch_size: the most prompts in a batch.
        shuffle: another order every epoch.
        seed: of the order.
        rank: this process.
        world: the number of processes.
    """

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(Prompts([""] * size), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)
        self.size = size
        share = -(-size // world)
        self.num_batches = -(-share // batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        order = self._order()
        total = self.num_batches * self.num_replicas
        for number in range(self.rank, total, self.num_replicas):
            batch = order[number * self.size // total : (number + 1) * self.size // total]
            yield batch or [order[number % self.size]]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        random = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.size, generator=random).tolist()
