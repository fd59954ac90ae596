"""A tune without what a listener does not hear as melody: the notes that sound, and when; no bar signs, no rests.

The encoder (figures.py) and the melodic diversity (melody.py) read tunes in this form, and compare pitches with one another
only. So copies in another key or octave, or with other bar signs, are equal for them by construction.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from cfg_distill.tunes.bars import read_note

FEWEST_RUNS, RUN = 12, 4
MOST_REST = 1 / 3


class Sounding(NamedTuple):
    """A note that sounds.

    Attributes:
        pitch: in semitones from middle C.
        length: in eighths.
        onset: the time before it, in eighths, rests included.
        place: of its token in the tune.
    """

    pitch: int
    length: Fraction
    onset: Fraction
    place: int


@lru_cache(maxsize=8192)
def sounding_notes(tune: str) -> tuple[Sounding, ...]:
    """The notes of a decoded tune that sound, in order.

    Example:
        >>> [(note.pitch, str(note.onset)) for note in sounding_notes("z:1 C:1/2 | D:1")]
        [(0, '1'), (2, '3/2')]
    """
    notes: list[Sounding] = []
    now = Fraction(0)
    for place, token in enumerate(tune.split()):
        note = read_note(token)
        if note is None:
            continue
        if note.pitch is not None:
            notes.append(Sounding(note.pitch, note.length, now, place))
        now += note.length
    return tuple(notes)


def runs_of(notes: Iterable[Sounding]) -> set[tuple[tuple[int, Fraction], ...]]:
    """The different runs of four notes, by interval and length: what a tune has to say, however often it says it."""
    steps = [(after.pitch - before.pitch, before.length) for before, after in pairwise(notes)]
    return {tuple(steps[start : start + RUN - 1]) for start in range(len(steps) - RUN + 2)}


def rest_share(tune: str) -> float:
    """Share of the time of a tune in which nothing sounds; 1 for a tune without a note."""
    notes = [note for token in tune.split() if (note := read_note(token)) is not None]
    total = sum(note.length for note in notes)
    return float(sum(note.length for note in notes if note.pitch is None) / total) if total else 1.0


def is_degenerate(tune: str) -> bool:
    """Whether a tune is too little to be called different from another.

    It is when it has fewer than 12 different runs of four notes (transposed runs count once), or rests for more than a
    third of its time. No tune of the corpus, whole or cut to 48 tokens, is. The empty tune, a few notes, and
    one bar of up to eleven notes that is repeated are.
    """
    return len(runs_of(sounding_notes(tune))) < FEWEST_RUNS or rest_share(tune) > MOST_REST
