import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cfg_distill.sampling import Sampling
from cfg_distill.sampling.distribution import draw_tokens


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


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert Sampling(temperature=0).log_probs(logits).exp().tolist() == [[0.0, 1.0, 0.0]]


def test_draws_follow_the_distribution():
    probs = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0])
    tokens = draw_tokens(probs.log().expand(20_000, -1), torch.Generator().manual_seed(0))
    counts = tokens.bincount(minlength=7)
    assert counts[probs == 0].sum() == 0
    kept = probs > 0
    assert stats.chisquare(counts[kept], (probs[kept] * 20_000).double().numpy()).pvalue > 1e-3


def test_a_draw_on_the_edge_never_takes_a_token_of_probability_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **settings: torch.zeros(*shape, dtype=torch.float64))
    assert draw_tokens(torch.tensor([[0.0, 0.0, 0.4, 0.6]]).log()).tolist() == [2]


def test_draws_are_seeded():
    log_probs = torch.randn(100, 9).log_softmax(-1)
    first, again, other = (draw_tokens(log_probs, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"samples": 0}, "samples"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 64}, "max_new_tokens"),
        ({"temperature": 0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_problems(settings, key):
    (problem,) = Sampling(**({"max_new_tokens": 8} | settings)).problems(max_positions=64, training=True)
    assert f"`model.sampling.{key}`" in problem and str(next(iter(settings.values()))) in problem
