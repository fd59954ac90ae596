"""Families of near-duplicates, and a split that parts none.

Two tunes are near-duplicates when their melodies share a good part of their runs of nine notes: eight intervals, so
that key and octave do not matter, nor do lengths and bars (one book writes in halved values, another without upbeats).
Runs that many tunes have (scales, arpeggios) say nothing and are left out.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SPLITS = ("train", "validation", "test")
SHARED = 0.2  # of the rarer runs of the shorter tune
RUN = 8  # intervals
COMMON = 12  # a run in more tunes than this is common property
HELD_OUT = 0.06  # of the tunes, for validation, and as many for test


def shingles(pitches: Sequence[int]) -> np.ndarray:
    """The runs of eight intervals of a melody, each once, as numbers: a byte per interval. A repeated note is one note, since
    bowings differ between books."""
    moves = np.diff(np.asarray(pitches, dtype=np.int64))
    moves = moves[moves != 0].astype(np.int8)
    if len(moves) < RUN:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.ascontiguousarray(sliding_window_view(moves, RUN)).view(np.int64))


def cluster(melodies: Sequence[Sequence[int]]) -> list[int]:
    """The number of each melody's family: linked, directly or through others, by near-duplication.

    The number is the index of the family's first melody.
    """
    runs = [shingles(melody) for melody in melodies]
    owners = np.repeat(np.arange(len(runs)), [len(own) for own in runs])
    _, kinds, counts = np.unique(np.concatenate(runs), return_inverse=True, return_counts=True)
    is_rare = counts[kinds] <= COMMON
    rare = np.bincount(owners[is_rare], minlength=len(runs))
    # The owners of a run side by side, in order; a pair of owners stands at most COMMON - 1 places apart.
    order = np.flatnonzero(is_rare)
    order = order[np.argsort(kinds[order], kind="stable")]
    kinds, owners = kinds[order], owners[order]
    pairs = [
        owners[:-apart][same] * len(runs) + owners[apart:][same]
        for apart in range(1, COMMON)
        for same in [kinds[:-apart] == kinds[apart:]]
    ]
    parent = list(range(len(melodies)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for pair, count in zip(*np.unique(np.concatenate(pairs), return_counts=True), strict=True):
        first, second = divmod(int(pair), len(runs))
        if count >= 3 and count >= SHARED * min(rare[first], rare[second]):
            low, high = sorted((root(first), root(second)))
            parent[high] = low
    return [root(index) for index in range(len(melodies))]


def assign_splits(families: Sequence[int]) -> list[str]:
    """Deals families to validation and test (:data:`HELD_OUT` of the tunes each), the rest to train.

    Families of more than four tunes go to train: a measurement on them would measure one tune many times.
    """
    sizes = Counter(families)
    candidates = sorted(family for family, size in sizes.items() if size <= 4)
    random.Random(hashlib.sha256(b"tunes").hexdigest()).shuffle(candidates)
    split_of: dict[int, str] = {}
    left = {"validation": HELD_OUT * len(families), "test": HELD_OUT * len(families)}
    for family in candidates:
        for name in left:
            if left[name] > 0:
                split_of[family] = name
                left[name] -= sizes[family]
                break
    return [split_of.get(family, "train") for family in families]
