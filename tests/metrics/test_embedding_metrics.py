"""Vendi score and pairwise diversity against closed forms, SVD and scipy; embedders stay out of states and copies."""

import copy
import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from torchmetrics import MetricCollection

from cfg_distill.embedders import NGramCounts
from cfg_distill.metrics import PairwiseCosineDiversity, PromptAdherence, VendiScore, vendi_score

PROMPTS = ["a b", "c"]
GROUPS = [["a b", "a b", "c d"], ["x y z", "x y w", "q"]]


def test_vendi_of_identical_and_orthogonal_samples():
    torch.testing.assert_close(vendi_score(torch.ones(7, 3)), torch.tensor(1.0))
    torch.testing.assert_close(vendi_score(torch.eye(5) * 3), torch.tensor(5.0))


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9, -0.5])
def test_vendi_of_two_samples_in_closed_form(cosine):
    """The eigenvalues of K / 2 are (1 + c) / 2 and (1 - c) / 2."""
    embedding_GD = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
    expected = np.exp(scipy.stats.entropy([(1 + cosine) / 2, (1 - cosine) / 2]))
    assert vendi_score(embedding_GD).item() == pytest.approx(expected, rel=1e-5)


def test_vendi_against_singular_values():
    embedding_BGD = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    for row_GD, score in zip(embedding_BGD.double().numpy(), vendi_score(embedding_BGD), strict=True):
        units_GD = row_GD / np.linalg.norm(row_GD, axis=-1, keepdims=True)
        eigenvalues = np.linalg.svd(units_GD, compute_uv=False) ** 2 / len(units_GD)
        assert score.item() == pytest.approx(np.exp(scipy.stats.entropy(eigenvalues)), rel=1e-4)


def test_vendi_of_groups_with_empty_samples():
    """Two of four: the effective number of the two, weighed by their share; of nothing but empty ones, 1."""
    group_GD = torch.cat([torch.eye(3)[:2], torch.zeros(2, 3)])
    torch.testing.assert_close(vendi_score(group_GD), torch.tensor(2**0.5))
    batch_BGD = torch.stack([group_GD, torch.zeros(4, 3), torch.ones(4, 3)])
    torch.testing.assert_close(vendi_score(batch_BGD), torch.tensor([2**0.5, 1.0, 1.0]))


def test_an_empty_sample_in_the_place_of_another_never_raises_vendi():
    random = torch.Generator().manual_seed(0)
    for _ in range(100):
        pool_VD = torch.randn(3, 3, generator=random)
        group_GD = pool_VD[torch.randint(3, (6,), generator=random)]
        for _ in range(3):
            before = vendi_score(group_GD)
            group_GD[torch.randint(6, (1,), generator=random)] = 0
            assert vendi_score(group_GD) <= before + 1e-5


@pytest.mark.parametrize("empty", ["", "?!"])
def test_metrics_do_not_pay_for_empty_samples(samples_of, empty):
    """N-gram counts give an empty text a vector of its own, far from all others."""
    full = [["a b", "a c", "a b"], ["d", "e", "e"]]
    with_empty = [[*full[0][:2], empty], [empty, *full[1][1:]]]
    nothing = [[empty] * 3] * 2
    for metric in (PairwiseCosineDiversity, VendiScore, PromptAdherence):
        whole, part, none = (
            metric(NGramCounts(n=1)).score(samples_of(PROMPTS, each)) for each in (full, with_empty, nothing)
        )
        assert (none == (1 if metric is VendiScore else 0)).all()
        assert (part <= whole + 1e-6).all()
    pairs = PairwiseCosineDiversity(NGramCounts(n=1)).score(samples_of(PROMPTS, with_empty))
    torch.testing.assert_close(pairs, torch.tensor([0.5 / 3, 0.0]))


def test_metrics_keep_a_value_a_prompt(samples_of):
    metric = PairwiseCosineDiversity(NGramCounts(n=1))
    metric.update(samples_of(PROMPTS, GROUPS))
    metric.update(samples_of(["d"], [["e", "f", "g"]]))
    expected = torch.tensor([2 / 3, (1 - 2 / 3 + 1 + 1) / 3, 1.0])
    torch.testing.assert_close(metric.per_prompt(), expected)
    torch.testing.assert_close(metric.compute(), expected.mean())


def test_vendi_score_metric_and_order_within_the_group(samples_of):
    values = []
    for order in ([0, 1, 2], [2, 0, 1]):
        metric = VendiScore(NGramCounts(n=1))
        metric.update(samples_of(PROMPTS, [[group[index] for index in order] for group in GROUPS]))
        values.append(metric.per_prompt())
    torch.testing.assert_close(values[0], values[1])
    assert values[0][0].item() == pytest.approx(np.exp(scipy.stats.entropy([2 / 3, 1 / 3])), rel=1e-5)


def test_adherence_to_the_prompt(samples_of):
    metric = PromptAdherence(NGramCounts(n=1))
    metric.update(samples_of(PROMPTS, GROUPS))
    torch.testing.assert_close(metric.per_prompt(), torch.tensor([2 / 3, 0.0]))


def test_a_group_of_one_has_no_pairwise_diversity(samples_of):
    metric = PairwiseCosineDiversity(NGramCounts())
    metric.update(samples_of(["a"], [["b"]]))
    assert metric.compute().isnan()


def test_embedders_stay_out_of_states_and_copies(samples_of):
    class Weighted(NGramCounts):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def __deepcopy__(self, memo: dict) -> "Weighted":
            raise AssertionError("the embedder was copied")

    embedder = Weighted()
    module = torch.nn.Module()
    module.metric = PairwiseCosineDiversity(embedder)
    assert not module.state_dict()
    assert not list(module.parameters())
    collection = MetricCollection(
        {"diversity": module.metric, "vendi": VendiScore(embedder)}, compute_groups=False, prefix="val/"
    ).clone(prefix="test/")
    copied = copy.deepcopy(collection).to("cpu")
    copied.update(samples_of(PROMPTS, GROUPS))
    assert copied.compute().keys() == {"test/diversity", "test/vendi"}
    assert copied["diversity"].embedder is embedder
    assert not copied.state_dict()
    hash(copied["diversity"])


def test_metric_pickles(samples_of):
    metric = pickle.loads(pickle.dumps(PairwiseCosineDiversity(NGramCounts(n=1))))
    metric.update(samples_of(PROMPTS, GROUPS))
    assert metric.per_prompt()[0].item() == pytest.approx(2 / 3)


def test_problems_come_from_the_embedder():
    assert VendiScore(NGramCounts()).problems() == []
    assert VendiScore(NGramCounts(buckets=0)).problems()[0].path == "embedder.init_args.buckets"


@pytest.mark.parametrize("metric", [PairwiseCosineDiversity, VendiScore, PromptAdherence])
def test_autocast_changes_nothing(metric, samples_of):
    samples = samples_of(PROMPTS, GROUPS)
    plain = metric(NGramCounts()).load().score(samples)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metric(NGramCounts()).load().score(samples), plain)
