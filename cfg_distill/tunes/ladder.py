"""Tunes that no measure of quality may pay: degenerate ones, made from real ones.

Every function takes decoded tunes (music tokens between spaces) and a source of random numbers, and returns as many
tunes. The judge is trained against them, and the tests hold that none of them stands above a sample of the base model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from random import Random

from cfg_distill.tunes.abc import note_token
from cfg_distill.tunes.bars import METRES, Bar, likely_metre, read_bars, read_note
from cfg_distill.tunes.prompts import NULL, SLOTS

LONGEST = 128
"""Tokens of a degenerate tune at most: as long as the samples of the recipes."""
COMMON = 40
"""How many of the commonest bars the loops and shuffles choose from."""

Score = Callable[[Sequence[str]], Sequence[float]]
"""The quality of tunes, one number per tune."""


def prompt_of(slots: Mapping[str, str]) -> str:
    """A prompt that asks for these slots and no others.

    Example:
        >>> prompt_of({"origin": "irish", "rhythm": "slip jig", "metre": "9/8", "mode": "any"})
        'irish, slip jig, 9/8'
    """
    return ", ".join(slots[slot] for slot in SLOTS if slots[slot] != NULL)


def matches(have: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether the slots of a tune are what was asked for; a slot that was not asked for may have any value."""
    return all(value in (NULL, have[slot]) for slot, value in asked.items())


def cut(tune: str, longest: int = LONGEST) -> str:
    """The first tokens of a tune, as a sample breaks off."""
    return " ".join(tune.split()[:longest])


# Degenerate tunes


def looped(tunes: Sequence[str], draw: Random) -> list[str]:
    """For each tune one of the commonest bars of all of them, drawn at random and repeated."""
    bars = common_bars(tunes)
    return [loop([draw.choice(bars)]) for _ in tunes]


def chosen_loops(tunes: Sequence[str], draw: Random, score: Score) -> list[str]:
    """The adversary: a loop of each of the commonest bars, by their score from the best on; again from the best where there
    are fewer than tunes."""
    loops = [loop([bar]) for bar in common_bars(tunes)]
    scores = score(loops)
    best = sorted(range(len(loops)), key=lambda index: -scores[index])
    return [loops[best[place % len(best)]] for place in range(len(tunes))]


def shuffled_bars(tunes: Sequence[str], draw: Random) -> list[str]:
    """For each tune bars drawn at random from the commonest ones of all."""
    bars = common_bars(tunes)
    return [loop(draw.choices(bars, k=LONGEST)) for _ in tunes]


def random_notes(tunes: Sequence[str], draw: Random) -> list[str]:
    """For each tune bars of its metre, filled with notes drawn at random from all that occur in the tunes."""
    by_length: defaultdict[Fraction, set[str]] = defaultdict(set)
    for token in {token for tune in tunes for token in tune.split()}:
        note = read_note(token)
        if note is not None and note.pitch is not None:
            by_length[note.length].add(token)
    lengths = sorted(by_length)
    notes = {length: sorted(tokens) for length, tokens in by_length.items()}
    made = []
    for tune in tunes:
        tokens: list[str] = []
        metre = METRES[likely_metre(tune)]
        while len(tokens) < LONGEST:
            left = metre
            while left:
                length = draw.choice(lengths[: bisect_right(lengths, left)] or [left])
                # Where no length of the tunes fits any more, a rest fills the bar.
                tokens.append(draw.choice(notes.get(length) or [note_token(None, left)]))
                left -= length
            tokens.append("|")
        made.append(" ".join(tokens[:LONGEST]))
    return made


def with_rests(tunes: Sequence[str], draw: Random, every: int = 3) -> list[str]:
    """Each tune with every third note, from a random one of its first three on, made a rest of its length."""
    made = []
    for tune in tunes:
        count, tokens = draw.randrange(every), []
        for token in tune.split()[:LONGEST]:
            note = read_note(token)
            if note is not None:
                count += 1
                token = note_token(None, note.length) if count % every == 0 else token
            tokens.append(token)
        made.append(" ".join(tokens))
    return made


def two_bars(tunes: Sequence[str], draw: Random) -> list[str]:
    """Two full bars of each tune, then the end."""
    made = []
    for tune in tunes:
        bars = full_bars(tune) or (tune,)
        start = draw.randrange(max(1, len(bars) - 1))
        made.append(" | ".join(bars[start : start + 2]) + " ||")
    return made


def empty(tunes: Sequence[str], draw: Random) -> list[str]:
    """Nothing, once for each tune."""
    return [""] * len(tunes)


def copied(tunes: Sequence[str], draw: Random) -> list[str]:
    """One of the tunes, drawn at random, once for each tune."""
    return [cut(draw.choice(tunes))] * len(tunes)


# Bars


@cache
def full_bars(tune: str) -> tuple[str, ...]:
    """The bars of a tune that hold exactly its likeliest metre, each as tokens without bar signs."""
    length = METRES[likely_metre(tune)]
    return tuple(_tokens(bar) for bar in read_bars(tune) if bar.eighths == length)


def common_bars(tunes: Sequence[str], number: int = COMMON) -> list[str]:
    """The commonest full bars of tunes, the commonest first."""
    counts = Counter(bar for tune in tunes for bar in full_bars(tune))
    return [bar for bar, _ in counts.most_common(number)]


def loop(bars: Sequence[str]) -> str:
    """Bars one after the other, again from the first, for :data:`LONGEST` tokens."""
    tokens: list[str] = []
    while len(tokens) < LONGEST:
        tokens += [token for bar in bars for token in (*bar.split(), "|")]
    return " ".join(tokens[:LONGEST])


def _tokens(bar: Bar) -> str:
    return " ".join(note_token(note.pitch, note.length) for note in bar.notes)
