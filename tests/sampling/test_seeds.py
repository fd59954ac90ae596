"""Seeds: the numbers of a sample depend on its key alone, and are uniform and independent."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_fits import PROMPTS, DistinctFirst

from cfg_distill.evaluation import evaluate
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling, Seeds, rollout

FIELDS = ("tokens_BGKT", "mask_BGKT", "log_probs_BGKT")


def test_each_row_has_a_generator_of_its_own() -> None:
    """The plain way: numpy's own generator for every sample."""
    found = Seeds((3, 1, 0), [5, 0]).uniform_NKT(group=2, num_codebooks=3, num_positions=4)
    for row, key in enumerate([(5, 0), (5, 1), (0, 0), (0, 1)]):
        one = np.random.Generator(np.random.PCG64(np.random.SeedSequence((3, 1, 0), spawn_key=key)))
        assert np.array_equal(found[row].numpy(), one.random((4, 3)).T)


def test_keys_do_not_meet() -> None:
    """Neighbours in any word, also where a word is 0, -1 or beyond 32 bits."""
    values = (0, 1, 2, 2**31, -1)
    first = [
        Seeds(words, [place]).uniform_NKT(2, 1, 1).flatten().tolist()
        for words in product(values, (0, 1, 2), (0, 1, 2))
        for place in (0, 1, 2)
    ]
    assert len({number for pair in first for number in pair}) == 2 * len(first)


def test_numbers_are_uniform_and_rows_are_independent() -> None:
    """Over steps, prompts, samples and positions; neighbours along each of these are not correlated."""
    steps = [Seeds((0, step, 0), range(8)).uniform_NKT(4, 2, 40) for step in range(40)]
    uniform_SBGKT = torch.stack(steps).unflatten(1, (8, 4))
    assert uniform_SBGKT.min() >= 0 and uniform_SBGKT.max() < 1
    counts = torch.histc(uniform_SBGKT.float(), bins=100, min=0, max=1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    for dim in range(uniform_SBGKT.dim()):
        one, other = uniform_SBGKT.narrow(dim, 1, uniform_SBGKT.shape[dim] - 1), uniform_SBGKT
        other = other.narrow(dim, 0, uniform_SBGKT.shape[dim] - 1)
        correlation = np.corrcoef(one.flatten().numpy(), other.flatten().numpy())[0, 1]
        assert abs(correlation) < 4 / one.numel() ** 0.5


def test_first_tokens_follow_the_softmax(tiny_model: str) -> None:
    """One prompt at many places and steps, as a training run would draw it: chi-square against the model's own softmax."""
    model = CausalLM(tiny_model).load()
    sampling = Sampling(samples=4, max_new_tokens=1)
    drawn = [rollout(model, ["w1 w2"] * 64, sampling, seed=Seeds((0, step, 0), range(64))) for step in range(16)]
    tokens_N = torch.cat([each.tokens_NKT[:, 0, 0] for each in drawn])
    with torch.no_grad():
        probs_V = model.model(**model.tokenizer(["w1 w2"], return_tensors="pt")).logits[0, -1].softmax(-1)
    observed = torch.bincount(tokens_N, minlength=len(probs_V))
    expected = probs_V.double() * len(tokens_N)
    kept = expected >= 5
    rest = [int(observed[~kept].sum())], [float(expected[~kept].sum())]
    found = [*observed[kept].tolist(), *rest[0]], [*expected[kept].tolist(), *rest[1]]
    if not rest[1][0]:
        found = found[0][:-1], found[1][:-1]
    assert stats.chisquare(found[0], np.array(found[1]) * sum(found[0]) / sum(found[1])).pvalue > 1e-3


@pytest.mark.parametrize("guidance", [None, Guidance(2.0)])
def test_a_batch_may_be_cut_anywhere(tiny_model: str, guidance: Guidance | None) -> None:
    model = CausalLM(tiny_model).load()
    sampling = Sampling(samples=3, max_new_tokens=8)
    whole = rollout(model, PROMPTS, sampling, guidance, Seeds((1, 2), range(8)))
    for cut in ([0], [1, 2], [3, 6, 4], [5, 7]):
        part = rollout(model, [PROMPTS[b] for b in cut], sampling, guidance, Seeds((1, 2), cut))
        length = part.tokens_BGKT.shape[-1]
        for field in FIELDS[:2]:
            assert torch.equal(getattr(part, field), getattr(whole, field)[cut][..., :length])
        torch.testing.assert_close(part.log_probs_BGKT, whole.log_probs_BGKT[cut][..., :length])


def test_a_longer_sample_begins_as_the_shorter_one(tiny_model: str) -> None:
    model = CausalLM(tiny_model).load()
    short, long = (rollout(model, PROMPTS, Sampling(samples=2, max_new_tokens=n), seed=4) for n in (3, 8))
    assert torch.equal(short.tokens_BGKT, long.tokens_BGKT[..., :3])


def test_an_evaluation_does_not_depend_on_its_batches(tiny_model: str) -> None:
    model = CausalLM(tiny_model).load()
    sampling = Sampling(samples=4, max_new_tokens=4)
    values = [
        evaluate(model, PROMPTS, sampling, None, {"distinct": DistinctFirst()}, seeds=(0, 1), batch_size=size).values
        for size in (8, 3, 1)
    ]
    assert values[0] == values[1] == values[2]
    assert values[0]["distinct"][0] != values[0]["distinct"][1]
