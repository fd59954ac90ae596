"""Which prompts make which batch: nothing lost, nothing doubled, the same count on every process."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from math import ceil

import pytest

from cfg_distill.data.batches import PromptBatches


def dealt(
    size: int, batch_size: int, world: int, shuffle: bool = True, epoch: int = 0, accumulate: int = 1
) -> list[list[list[int]]]:
    samplers = [PromptBatches(size, batch_size, shuffle, 3, rank, world, accumulate) for rank in range(world)]
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


def steps(ranks: list[list[list[int]]], accumulate: int) -> list[list[int]]:
    """The prompts of each step in the order of their places: batch by batch, rank by rank."""
    batches = [list(chain.from_iterable(every)) for every in zip(*ranks, strict=True)]
    return [list(chain.from_iterable(batches[n : n + accumulate])) for n in range(0, len(batches), accumulate)]


@pytest.mark.parametrize("size", [8, 20, 33, 61])
@pytest.mark.parametrize(("world", "batch_size", "accumulate"), [(2, 4, 1), (4, 2, 1), (1, 2, 4), (2, 2, 2), (1, 4, 2)])
def test_a_step_has_the_same_prompts_however_it_is_split(
    size: int, world: int, batch_size: int, accumulate: int
) -> None:
    whole = dealt(size, 8, 1)[0]
    assert steps(dealt(size, batch_size, world, accumulate=accumulate), accumulate) == whole


@pytest.mark.parametrize(("world", "batch_size", "accumulate"), [(1, 8, 1), (4, 2, 1), (1, 2, 4), (2, 2, 2)])
@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_an_epoch_goes_on_in_another_split(taken: int, world: int, batch_size: int, accumulate: int) -> None:
    begun = iter(PromptBatches(20, 4, True, 3, 0, 2))
    for _ in range(taken):
        next(begun)
    resumed = []
    for rank in range(world):
        rest = iter(PromptBatches(20, batch_size, True, 3, rank, world, accumulate))
        rest.load_state_dict(begun.state_dict())
        resumed.append(list(rest))
    assert steps(resumed, accumulate) == dealt(20, 8, 1)[0][taken:]


def test_another_number_of_prompts_per_step_skips_none() -> None:
    begun = iter(PromptBatches(20, 4, True, 3))
    dealt_first = [*next(begun), *next(begun)]
    rest = iter(PromptBatches(20, 8, True, 3))
    rest.load_state_dict(begun.state_dict())
    assert set(dealt_first) | set(chain.from_iterable(rest)) == set(range(20))
