"""Rewritten copies of a tune that are no new music: a measure of diversity should give next to nothing for them.

A tune is a decoded string of music tokens. Each function is pure: a change that draws takes the generator.
"""

from __future__ import annotations

from random import Random
from typing import Literal

from cfg_distill.tunes.abc import BARS, note_token
from cfg_distill.tunes.bars import read_note

Style = Literal["none", "double", "plain", "everywhere"]


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
