import math

import pytest
import torch
from scipy import stats
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cfg_distill.errors import Context
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.distribution import BLOCK, draw_tokens


def uniform(rows: int) -> torch.Tensor:
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_filters_are_those_of_transformers():
    torch.manual_seed(0)
    logits = 3 * torch.randn(50, 30)
    for temperature, top_k, top_p in ((0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.9, 12, 0.6), (1.0, 0, 1e-4)):
        theirs = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k:
            theirs = TopKLogitsWarper(top_k)(None, theirs)
        if top_p < 1:
            theirs = TopPLogitsWarper(top_p)(None, theirs)
        ours = Sampling(temperature=temperature, top_k=top_k, top_p=top_p).log_probs(logits)
        torch.testing.assert_close(ours, theirs.log_softmax(-1))


@pytest.mark.parametrize("min_p", [1e-4, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (1.7, 0, 1.0), (0.7, 9, 0.8)])
def test_min_p_is_that_of_transformers(temperature, top_k, top_p, min_p):
    torch.manual_seed(1)
    logits = 3 * torch.randn(50, 30)
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        theirs = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, theirs))
    theirs = MinPLogitsWarper(min_p)(None, theirs)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    torch.testing.assert_close(sampling.log_probs(logits), theirs.log_softmax(-1))
    assert not sampling.plain


@pytest.mark.parametrize("min_p", [-0.1, 1.5, math.nan])
def test_a_min_p_that_cannot_be(min_p):
    (problem,) = Sampling(min_p=min_p).problems(Context())
    assert str(problem) == f"Key `min_p`: expected a number from 0 (keep all) to 1, but got {min_p}."


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert Sampling(temperature=0).log_probs(logits).exp().tolist() == [[0.0, 1.0, 0.0]]
    assert Sampling(temperature=0).probs(logits).tolist() == [[0.0, 1.0, 0.0]]


def test_at_temperature_zero_a_model_that_predicts_nan_is_seen():
    assert Sampling(temperature=0).log_probs(torch.full((1, 3), torch.nan)).isnan().any()


def test_draws_follow_the_distribution():
    probs = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0])
    tokens = draw_tokens(probs.expand(20_000, -1), uniform(20_000))
    counts = tokens.bincount(minlength=7)
    assert counts[probs == 0].sum() == 0
    kept = probs > 0
    assert stats.chisquare(counts[kept], (probs[kept] * 20_000).double().numpy()).pvalue > 1e-3


def test_a_draw_in_blocks_is_the_inverse_of_the_whole_cumulative_distribution():
    torch.manual_seed(0)
    for vocabulary in (3 * BLOCK, 5 * BLOCK + 17):
        probs = (
            (4 * torch.randn(500, vocabulary)).masked_fill(torch.rand(500, vocabulary) < 0.3, -torch.inf).softmax(-1)
        )
        draws = uniform(500)
        cumulative = probs.double().cumsum(-1)
        whole = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
        # The mass of a block is a sum in float32: a draw within its rounding of a boundary may fall on the other side.
        assert (draw_tokens(probs, draws) == whole).float().mean() > 0.99


def test_draws_over_many_blocks_follow_the_distribution():
    torch.manual_seed(0)
    probs = (2 * torch.randn(5 * BLOCK + 17)).softmax(-1)
    tokens = draw_tokens(probs.expand(100_000, -1), uniform(100_000))
    likely = probs * 100_000 > 20
    counts, expected = tokens.bincount(minlength=len(probs)), probs.double() * 100_000
    observed = [*counts[likely].tolist(), int(counts[~likely].sum())]
    assert stats.chisquare(observed, [*expected[likely].tolist(), expected[~likely].sum().item()]).pvalue > 1e-3


def test_a_draw_on_the_edge_never_takes_a_token_of_probability_zero():
    for vocabulary in (7, 3 * BLOCK + 5):
        for kept in ([2], [0, 5], [vocabulary - 3], [1, vocabulary - 2]):
            probs = torch.zeros(1, vocabulary)
            probs[:, kept] = 1 / len(kept)
            for edge in (0.0, 0.5, math.nextafter(0.5, 0), math.nextafter(0.5, 1), math.nextafter(1, 0)):
                assert draw_tokens(probs, torch.tensor([edge], dtype=torch.float64)).item() in kept
    # Masses that float32 cannot add up.
    probs = (30 * torch.randn(200, 4 * BLOCK, generator=torch.Generator().manual_seed(0))).softmax(-1)
    drawn = draw_tokens(probs, torch.full((200,), math.nextafter(1, 0), dtype=torch.float64))
    assert (probs.gather(-1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"samples": 0}, "samples"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 65}, "max_new_tokens"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 1e-39}, "temperature"),
        ({"temperature": 1e30}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_problems(settings, key):
    (problem,) = Sampling(**({"max_new_tokens": 8} | settings)).problems(Context(longest=64, training=True))
    said = str(problem.under("model.sampling"))
    assert f"Key `model.sampling.{key}`: " in said and str(next(iter(settings.values()))) in said


def test_problems_depend_on_what_is_known_of_the_model_and_the_use():
    greedy, long = Sampling(temperature=0), Sampling(max_new_tokens=65)
    assert not greedy.problems() and greedy.problems(Context(training=True))
    assert not long.problems() and long.problems(Context(longest=64))
    assert Sampling(temperature=math.nan).problems()
