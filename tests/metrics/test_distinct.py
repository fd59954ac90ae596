"""distinct@k and coverage@k against every subset, and against the models whose samples they are estimates from."""

from __future__ import annotations

from itertools import combinations, permutations, product
from statistics import mean

import pytest
import torch
from torch import Tensor

from cfg_distill.embedders import NGramCounts, cosine_distances
from cfg_distill.errors import Context
from cfg_distill.metrics import CoverageAtK, DistinctAtK, coverage_at_k, distinct_at_k
from cfg_distill.metrics.distinct import kind_sizes


def labels(group_GD: Tensor, threshold: float) -> list[int | None]:
    """The kind of each sample by a flood fill; None for a zero vector."""
    distance = cosine_distances(group_GD).tolist()
    found: list[int | None] = [None] * len(group_GD)
    for start in range(len(group_GD)):
        stack = [start] if group_GD[start].any() and found[start] is None else []
        while stack:
            i = stack.pop()
            found[i] = start
            stack += [j for j, d in enumerate(distance[i]) if group_GD[j].any() and found[j] is None and d <= threshold]
    return found


def number(kinds: tuple[int | None, ...]) -> int:
    return len(set(kinds) - {None})


def groups() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    made = torch.randn(12, 6, 2, generator=random)
    made[torch.rand(12, 6, generator=random) < 0.2] = 0
    made[0], made[1, :5] = 0, 0
    return [*made, torch.ones(6, 2)]


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3])
def test_every_subset(threshold: float) -> None:
    seen = set()
    for group_GD in groups():
        kinds = labels(group_GD, threshold)
        seen.add(number(tuple(kinds)))
        for k in range(1, 7):
            expected = mean(number(drawn) for drawn in combinations(kinds, k))
            assert float(distinct_at_k(group_GD, k, threshold)) == pytest.approx(expected, abs=1e-6)
        for k in range(1, 6):
            expected = mean(last is None or last in first for *first, last in permutations(kinds, k + 1))
            assert float(coverage_at_k(group_GD, k, threshold)) == pytest.approx(expected, abs=1e-6)
            slope = distinct_at_k(group_GD, k + 1, threshold) - distinct_at_k(group_GD, k, threshold)
            torch.testing.assert_close(coverage_at_k(group_GD, k, threshold), 1 - slope)
    assert len(seen) > 3
    batch = torch.stack(groups())
    for function in (distinct_at_k, coverage_at_k):
        each = torch.stack([function(group_GD, 2, threshold) for group_GD in batch])
        torch.testing.assert_close(function(batch, 2, threshold), each)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_both_are_unbiased_for_the_model(k: int) -> None:
    """A model of three kinds and the empty sample: the mean over every group of 4 is the value of k samples of the model."""
    p = [0.5, 0.25, 0.05, 0.2]
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    distinct = coverage = 0.0
    for outcome in product(range(4), repeat=4):
        weight = torch.tensor([p[y] for y in outcome]).prod()
        distinct += float(weight * distinct_at_k(table[list(outcome)], k, 0.1))
        coverage += float(weight * coverage_at_k(table[list(outcome)], k, 0.1))
    assert distinct == pytest.approx(sum(1 - (1 - each) ** k for each in p[:3]), abs=1e-5)
    assert coverage == pytest.approx(p[3] + sum(each * (1 - (1 - each) ** k) for each in p[:3]), abs=1e-5)


def test_chains_are_one_kind() -> None:
    """Neighbours of 20 degrees have a distance of .06; the ends of the chain are opposite."""
    angle = torch.arange(10) * torch.pi / 9
    chain_GD = torch.stack([angle.cos(), angle.sin()], dim=-1)
    assert kind_sizes(chain_GD, 0.07).tolist() == [10] * 10
    assert kind_sizes(chain_GD, 0.05).tolist() == [1] * 10
    assert distinct_at_k(chain_GD, 10, 0.07) == 1 and distinct_at_k(chain_GD, 10, 0.05) == 10


def test_metrics(samples_of) -> None:
    samples = samples_of(["p", "q", "r"], [["a b", "a b", "c d", ""], ["e", "f", "g", "h"], ["x", "x", "x", "x"]])
    distinct, coverage = (kind(NGramCounts(n=1), k=2, threshold=0.05) for kind in (DistinctAtK, CoverageAtK))
    for metric in (distinct, coverage):
        metric.update(samples)
    pairs = [1, 2, 1, 2, 1, 1]  # a b twice: the same; a b, c d; a b, empty; the same; c d, empty
    torch.testing.assert_close(distinct.per_prompt(), torch.tensor([sum(pairs) / 6, 2.0, 1.0]))
    assert coverage.per_prompt()[1:].tolist() == [0, 1] and 0 < coverage.per_prompt()[0] < 1
    assert distinct.axis == "diversity" and coverage.axis == "guard"


def test_problems_and_refusals() -> None:
    assert not DistinctAtK(NGramCounts(), k=4).problems(Context(4))
    (problem,) = DistinctAtK(NGramCounts(), k=5).problems(Context(4))
    assert str(problem) == "Key `k`: expected at most 4, the samples per prompt, but got 5. Lower it."
    (problem,) = CoverageAtK(NGramCounts(), k=4).problems(Context(4))
    assert "at most 3, the samples per prompt less 1, but got 4" in str(problem)
    found = DistinctAtK(NGramCounts(n=0), k=0, threshold=float("nan")).problems(Context(4))
    assert [each.path for each in found] == ["embedder.init_args.n", "k", "threshold"]
    with pytest.raises(ValueError, match="`k` from 1 to 3"):
        distinct_at_k(torch.eye(3), 4, 0.1)
    with pytest.raises(ValueError, match="`k` from 1 to 2"):
        coverage_at_k(torch.eye(3), 3, 0.1)
