"""How different the melodies of a group are, by comparing note with note: a second diversity, without any training.

Shapes: B prompts, G samples per prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any, Literal

from cfg_distill.metrics import TextMetric
from cfg_distill.tunes.canonical import is_degenerate, sounding_notes

Note = tuple[int, Fraction]  # pitch in semitones, length
Hears = Literal["both", "pitch", "rhythm"]
_VALUES = tuple(map(Fraction, ("1", "1/2", "2", "1/4", "4")))
"""Lengths of notes are compared times each of these: one melody is written in sixteenths, eighths or quarters."""
_APART = 10_000  # between the numbers of two lengths: more than any two pitches, moved or not


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence: what is left of both when the fewest items are struck out.

    The rows of the usual table are the bits of one integer, so that a row costs one addition (Crochemore et al. 2001,
    "A fast and practical bit-vector algorithm for the longest common subsequence problem").

    Example:
        >>> common_subsequence("ABCBDAB", "BDCABA")
        4
    """
    places: dict[Hashable, int] = {}
    for place, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for item in second:
        matches = row & places.get(item, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def common_melody(first: Sequence[Note], second: Sequence[Note], known: int = 0) -> int:
    """The longest common subsequence of (pitch, length) under the best transposition, or ``known`` if that is longer."""
    # A transposition has at most as many notes in common as the counts of the notes have: the best bounds come first,
    # and the search ends when no bound beats what was found.
    heights: dict[Fraction, Counter[int]] = {}
    for pitch, length in second:
        heights.setdefault(length, Counter())[pitch] += 1
    bounds: Counter[int] = Counter()
    for (pitch, length), count in Counter(first).items():
        for height, others in heights.get(length, Counter()).items():
            bounds[pitch - height] += min(count, others)
    # Notes as integers, which compare faster than fractions: moving a note by s semitones adds s.
    numbers = {length: number * _APART for number, length in enumerate({length for _, length in [*first, *second]})}
    one = [pitch + numbers[length] for pitch, length in first]
    other = [pitch + numbers[length] for pitch, length in second]
    best = known
    for shift, bound in bounds.most_common():
        if bound <= best:
            break
        best = max(best, common_subsequence(one, [note + shift for note in other]))
    return best


def melodic_distance(first: str, second: str, hears: Hears = "both") -> float:
    r"""How little of the shorter tune is found in the other, in order, under the best transposition and note values.

    .. math:: d(x, y) = 1 - \max_{s, v} \frac{\mathrm{LCS}(x, v y + s)}{\min(|x|, |y|)}

    x and y are sequences of notes (pitch, length) without bar signs and rests; v y + s is y moved by s semitones, with notes
    a quarter to four times as long. A tune is at 0 from its transpositions, from itself in such note values, with
    other bar signs, with rests put in, and with notes made rests. Two tunes of the corpus are at two thirds (docs/tunes.md).

    Alignment of notes by pitch and length follows Mongeau and Sankoff (1990), "Comparison of musical sequences", with
    the costs of the longest common subsequence.

    Args:
        first, second: decoded tunes.
        hears: of a note: pitch and length, the pitch alone, or the length alone.

    Returns:
        In [0, 1]; 0 when one has no note.

    Example:
        >>> melodic_distance("C:1 D:1 E:1 F:2 |", "G:1 z:1 A:1 B:1 C:1")
        0.25
        >>> melodic_distance("C:1 D:1 E:1", "C:2 D:2 E:2"), melodic_distance("C:1 D:1 E:1", "C:3 D:1 E:3", "rhythm")
        (0.0, 0.6666666666666667)
    """
    one, other = (
        [(0 if hears == "rhythm" else note.pitch, Fraction(1) if hears == "pitch" else note.length)
         for note in sounding_notes(tune)]
        for tune in (first, second)
    )  # fmt: skip
    shorter = min(len(one), len(other))
    lengths, their_lengths = (Counter(length for _, length in notes) for notes in (one, other))
    common = 0
    for value in _VALUES:
        bound = sum(min(count, lengths[length * value]) for length, count in their_lengths.items())
        if bound > common:
            common = common_melody(one, [(pitch, length * value) for pitch, length in other], common)
    return 1 - common / shorter if shorter else 0.0


class MelodicDiversity(TextMetric):
    """Mean :func:`melodic_distance` between the tunes of a prompt; NaN for a group of one.

    A pair with a degenerate tune (:func:`cfg_distill.tunes.canonical.is_degenerate`) counts as 0. Pitch alone and rhythm alone
    tell where a diversity comes from.

    Args:
        hears: of a note: pitch and length, the pitch alone, or the length alone.
        settings: see :class:`cfg_distill.metrics.TextMetric`.
    """

    axis = "diversity"

    def __init__(self, hears: Hears = "both", **settings: Any) -> None:
        super().__init__(**settings)
        self.hears = hears

    def score_group(self, texts: list[str]) -> float:
        if len(texts) < 2:
            return float("nan")
        degenerate = [is_degenerate(text) for text in texts]
        pairs = list(combinations(range(len(texts)), 2))
        counted = [(i, j) for i, j in pairs if not degenerate[i] and not degenerate[j]]
        total = sum(melodic_distance(texts[i], texts[j], self.hears) for i, j in counted)
        return total / len(pairs)
