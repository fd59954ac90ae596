"""Families of near-duplicates, and a split that parts none.

Two tunes are near-duplicates when their melodies share a good part of their runs of nine notes: eight intervals, so
that key and octave do not matter, nor do lengths and bars (one book writes in halved values, another without upbeats).
Runs that many tunes have (scales, arpeggios) say nothing and are left out.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations, pairwise

SPLITS = ("train", "validation", "test")
SHARED = 0.2  # of the rarer runs of the shorter tune
RUN = 8  # intervals
COMMON = 12  # a run in more tunes than this is common property


def shingles(pitches: Sequence[int]) -> set[tuple[int, ...]]:
    """The runs of eight intervals of a melody. A repeated note is one note: bowings differ between books."""
    moves = [after - before for before, after in pairwise(pitches) if after != before]
    return {tuple(moves[start : start + RUN]) for start in range(len(moves) - RUN + 1)}


def cluster(melodies: Sequence[Sequence[int]]) -> list[int]:
    """The number of each melody's family: linked, directly or through others, by near-duplication.

    The number is the index of the family's first melody.
    """
    runs = [shingles(melody) for melody in melodies]
    owners: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, own in enumerate(runs):
        for run in own:
            owners[run].append(index)
    rare = [sum(len(owners[run]) <= COMMON for run in own) for own in runs]
    shared: Counter[tuple[int, int]] = Counter()
    for indices in owners.values():
        if 1 < len(indices) <= COMMON:
            shared.update(combinations(indices, 2))
    parent = list(range(len(melodies)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for (first, second), count in shared.items():
        if count >= 3 and count >= SHARED * min(rare[first], rare[second]):
            low, high = sorted((root(first), root(second)))
            parent[high] = low
    return [root(index) for index in range(len(melodies))]


def assign_splits(families: Sequence[int], share: float = 0.06, seed: str = "tunes") -> list[str]:
    """Deals families to validation and test (``share`` of the tunes each), the rest to train.

    Families of more than four tunes go to train: a measurement on them would measure one tune many times.
    """
    sizes = Counter(families)
    candidates = sorted(family for family, size in sizes.items() if size <= 4)
    random.Random(hashlib.sha256(seed.encode()).hexdigest()).shuffle(candidates)
    split_of: dict[int, str] = {}
    left = {"validation": share * len(families), "test": share * len(families)}
    for family in candidates:
        for name in left:
            if left[name] > 0:
                split_of[family] = name
                left[name] -= sizes[family]
                break
    return [split_of.get(family, "train") for family in families]
