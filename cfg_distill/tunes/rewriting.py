"""Rewritten copies of a tune that are no new music: a measure of diversity should give next to nothing for them.

A tune is a decoded string of music tokens. Each function is pure: a change that draws takes the generator.
"""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Literal

from cfg_distill.tunes.abc import BARS, note_token
from cfg_distill.tunes.bars import read_note

Style = Literal["none", "double", "plain", "everywhere"]

_LONG = {Fraction(1): Fraction(3, 4), Fraction(3): Fraction(1, 2)}
"""Share of the time of a pair that :func:`dotted` gives its first note, by the ratio of lengths that it finds."""


def transposed(tune: str, semitones: int) -> str:
    """The tune with every pitch moved up by ``semitones``.

    Example:
        >>> transposed("C:1 z:1 | B:2", 2)
        'D:1 z:1 | ^c:2'
    """
    words = []
    for token in tune.split():
        note = read_note(token)
        moves = note is not None and note.pitch is not None
        words.append(note_token(note.pitch + semitones, note.length) if moves else token)  # type: ignore[union-attr, operator]
    return " ".join(words)


def in_values(tune: str, factor: Fraction) -> str:
    """The tune with every note and rest ``factor`` times as long: the same melody, written in other note values.

    Example:
        >>> in_values("C:1 z:1 | D:3/2", Fraction(2))
        'C:2 z:2 | D:3'
    """
    words = []
    for token in tune.split():
        note = read_note(token)
        words.append(token if note is None else note_token(note.pitch, note.length * factor))
    return " ".join(words)


def dotted(tune: str) -> str:
    """The tune with other rhythms in the same bars: two notes of one length become long and short, and long and short even.

    Pairs are taken from the front; a bar sign, a rest or another ratio of lengths ends a pair and stays.

    Example:
        >>> dotted("C:1 D:1 | E:1 z:1 F:3/2 G:1/2")
        'C:3/2 D:1/2 | E:1 z:1 F:1 G:1'
    """
    words, place = tune.split(), 0
    while place + 1 < len(words):
        first, second = map(read_note, words[place : place + 2])
        if first and second and first.pitch is not None and second.pitch is not None:
            both, long = first.length + second.length, _LONG.get(first.length / second.length)
            if long:
                words[place] = note_token(first.pitch, both * long)
                words[place + 1] = note_token(second.pitch, both * (1 - long))
                place += 1
        place += 1
    return " ".join(words)


def upside_down(tune: str) -> str:
    """The tune in the same rhythm with every interval turned over: another melody.

    Example:
        >>> upside_down("C:1 E:1 | G:2")
        'c:1 _A:1 | F:2'
    """
    words = []
    for token in tune.split():
        note = read_note(token)
        turns = note is not None and note.pitch is not None
        words.append(note_token(12 - note.pitch, note.length) if turns else token)  # type: ignore[union-attr, operator]
    return " ".join(words)


def rewritten_bars(tune: str, style: Style) -> str:
    """The tune with other bar signs.

    Args:
        tune: music tokens.
        style: ``none`` leaves all signs out; ``double`` writes ``||`` for each; ``plain`` writes ``|`` for each;
            ``everywhere`` puts a plain bar sign behind every note.

    Example:
        >>> rewritten_bars("|: C:1 D:1 :| E:1", "plain")
        '| C:1 D:1 | E:1'
    """
    if style == "everywhere":
        return " ".join(f"{token} |" for token in tune.split() if token not in BARS)
    sign = {"none": [], "double": ["||"], "plain": ["|"]}[style]
    return " ".join(word for token in tune.split() for word in (sign if token in BARS else [token]))


def with_rests(tune: str, share: float, random: Random | None = None) -> str:
    """The tune with some of its notes made rests of the same length.

    Args:
        tune: music tokens.
        share: of the notes, rounded to a whole number of notes.
        random: draws which; without one they are the same at each call.

    Example:
        >>> with_rests("C:1 D:1/2 | E:1 F:2", 1.0)
        'z:1 z:1/2 | z:1 z:2'
    """
    tokens = tune.split()
    notes = [place for place, token in enumerate(tokens) if (note := read_note(token)) and note.pitch is not None]
    for place in (random or Random(0)).sample(notes, round(share * len(notes))):
        tokens[place] = f"z:{tokens[place].split(':')[1]}"
    return " ".join(tokens)


def between_rests(tune: str, share: float, random: Random | None = None) -> str:
    """The tune with rests of an eighth put behind some of its notes; the notes themselves stay.

    Args:
        tune: music tokens.
        share: of the notes, rounded to a whole number of notes.
        random: draws behind which; without one they are the same at each call.

    Example:
        >>> between_rests("C:1 | D:2", 1.0)
        'C:1 z:1 | D:2 z:1'
    """
    tokens = tune.split()
    notes = [place for place, token in enumerate(tokens) if (note := read_note(token)) and note.pitch is not None]
    for place in (random or Random(0)).sample(notes, round(share * len(notes))):
        tokens[place] += " z:1"
    return " ".join(tokens)
