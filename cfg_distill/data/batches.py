"""Which prompts make which batch on which process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch.utils.data import Dataset, DistributedSampler

from cfg_distill.prompt import PromptLike


class Prompts(Dataset):
    """Prompts, indexed by lists of numbers: one list is one batch."""

    def __init__(self, prompts: Sequence[PromptLike]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, indices: list[int]) -> list[PromptLike]:
        return [self.prompts[index] for index in indices]


class PromptBatches(DistributedSampler):
    """Indices of whole batches, as even in size as can be, the same number of them on every process.

    The order depends on seed and epoch only. It is cut into ``len(self) * world`` batches of near-equal size, dealt to
    the processes in turn. No prompt is dropped, and one is repeated only when there are more batches than prompts.
    So a metric over all processes sees each prompt once, and no process waits for a forward that another never makes.

    A step of the optimiser takes ``batch_size * world * accumulate`` prompts at most. Only this product decides which prompts
    make which step: one process with batches of 8, two of 4, and one that accumulates four batches of 2 take the same steps.
    So each step has all its batches; the last one of an epoch is not shorter than the others. (The exception: with fewer
    prompts than batches a prompt is repeated, and the product does not say how many are.)

    It is a DistributedSampler, so that Lightning sets its epoch and does not replace it by a sampler of its own.

    Args:
        size: the number of prompts.
        batch_size: the most prompts in a batch.
        shuffle: another order every epoch.
        seed: of the order.
        rank: this process.
        world: the number of processes.
        accumulate: the batches of a process that make one step.
    """

    def __init__(
        self, size: int, batch_size: int, shuffle: bool, seed: int, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> None:
        super().__init__(Prompts([""] * size), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)
        self.size = size
        self.accumulate = accumulate
        self.dealing: _Deal | None = None
        self.num_batches = accumulate * -(-size // (batch_size * world * accumulate))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        self.dealing = _Deal(self)
        return self.dealing

    def upcoming(self) -> list[int]:
        """The numbers of the next batch of this epoch, which stays the next one; empty when there is none."""
        dealing = self.dealing
        return dealing.at(dealing.number) if dealing is not None and 0 < dealing.number < len(self) else []

    def order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        random = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.size, generator=random).tolist()


class _Deal:
    """One epoch's batches, with a state.

    The loader's own way to resume knows no epochs: resumed at the last step of an epoch, it would deal an empty epoch, and
    one epoch of training would be lost.
    """

    def __init__(self, batches: PromptBatches) -> None:
        self.batches = batches
        self.order: list[int] = []
        self.number = 0
        self.loaded: dict[str, int] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[int]:
        batches = self.batches
        if not self.order:
            # Only now: Lightning sets the epoch after the state is loaded.
            self.order = batches.order()
            if self.loaded is not None and self.loaded["epoch"] == batches.epoch:
                self.number = self._place(**self.loaded)
            self.loaded = None
        if self.number == len(batches):
            raise StopIteration
        self.number += 1
        return self.at(self.number - 1)

    def at(self, number: int) -> list[int]:
        """One batch of this epoch, by its number."""
        batches = self.batches
        place, total = number * batches.num_replicas + batches.rank, len(batches) * batches.num_replicas
        batch = self.order[place * batches.size // total : (place + 1) * batches.size // total]
        return batch or [self.order[place % batches.size]]

    def state_dict(self) -> dict[str, int]:
        return self.loaded or {"epoch": self.batches.epoch, "number": self.number, "of": len(self.batches)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.loaded = state_dict

    def _place(self, epoch: int, number: int, of: int = 0) -> int:
        """The batch to go on with, where ``number`` batches of ``of`` were dealt in a run that may have been split otherwise.

        The place in the epoch is kept, rounded down to a whole step. Version 0.1 saved no ``of``.
        """
        now = len(self.batches)
        if of in (0, now):
            return number
        return now * number // of // self.batches.accumulate * self.batches.accumulate
