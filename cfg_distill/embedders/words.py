"""Counts of words: what two texts say, whatever their letter case and signs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cfg_distill.embedders.base import texts_of
from cfg_distill.embedders.ngrams import NGramCounts
from cfg_distill.embedders.tokens import words


class WordCounts(NGramCounts):
    """Counts of n-grams of words without signs and letter case, each hashed into one of D buckets.

    :class:`NGramCounts` counts ``Sea,`` and ``sea`` as two tokens, so that capitals and commas look like diversity. It is for
    tunes, whose tokens are spelt in one way only; this one is for text. Arguments: :class:`NGramCounts`.
    """

    def embed(self, outputs: Sequence[str]) -> Tensor:
        return super().embed([" ".join(words(text)) for text in texts_of("Embedder `WordCounts`", outputs)])
