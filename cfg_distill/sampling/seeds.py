"""Random numbers that depend on what is drawn, and on nobody who draws it. Shapes: N rows, K codebooks, T positions."""

from __future__ import annotations

from collections.abc import Sequence
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

    Example:
        >>> whole = Seeds((7,), range(4)).uniform_NKT(group=2, num_codebooks=1, num_positions=5)
        >>> half = Seeds((7,), range(2, 4)).uniform_NKT(group=2, num_codebooks=1, num_positions=5)
        >>> torch.equal(whole[4:], half)
        True
    """

    words: tuple[int, ...]
    places: Sequence[int]

    @classmethod
    def of(cls, seed: int | Seeds, num_prompts: int) -> Seeds:
        """The keys under a plain number: the prompts of the batch are all that there are."""
        return seed if isinstance(seed, Seeds) else cls((seed,), range(num_prompts))

    def uniform_NKT(self, group: int, num_codebooks: int, num_positions: int) -> Tensor:
        """Numbers in [0, 1), float64, on the CPU: an accelerator then draws with the same ones.

        A longer stream begins with the numbers of a shorter one. A row takes about 20 microseconds and 2 nanoseconds per
        number, once per rollout.

        Args:
            group: G, the samples of each prompt.
            num_codebooks: K.
            num_positions: T.
        """
        words = [word % 2**64 for word in self.words]  # SeedSequence refuses negative numbers
        rows = [(place, sample) for place in self.places for sample in range(group)]
        raw_NTK = np.empty((len(rows), num_positions, num_codebooks), dtype=np.uint64)
        for number, row in enumerate(rows):
            # SeedSequence mixes its words well, and keeps streams of different spawn keys apart. Unlike those of
            # np.random.Generator, the raw numbers of PCG64 are the same in all versions of numpy.
            stream = np.random.PCG64(np.random.SeedSequence(words, spawn_key=row))
            raw_NTK[number] = stream.random_raw(num_positions * num_codebooks).reshape(num_positions, num_codebooks)
        uniform_NTK = (raw_NTK >> np.uint64(11)) * 2.0**-53  # the 53 bits of a float64
        return torch.from_numpy(uniform_NTK).transpose(1, 2)
