"""Random numbers that depend on what is drawn, and on nobody who draws it. Shapes: N rows, K codebooks, T positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Seeds:
    """Keys of the random numbers of groups of samples: every sample has a stream of its own.

    The key of a stream is (words, place of the prompt, number of the sample). Neither the other prompts of the batch nor the
    process nor the device has a part in it. So a batch may be cut in any way, over time or over devices: the numbers of a
    sample stay the same.

    Args:
        words: what all prompts share: the seed of the run, the step, the attempt.
        places: of each prompt among all prompts that are drawn under these words, on all devices.
        numbers: of the one sample that is drawn of each place, where a group is drawn a sample at a time; None for groups.
        group_words: in place of the words, for what a prompt has as a whole: its labels stay when samples are drawn again.

    Example:
        >>> whole = Seeds((7,), range(4)).uniform_NKT(group=2, num_codebooks=1, num_positions=5)
        >>> half = Seeds((7,), range(2, 4)).uniform_NKT(group=2, num_codebooks=1, num_positions=5)
        >>> torch.equal(whole[4:], half)
        True
    """

    words: tuple[int, ...]
    places: Sequence[int]
    numbers: Sequence[int] | None = None
    group_words: tuple[int, ...] | None = None

    @classmethod
    def of(cls, seed: int | Seeds, num_prompts: int) -> Seeds:
        """The keys under a plain number: the prompts of the batch are all that there are."""
        return seed if isinstance(seed, Seeds) else cls((seed,), range(num_prompts))

    def apart(self, group: int) -> Seeds:
        """The same streams, with each sample as a group of its own.

        Example:
            >>> seeds = Seeds((7,), range(3))
            >>> torch.equal(seeds.apart(2).uniform_NKT(1, 1, 5), seeds.uniform_NKT(2, 1, 5))
            True
        """
        places = [place for place in self.places for _ in range(group)]
        return Seeds(self.words, places, [*range(group)] * len(self.places))

    def uniform_BM(self, number: int) -> Tensor:
        """Numbers in [0, 1) of each prompt as a whole, float64; streams of their own."""
        words = self.words if self.group_words is None else self.group_words
        return _uniform([(place,) for place in self.places], number, words)

    def uniform_NKT(self, group: int, num_codebooks: int, num_positions: int) -> Tensor:
        """Numbers in [0, 1), float64, on the CPU: an accelerator then draws with the same ones.

        A longer stream begins with the numbers of a shorter one. A row takes about 20 microseconds and 2 nanoseconds per
        number, once per rollout.

        Args:
            group: G, the samples of each prompt.
            num_codebooks: K.
            num_positions: T.
        """
        uniform_NM = _uniform(self._rows(group), num_positions * num_codebooks, self.words)
        return uniform_NM.unflatten(1, (num_positions, num_codebooks)).transpose(1, 2)

    def whole_N(self, group: int) -> list[int]:
        """A whole number of 63 bits for each sample: the seed of a sampler that has random numbers of its own.

        Example:
            >>> Seeds((7,), range(4)).whole_N(2)[4:] == Seeds((7,), range(2, 4)).whole_N(2)
            True
        """
        return [int(raw) >> 1 for (raw,) in _raw(self._rows(group), 1, self.words).tolist()]

    def _rows(self, group: int) -> list[tuple[int, int]]:
        """The keys of the samples of all groups."""
        numbers = [range(group)] * len(self.places) if self.numbers is None else [[number] for number in self.numbers]
        return [(place, number) for place, own in zip(self.places, numbers, strict=True) for number in own]


def _uniform(keys: Sequence[tuple[int, ...]], number: int, words: Sequence[int]) -> Tensor:
    """The first numbers of some streams, ``[len(keys), number]``."""
    raw_NM = _raw(keys, number, words)
    return torch.from_numpy((raw_NM >> np.uint64(11)) * 2.0**-53)  # the 53 bits of a float64


def _raw(keys: Sequence[tuple[int, ...]], number: int, words: Sequence[int]) -> np.ndarray:
    whole = [word % 2**64 for word in words]  # SeedSequence refuses negative numbers
    raw_NM = np.empty((len(keys), number), dtype=np.uint64)
    for row, key in enumerate(keys):
        # SeedSequence mixes its words well, and keeps streams of different spawn keys apart. Unlike those of
        # np.random.Generator, the raw numbers of PCG64 are the same in all versions of numpy.
        stream = np.random.PCG64(np.random.SeedSequence(whole, spawn_key=key))
        raw_NM[row] = stream.random_raw(number)
    return raw_NM


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """torch's own random numbers on the CPU begin at a seed inside, and go on afterwards as if nothing had been drawn.

    Example:
        >>> with torch_seed(3):
        ...     inside = torch.rand(2)
        >>> torch.equal(inside, torch.rand(2, generator=torch.Generator().manual_seed(3)))
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
