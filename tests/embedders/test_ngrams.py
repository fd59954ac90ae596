import zlib
from collections import Counter

import torch

from cfg_distill.embedders import NGramCounts


def test_counts_against_a_counter():
    texts = ["a b a b c", "c c c", "b"]
    embedding_ND = NGramCounts(n=2, buckets=4096).embed(texts)
    assert embedding_ND.dtype == torch.float32
    grams = [Counter(["a b", "b a", "a b", "b c"]), Counter(["c c", "c c"]), Counter(["b"])]
    for row_D, counter in zip(embedding_ND, grams, strict=True):
        assert row_D.sum() == sum(counter.values())
        for gram, count in counter.items():
            assert row_D[zlib.crc32(gram.encode()) % 4096] == count


def test_hash_is_the_same_everywhere():
    """A literal from another process: Python's own hash would change with every start."""
    assert NGramCounts(n=1, buckets=1000).embed(["c:1"])[0].nonzero().item() == 424


def test_short_and_empty_texts_are_no_zero_vector():
    embedding_ND = NGramCounts(n=3).embed(["", "a", "", "a b"])
    assert embedding_ND.sum(-1).tolist() == [1, 1, 1, 1]
    assert torch.equal(embedding_ND[0], embedding_ND[2])
    assert not torch.equal(embedding_ND[1], embedding_ND[3])


def test_problems():
    assert NGramCounts().problems() == []
    assert len(NGramCounts(n=0, buckets=0).problems()) == 2
