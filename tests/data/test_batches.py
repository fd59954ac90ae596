"""Which prompts make which batch: nothing lost, nothing doubled, the same count on every process."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from math import ceil

import pytest

from cfg_distill.data.batches import PromptBatches


def dealt(size: int, batch_size: int, world: int, shuffle: bool = True, epoch: int = 0) -> list[list[list[int]]]:
    samplers = [PromptBatches(size, batch_size, shuffle, seed=3, rank=rank, world=world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 61])
def test_every_prompt_once_and_as_many_batches_everywhere(size: int, batch_size: int, world: int) -> None:
    ranks = dealt(size, batch_size, world)
    expected = ceil(ceil(size / world) / batch_size)
    assert {len(batches) for batches in ranks} == {expected}
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)
    counts = Counter(chain.from_iterable(chain.from_iterable(ranks)))
    assert set(counts) == set(range(size))
    if size >= expected * world:
        assert set(counts.values()) == {1}


def test_batches_are_even() -> None:
    assert sorted(map(len, dealt(61, 8, 1)[0])) == [7, 7, 7, 8, 8, 8, 8, 8]


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    assert dealt(16, 4, 1) == dealt(16, 4, 1)
    assert dealt(16, 4, 1) != dealt(16, 4, 1, epoch=1)
    assert dealt(16, 4, 1, shuffle=False, epoch=1) == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]]


def test_two_processes_share_the_batches_of_one() -> None:
    one = dealt(16, 4, 1)[0]
    first, second = dealt(16, 4, 2)
    assert list(chain.from_iterable(zip(first, second, strict=True))) == one
