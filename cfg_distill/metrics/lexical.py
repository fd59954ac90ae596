"""Diversity and degeneration counted on tokens, without any model.

Tokens are cut at spaces, and at every character of a script without spaces.

An empty text earns no diversity, and under ``ignored: degenerate`` no loop or rubbish does. Such a text leaves the counts of a
group, and each value is multiplied by the share of what is left: of texts for shares of n-grams, of pairs for self-BLEU, which
compares texts. Without the factor an empty text in the place of a copy would pay. Symbols: G texts of a prompt, m that count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sacrebleu.metrics import BLEU
from torch import Tensor

from cfg_distill.embedders.degeneration import Ignored, is_ignored, problems_of_ignored
from cfg_distill.embedders.tokens import grams, repeated_grams, tokens
from cfg_distill.errors import Context, Problem, problems_of_counts
from cfg_distill.metrics.base import EachText, SampleMetric, TextMetric
from cfg_distill.sampling.samples import Samples


def _grams(texts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams of all texts; a text of fewer than n tokens has none."""
    return [gram for text in texts for gram in grams(tokens(text), n)]


def _counted(texts: Sequence[str], ignored: Ignored, n: int = 1) -> list[str]:
    """The texts that earn diversity. One without an n-gram earns none: a single word in the place of a copy would pay."""
    return [text for text in texts if not is_ignored(text, ignored) and len(tokens(text)) >= n]


def distinct_n(texts: Sequence[str], n: int = 2, ignored: Ignored = "empty") -> float:
    r"""Different n-grams over all n-grams of the texts together, in [0, 1]; 0 when they hold none.

    .. math:: \frac{m}{G} \cdot \frac{N}{C}

    with N different n-grams among C. Falls with the length of the texts whatever their diversity; see
    :func:`expectation_adjusted_distinct`. Source: Li et al., arXiv 1510.03055, section 5, which is m = G.

    Example:
        >>> distinct_n(["a b a b", "a c"], n=2), distinct_n(["a b a b", "Yes"], n=2)
        (0.75, 0.3333333333333333)
    """
    full = _counted(texts, ignored, n)
    found = _grams(full, n)
    return len(full) / len(texts) * len(set(found)) / len(found) if found else 0.0


def expectation_adjusted_distinct(
    texts: Sequence[str], vocabulary: int, n: int = 1, ignored: Ignored = "empty"
) -> float:
    r"""Distinct-n without its length bias: different n-grams over the number to expect of as many uniform draws.

    .. math:: \text{EAD} = \frac{m}{G} \cdot \frac{N}{V \, (1 - ((V-1)/V)^C)}

    with N different n-grams among C, and V possible ones. 0 when the texts hold none.
    Source: Liu et al., arXiv 2202.13587, Eq. 3, which is m = G.

    Args:
        texts: the samples of one prompt.
        vocabulary: V, the number of different n-grams that can occur; for n = 1 the tokens of the vocabulary.
        n: tokens in a gram.
        ignored: which texts earn no diversity: ``empty`` ones, or ``degenerate`` ones.

    Example:
        >>> round(expectation_adjusted_distinct(["a b a"], vocabulary=10), 4)
        0.738
    """
    full = _counted(texts, ignored, n)
    found = _grams(full, n)
    if not found:
        return 0.0
    # expm1 and log1p: for a large V the plain formula is a difference of nearly equal numbers.
    expected = -vocabulary * math.expm1(len(found) * math.log1p(-1 / vocabulary)) if vocabulary > 1 else 1.0
    return len(full) / len(texts) * len(set(found)) / expected


def repeated_n(text: str, n: int = 4) -> float:
    """The share of a text's n-grams that it has said before, in [0, 1); 0 when it holds none.

    Example:
        >>> repeated_n("a b a b a b", n=2)
        0.6
    """
    return repeated_grams(tokens(text), n)


class DistinctN(TextMetric):
    """Different n-grams over all n-grams of a prompt's samples; see :func:`distinct_n`.

    Args:
        n: tokens in a gram.
        ignored: which texts earn no diversity: ``empty`` ones, without a letter or digit; or ``degenerate`` ones, which also
            loop, fall apart or have fewer than three words (:func:`cfg_distill.metrics.degenerate`).
    """

    axis = "diversity"

    def __init__(self, n: int = 2, ignored: Ignored = "empty", **settings: Any) -> None:
        super().__init__(**settings)
        self.n = n
        self.ignored = ignored

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of_counts(n=self.n) + problems_of_ignored(self.ignored)

    def score_group(self, texts: list[str]) -> float:
        return distinct_n(texts, self.n, self.ignored)


class EAD(TextMetric):
    """Expectation-adjusted distinct n-grams of a prompt's samples; see :func:`expectation_adjusted_distinct`.

    Args:
        vocabulary: the number of different n-grams that can occur.
        n: tokens in a gram.
        ignored: which texts earn no diversity: ``empty`` ones, without a letter or digit; or ``degenerate`` ones, which also
            loop, fall apart or have fewer than three words (:func:`cfg_distill.metrics.degenerate`).
    """

    axis = "diversity"

    def __init__(self, vocabulary: int, n: int = 1, ignored: Ignored = "empty", **settings: Any) -> None:
        super().__init__(**settings)
        self.vocabulary = vocabulary
        self.n = n
        self.ignored = ignored

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of_counts(vocabulary=self.vocabulary, n=self.n) + problems_of_ignored(self.ignored)

    def score_group(self, texts: list[str]) -> float:
        return expectation_adjusted_distinct(texts, self.vocabulary, self.n, self.ignored)


class SelfBLEUDiversity(TextMetric):
    r"""1 - self-BLEU: how little of a sample can be put together from pieces of its siblings.

    .. math:: \frac{m (m-1)}{G (G-1)} (1 - \text{self-BLEU})

    Self-BLEU is the mean BLEU of each of the m texts that are not empty with the others of its prompt as references, by
    sacrebleu on these tokens. It grows with the number of references: compare at one G only. A pair with an empty text
    earns 0. NaN for a group of one. Source: Zhu et al., arXiv 1802.01886, which is m = G.

    Args:
        n: the longest gram; orders that a sample is too short for are left out (sacrebleu's effective order), and an
            order without a match is smoothed (``exp``, sacrebleu's default).
        ignored: which texts earn no diversity: ``empty`` ones, without a letter or digit; or ``degenerate`` ones, which also
            loop, fall apart or have fewer than three words (:func:`cfg_distill.metrics.degenerate`).
    """

    axis = "diversity"

    def __init__(self, n: int = 4, ignored: Ignored = "empty", **settings: Any) -> None:
        super().__init__(**settings)
        self.n = n
        self.ignored = ignored

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of_counts(n=self.n) + problems_of_ignored(self.ignored)

    @cached_property
    def bleu(self) -> BLEU:
        # `force` silences a warning about text that looks tokenised: it is.
        return BLEU(tokenize="none", max_ngram_order=self.n, effective_order=True, force=True)

    def score_group(self, texts: list[str]) -> float:
        if len(texts) < 2:
            return math.nan
        full = _counted(texts, self.ignored)
        if len(full) < 2:
            return 0.0
        cut = [" ".join(tokens(text)) for text in full]
        others = [cut[:index] + cut[index + 1 :] for index in range(len(cut))]
        scores = [self.bleu.sentence_score(text, rest).score for text, rest in zip(cut, others, strict=True)]
        share_of_pairs = math.comb(len(full), 2) / math.comb(len(texts), 2)
        return share_of_pairs * (1 - sum(scores) / len(scores) / 100)


class Repetition(EachText):
    """The share of n-grams that a sample says again, averaged over a prompt's samples; see :func:`repeated_n`.

    Args:
        n: tokens in a gram.
    """

    def __init__(self, n: int = 4, **settings: Any) -> None:
        super().__init__(**settings)
        self.n = n

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of_counts(n=self.n)

    def score_text(self, text: str) -> float:
        return repeated_n(text, self.n)


class Length(SampleMetric):
    """Mean tokens (frames of sound) of a prompt's samples, end token included: a reward that buys length shows here."""

    axis = "guard"
    higher_is_better = None

    def score(self, samples: Samples) -> Tensor:
        return samples.rollout.mask_BGKT[:, :, 0].sum(-1).float().mean(-1)
