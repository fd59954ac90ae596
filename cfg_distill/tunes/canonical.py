"""A tune without what a listener does not hear as melody: bar signs, key, octave, and rests.

The encoder (network.py) and the melodic diversity (melody.py) read tunes in this form only. So copies that differ in
nothing else are equal for them by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from cfg_distill.tunes.bars import read_note

CELLS = 2  # per eighth note
LONGEST = 1024  # cells; real tunes have at most 896
FEWEST_RUNS, RUN = 12, 4
MOST_REST = 1 / 3


class Sounding(NamedTuple):
    """A note that sounds: pitch in semitones, length in eighths, and the rest behind it in eighths."""

    pitch: int
    length: Fraction
    rest: Fraction


@lru_cache(maxsize=8192)
def sounding_notes(tune: str) -> tuple[Sounding, ...]:
    """The notes of a decoded tune in order; rests before the first note are dropped, the others belong to the note before."""
    notes: list[Sounding] = []
    for token in tune.split():
        note = read_note(token)
        if note is None:
            continue
        if note.pitch is not None:
            notes.append(Sounding(note.pitch, note.length, Fraction(0)))
        elif notes:
            notes[-1] = notes[-1]._replace(rest=notes[-1].rest + note.length)
    return tuple(notes)


def cells_of(notes: Sequence[Sounding]) -> list[tuple[int, int]]:
    """What sounds at each half of an eighth: (pitch above the first note, 1 where the note begins and 0 where it is held).

    A rest holds the note before it; the rest behind the last note is dropped. At most :data:`LONGEST` cells.

    Example:
        >>> cells_of(sounding_notes("z:1 C:1 z:1/2 D:1/2"))
        [(0, 1), (0, 0), (0, 0), (2, 1)]
    """
    cells: list[tuple[int, int]] = []
    lengths = [note.length + note.rest for note in notes[:-1]] + [note.length for note in notes[-1:]]
    for note, end in zip(notes, accumulate(lengths), strict=True):
        wanted = min(-(-end * CELLS // 1), LONGEST)  # a cell sounds what sounds at its beginning
        height = note.pitch - notes[0].pitch
        begins = 1
        while len(cells) < wanted:
            cells.append((height, begins))
            begins = 0
    return cells


def runs_of(notes: Iterable[Sounding], length: int = RUN) -> set[tuple[tuple[int, Fraction], ...]]:
    """The different runs of notes, by interval and length: what a tune has to say, however often it says it."""
    steps = [(after.pitch - before.pitch, before.length) for before, after in pairwise(notes)]
    return {tuple(steps[start : start + length - 1]) for start in range(len(steps) - length + 2)}


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
