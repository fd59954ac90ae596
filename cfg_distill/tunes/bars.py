"""Music tokens as bars: the reader behind rendering and metrics, and the share of bars that add up.

A decoded tune is a string of the tokens of abc.py, separated by spaces. A model may emit them in any order, so the reader
takes every string: unknown words are skipped, and several bar signs in a row count as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import lcm

from cfg_distill.tunes.abc import BARS, Note, parse_note

METRES = {"2/4": Fraction(4), "3/4": Fraction(6), "4/4": Fraction(8), "6/8": Fraction(6), "9/8": Fraction(9)}
"""Length of a full bar in eighth notes, for the metres of the conditions."""


@dataclass(frozen=True)
class Sign:
    """The signs between two bars, taken together.

    Attributes:
        closes: ends a repeated section.
        opens: begins one.
        ending: 1 or 2 where a first or second ending begins, else 0.
        edge: parts sections (a repeat, a double bar, an ending, or the start of the tune).
    """

    closes: bool = False
    opens: bool = False
    ending: int = 0
    edge: bool = False

    def __or__(self, other: Sign) -> Sign:
        return Sign(
            self.closes or other.closes, self.opens or other.opens, other.ending or self.ending, self.edge or other.edge
        )


@dataclass
class Bar:
    """The notes between two signs; ``right`` is None where the tune breaks off without a sign."""

    left: Sign
    notes: list[Note] = field(default_factory=list)
    right: Sign | None = None

    @cached_property
    def eighths(self) -> Fraction:
        """The notes' lengths together; asked for when all notes are there, and often."""
        # Whole numbers over one denominator: several times as fast as a sum of fractions.
        below = lcm(*(note.length.denominator for note in self.notes))
        return Fraction(sum(note.length.numerator * (below // note.length.denominator) for note in self.notes), below)

    @cached_property
    def content(self) -> tuple[tuple[int | None, Fraction], ...]:
        """The notes as something to compare and to count."""
        return tuple((note.pitch, note.length) for note in self.notes)


def read_note(token: str) -> Note | None:
    """The note or rest of a token; None for any other token, and for a length of 0."""
    try:
        pitch, length = parse_note(token) or (None, Fraction(0))
    except ZeroDivisionError:
        return None
    return Note(pitch, length) if length > 0 else None


def read_bars(tokens: str) -> list[Bar]:
    """The bars of a tune that hold notes; empty bars vanish, the signs around them merge."""
    bars = [Bar(Sign(edge=True))]
    for token in tokens.split():
        note = read_note(token)
        if note is not None:
            if bars[-1].right is not None:
                bars.append(Bar(bars[-1].right))
            bars[-1].notes.append(note)
        elif token in BARS:
            sign = Sign(
                closes=token in (":|", "::"),
                opens=token in ("|:", "::"),
                ending=int(token[1]) if token.startswith("[") else 0,
                edge=token != "|",
            )
            if bars[-1].notes:
                bars[-1].right = (bars[-1].right or Sign()) | sign
            else:
                bars[-1].left |= sign
    return [bar for bar in bars if bar.notes]


@dataclass(frozen=True)
class Repeat:
    """Bars ``start`` to ``stop`` (excluded) are played, then again up to bar ``ending``, where the first ending begins."""

    start: int
    ending: int
    stop: int


def repeats(bars: list[Bar]) -> Iterator[Repeat]:
    """The repeats of a tune. A closing sign without an opening one repeats from the last closing sign on."""
    start, ending = 0, 0
    for index, bar in enumerate(bars):
        if bar.left.opens:
            start, ending = index, 0
        if bar.left.ending == 1 and index > start:
            ending = index
        if bar.right is not None and bar.right.closes:
            yield Repeat(start, ending or index + 1, index + 1)
            start, ending = index + 1, 0


def played(bars: list[Bar]) -> list[Bar]:
    """The bars in playing order, repeats written out."""
    again = {repeat.stop - 1: repeat for repeat in repeats(bars)}
    order: list[Bar] = []
    for index, bar in enumerate(bars):
        order.append(bar)
        if index in again:
            order.extend(bars[again[index].start : again[index].ending])
    return order


def bar_validity(tokens: str, metre: str | None = None, once: bool = False) -> float:
    """Share of bars that add up to the metre.

    Counted as for printed tunes: a short first bar (the upbeat) and a short last one (which completes the upbeat, or
    where a sample breaks off) are left out of the count. A short bar at a section's edge adds up when it does so
    together with the bar across the edge or with the upbeat to which the repeat returns. Every other bar must be full.

    Args:
        tokens: the tune.
        metre: a key of :data:`METRES`; None, "any" or another metre: the one of :data:`METRES` that gives the highest share.
        once: count equal bars once, so that copies of a bar are no further evidence.

    Returns:
        A number from 0 to 1; 0 when no bar counts, so that a tune without bar signs earns nothing.
    """
    bars = read_bars(tokens)
    lengths = {METRES[metre]} if metre in METRES else set(METRES.values())
    return max(_share(bars, length, once) for length in lengths)


def likely_metre(tokens: str) -> str:
    """The metre that most bars add up to; 4/4 in doubt."""
    bars = read_bars(tokens)
    return max(("4/4", "6/8", "2/4", "3/4", "9/8"), key=lambda metre: _share(bars, METRES[metre]))


def _share(bars: list[Bar], length: Fraction, once: bool = False) -> float:
    valid, counted = 0, 0
    seen: set[tuple[tuple[int | None, Fraction], ...]] = set()
    section = 0
    for index, bar in enumerate(bars):
        if bar.left.edge:
            section = index
        is_first, is_last = index == 0, index == len(bars) - 1
        if (bar.eighths < length and (is_first or is_last)) or (once and bar.content in seen):
            continue
        seen.add(bar.content)
        counted += 1
        complements = []
        if bar.right is not None and bar.right.edge and not is_last:
            complements += [bars[section].eighths, bars[index + 1].eighths]
        if bar.left.edge and not is_first:
            complements.append(bars[index - 1].eighths)
        valid += bar.eighths == length or any(bar.eighths + other == length for other in complements)
    return valid / counted if counted else 0.0
