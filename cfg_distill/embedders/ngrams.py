"""An embedder without weights: hashed counts of n-grams of tokens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from cfg_distill.embedders.base import texts_of
from cfg_distill.embedders.degeneration import Ignored, TextEmbedder, problems_of_ignored
from cfg_distill.embedders.tokens import grams, tokens
from cfg_distill.errors import Context, Problem, problems_of_counts


class NGramCounts(TextEmbedder):
    """Counts of n-grams, each hashed into one of D buckets.

    Needs no training, so it measures diversity independently of a learnt reward; the order of a text matters only
    within n tokens. A text of fewer than n tokens counts as one gram, so that no text maps to the zero vector.

    Tokens are cut at spaces, and at every character of a script without spaces.

    Args:
        n: tokens in a gram.
        buckets: D. Grams that share a bucket are counted as one: keep it well above the number of grams of one text.
        ignored: which texts earn no diversity: ``empty`` ones, without a letter or digit; or ``degenerate`` ones, which also
            loop, fall apart or have fewer than three words (:func:`cfg_distill.metrics.degenerate`).
    """

    def __init__(self, n: int = 2, buckets: int = 8192, ignored: Ignored = "empty") -> None:
        super().__init__(ignored)
        self.n = n
        self.buckets = buckets

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of_counts(n=self.n, buckets=self.buckets) + problems_of_ignored(self.ignored)

    def load(self) -> Self:
        return self

    def embed(self, outputs: Sequence[str]) -> Tensor:
        counts_ND = torch.zeros(len(outputs), self.buckets)
        for row, text in enumerate(texts_of("Embedder `NGramCounts`", outputs)):
            row_of_tokens = tokens(text)
            found = grams(row_of_tokens, self.n) or [tuple(row_of_tokens)]
            # CRC and not hash(): the same on every machine and in every process.
            buckets = [zlib.crc32(" ".join(gram).encode()) % self.buckets for gram in found]
            counts_ND[row] = torch.bincount(torch.tensor(buckets), minlength=self.buckets)
        return counts_ND
