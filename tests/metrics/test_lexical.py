import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torchmetrics.functional.text import bleu_score

from cfg_distill.errors import ConfigError
from cfg_distill.metrics import (
    EAD,
    DistinctN,
    Length,
    Repetition,
    SelfBLEUDiversity,
    TextMetric,
    distinct_n,
    expectation_adjusted_distinct,
    repeated_n,
)

TEXTS = ["the cat sat on the mat", "the cat lay on a mat today", "a dog sat on the mat"]


def test_distinct_counts_over_the_group_and_not_across_texts():
    assert distinct_n(["a b", "b a", "a b"], n=2) == pytest.approx(2 / 3)
    assert distinct_n(["a b", "b a", "a b"], n=1) == pytest.approx(2 / 6)
    assert distinct_n(["a", ""], n=2) == 0


@pytest.mark.parametrize(("vocabulary", "count"), [(3, 2), (4, 5), (1, 4)])
def test_ead_is_one_on_average_over_all_uniform_texts(vocabulary, count):
    """The divisor is the expected number of different tokens: enumerate every text of that length."""
    texts = itertools.product("abcd"[:vocabulary], repeat=count)
    scores = [expectation_adjusted_distinct([" ".join(text)], vocabulary) for text in texts]
    assert sum(scores) / len(scores) == pytest.approx(1.0)


def test_ead_by_the_published_formula_and_for_large_vocabularies():
    value = expectation_adjusted_distinct(TEXTS, vocabulary=50)
    tokens = " ".join(TEXTS).split()
    assert value == pytest.approx(len(set(tokens)) / (50 * (1 - (49 / 50) ** len(tokens))))
    assert expectation_adjusted_distinct(TEXTS, vocabulary=10**15) == pytest.approx(distinct_n(TEXTS, n=1))
    assert expectation_adjusted_distinct([""], vocabulary=10) == 0


def test_self_bleu_worked(samples_of):
    metric = SelfBLEUDiversity()
    metric.update(
        samples_of(
            ["different by a word", "the same", "the same, short", "nothing shared"],
            [["a b c d e", "a b c d f"], ["a b c d", "a b c d"], ["a b", "a b"], ["a b c d", "e f g h"]],
        )
    )
    one_word, same, short, nothing = metric.per_prompt().tolist()
    assert one_word == pytest.approx(1 - (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1e-6)
    assert [same, short] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert nothing > 0.9


def test_self_bleu_against_another_library():
    """Every order has a match here, so that smoothing plays no part."""
    texts = [text + " and then the cat sat on the mat again" for text in TEXTS]
    expected = [bleu_score([text], [[other for other in texts if other != text]]).item() for text in texts]
    assert SelfBLEUDiversity().score_group(texts) == pytest.approx(1 - sum(expected) / 3, abs=1e-5)
    assert math.isnan(SelfBLEUDiversity().score_group(texts[:1]))


DIVERSITIES = [DistinctN(n=1), DistinctN(), EAD(vocabulary=20), EAD(vocabulary=400, n=2), SelfBLEUDiversity()]


@pytest.mark.parametrize("metric", DIVERSITIES)
@pytest.mark.parametrize("empty", ["", " ", "... !"])
def test_empty_texts_earn_no_diversity(metric, empty):
    full = metric.score_group(TEXTS)
    assert metric.score_group([empty] * 3) == 0
    share = 3 * 2 / (5 * 4) if isinstance(metric, SelfBLEUDiversity) else 3 / 5
    assert metric.score_group([empty, *TEXTS, empty]) == pytest.approx(share * full)


def test_one_word_in_the_place_of_a_copy_never_pays():
    text = TEXTS[0]
    for distinct in (DistinctN(), EAD(100, n=2)):
        assert distinct.score_group([text, "Yes", "Yes", "Yes"]) <= distinct.score_group([text] * 4) + 1e-9


def test_a_metric_gives_one_value_per_prompt(samples_of):
    class PerSample(DistinctN):
        def score(self, samples):
            return torch.zeros(len(samples.prompts), samples.group)

    with pytest.raises(ConfigError, match=r"`PerSample\.score`: expected a tensor of shape \(1,\)"):
        PerSample().update(samples_of(["one"], [["a b", "c d"]]))


def test_a_pair_with_an_empty_text_earns_nothing_by_self_bleu():
    assert [SelfBLEUDiversity().score_group(texts) for texts in (["", ""], ["", TEXTS[0]])] == [0, 0]


@pytest.mark.parametrize("metric", DIVERSITIES)
def test_an_empty_text_in_the_place_of_another_never_pays(metric):
    """Texts of one length, copies among them: leaving a copy out makes the rest more varied, and must not show.

    Self-BLEU of A A B B is 0 and rises with any change; so an empty text may pay as much as the best copy of a sibling.
    """
    random = torch.Generator().manual_seed(0)
    for _ in range(60):
        words = torch.randint(8, (3, 6), generator=random).tolist()
        pool = [" ".join(f"w{word}" for word in row) for row in words]
        group = [pool[index] for index in torch.randint(3, (5,), generator=random)]
        best = max(metric.score_group([first, *group[1:]]) for first in group)
        assert metric.score_group(["", *group[1:]]) <= best + 1e-9
        assert metric.score_group(["", "", *group[2:]]) <= best + 1e-9 or isinstance(metric, SelfBLEUDiversity)


def test_repetition_is_within_a_sample():
    assert repeated_n("a b c a b c a b c", n=3) == pytest.approx(1 - 3 / 7)
    assert repeated_n("a b", n=4) == 0
    assert Repetition(n=1).score_group(["a a", "a b"]) == pytest.approx(0.25)


def test_metrics_over_batches(samples_of):
    metrics = {"distinct": DistinctN(n=1), "ead": EAD(vocabulary=4), "repetition": Repetition(n=1), "length": Length()}
    for metric in metrics.values():
        metric.update(samples_of(["p"], [["a b", "a"]]))
        metric.update(samples_of(["q", "r"], [["c", "d"], ["", ""]]))
    expected = {
        "distinct": [2 / 3, 1.0, 0.0],
        "ead": [2 / (4 * (1 - 0.75**3)), 2 / (4 * (1 - 0.75**2)), 0.0],
        "repetition": [0.0, 0.0, 0.0],
        "length": [2.5, 2.0, 1.0],
    }
    for name, metric in metrics.items():
        torch.testing.assert_close(metric.per_prompt(), torch.tensor(expected[name]))
        torch.testing.assert_close(metric.compute(), torch.tensor(expected[name]).mean())


@pytest.mark.parametrize("metric", [DistinctN(n=0), EAD(vocabulary=0), SelfBLEUDiversity(n=0), Repetition(n=0)])
def test_problems_name_the_key(metric):
    (problem,) = metric.problems()
    assert problem.path in ("n", "vocabulary")
    assert "expected at least 1" in str(problem)


def test_higher_is_better_on_the_axes():
    for metric in (DistinctN(), EAD(vocabulary=9), SelfBLEUDiversity()):
        assert (metric.axis, metric.higher_is_better) == ("diversity", True)
    assert (Repetition().axis, Repetition().higher_is_better) == ("guard", False)
    assert (Length().axis, Length().higher_is_better) == ("guard", None)


def test_a_misspelt_axis_and_what_is_no_number_are_named() -> None:
    """Such a metric stood in no table, and nobody was told."""

    class Mine(TextMetric):
        axis = "divresity"  # type: ignore[assignment]

        def score_group(self, texts: list[str]) -> float:
            return None  # type: ignore[return-value]

    with pytest.raises(
        ConfigError, match=r"`Mine.axis`: expected quality, diversity, guard, but got `divresity`. Did you"
    ):
        Mine()
    groups = [["a", "b"]]
    with pytest.raises(ConfigError, match=r"`Mine.score_group`: expected a number .* but got NoneType"):
        Mine(axis="guard").score(SimpleNamespace(outputs=groups[0], groups=lambda: groups))  # type: ignore[arg-type]
