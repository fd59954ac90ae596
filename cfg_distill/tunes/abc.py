"""ABC notation, as the collections write it, to music tokens. This file knows text only; corpus.py decides which tunes to keep.

Each note is one token: the pitch with the tonic moved to C, a colon, the length in eighth notes: "c:1", "^f:1/2", "z:2".
Pitches are written as in ABC: "C" is middle C, "c" the octave above, "," and "'" lead further down and up. Each of the
twelve pitches has one spelling. Bars and repeats are tokens of their own: "|", "||", "|:", ":|", "::", "[1", "[2".
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache

SPELLING = ("C", "^C", "D", "_E", "E", "F", "^F", "G", "_A", "A", "_B", "B")
BARS = ("|", "||", "|:", ":|", "::", "[1", "[2")

_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"^": 1, "^^": 2, "_": -1, "__": -2, "=": 0}
_MODES = {
    "": ("major", 0), "maj": ("major", 0), "ion": ("major", 0), "m": ("minor", -3), "min": ("minor", -3),
    "aeo": ("minor", -3), "dor": ("dorian", -2), "mix": ("mixolydian", -1), "lyd": ("lydian", 1),
    "phr": ("phrygian", -4), "loc": ("locrian", -5),
}  # fmt: skip
_FIFTHS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}
_TUPLET_TIME = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}

# Chord names, decorations, grace notes, comments, continued lines, and single letters that decorate the next note.
_IGNORED = re.compile(
    r'"[^"\n]*"|![^!\s]*!|\+[^+\s|]*\+|\{[^}]*\}|\[r:[^\]]*\]|%.*|\\\s*$|`|[~.uvHLTSPOMRJ](?=[\^=_A-Ga-gz(\[.])',
    re.M,
)
_TOKEN = re.compile(
    r"(?P<field>\[[A-Za-z]:[^\]\n]*\])"
    r"|(?P<chord>\[[^\]\n|:0-9][^\]\n|:]*\])(?P<chord_length>\d*/*\d*)"
    r"|(?P<ending>\[[1-9][0-9,\-]*)"
    r"|(?P<bar>:*\|[|\]:]*[1-9]?(?![0-9])|::+|\[\||\|\])"
    r"|\((?P<tuplet>\d)(?::(?P<time>\d*))?(?::(?P<count>\d*))?"
    r"|(?P<accidental>\^\^|\^|__|_|=)?(?P<letter>[A-Ga-g])(?P<octave>[,']*)(?P<length>\d*/*\d*)"
    r"|(?P<rest>[zx])(?P<rest_length>\d*/*\d*)"
    r"|(?P<broken>[<>]+)|(?P<tie>-)|(?P<skip>[\s()y*])|(?P<unknown>.)"
)


class NotOneVoiceError(ValueError):
    """The tune has several voices, changes key or metre, or uses signs that this reader does not know."""


@dataclass
class Note:
    """A pitch in semitones from middle C (None: a rest) and a length in eighth notes."""

    pitch: int | None
    length: Fraction


@dataclass
class Score:
    """A tune as read: the fields by letter, key, metre, and notes and bar signs in order."""

    fields: dict[str, list[str]]
    tonic: int
    mode: str
    metre: str
    events: list[Note | str] = field(default_factory=list)


def key_of(text: str) -> tuple[int, str, dict[str, int]]:
    """ "A Mixolydian" -> tonic as pitch class, mode, accidental of each letter.

    Raises:
        NotOneVoiceError: no key that is known.
    """
    match = re.match(r"\s*([A-G])([#b]?)\s*([A-Za-z]*)", text.split("%")[0])
    name = match[3].lower()[:3] if match and match[3] != "M" else ""
    if match is None or (name not in _MODES and name != "mi"):
        raise NotOneVoiceError(f"key {text!r}")
    mode, shift = _MODES.get(name, ("minor", -3))
    sign = {"#": 1, "b": -1, "": 0}[match[2]]
    fifths = _FIFTHS[match[1]] + 7 * sign + shift
    order = "FCGDAEB" if fifths > 0 else "BEADGCF"
    signature = {order[i % 7]: (1 if fifths > 0 else -1) for i in range(min(abs(fifths), 7))}
    return (_STEPS[match[1]] + sign) % 12, mode, signature


def metre_of(text: str) -> str:
    """The metre in figures; common time and its doubled, halved and cut forms are all 4/4."""
    text = text.split("%")[0].strip()
    return "4/4" if text in ("C", "C|", "2/2", "4/4") else text


def _factor(text: str) -> Fraction:
    if not text:
        return Fraction(1)
    numerator, slashes, denominator = re.match(r"(\d*)(/*)(\d*)", text).groups()  # type: ignore[union-attr]
    below = int(denominator) if denominator else 2 ** len(slashes)
    return Fraction(int(numerator or 1), below or 1)


def read(block: str) -> Score:
    """One tune, from its text after "X:".

    Raises:
        NotOneVoiceError: see there.
    """
    fields: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in block.splitlines()[1:]:
        match = re.match(r"([A-Za-z]):(.*)", line)
        # A music line may begin like a field ("G:|"): a field's letter is followed by anything but a bar line.
        if match and not ("K" in fields and match[2].startswith(("|", ":"))):
            letter, value = match[1], match[2].strip()
            fields.setdefault(letter, []).append(value)
            if lines and letter in "LMKV" and letter != "V":
                lines.append(f"[{letter}:{value}]")
        elif "K" in fields:
            lines.append(line)
    if "K" not in fields or "M" not in fields or len(set(fields.get("V", []))) > 1:
        raise NotOneVoiceError("no key, no metre or several voices")
    tonic, mode, signature = key_of(fields["K"][0])
    metre = metre_of(fields["M"][0])
    if not re.fullmatch(r"\d+/\d+", metre):
        raise NotOneVoiceError(f"metre {metre!r}")
    unit = Fraction(fields["L"][0].split("%")[0].strip()) if fields.get("L") else Fraction(1, 8)
    score = Score(fields, tonic, mode, metre)
    score.events = _Body(unit * 8, score, signature).read(_IGNORED.sub("", "\n".join(lines)))
    return score


class _Body:
    """Reads the body of a tune from left to right; a method for each kind of sign.

    Args:
        unit: the written unit in eighth notes.
        score: key and metre, which must not change.
        signature: accidental of each letter.
    """

    def __init__(self, unit: Fraction, score: Score, signature: dict[str, int]) -> None:
        self.unit, self.score, self.signature = unit, score, signature
        self.lengths: dict[str, Fraction] = {}  # in eighths, by what is written: a product of fractions takes its time
        self.events: list[Note | str] = []
        self.in_bar: dict[str, int] = {}  # accidentals written in this bar, by letter and octave
        self.last: dict[str, int] = {}  # accidentals of the last note or chord, written or not
        self.tied_over: dict[str, int] = {}  # those that a tie carries over a bar line, for one note or chord
        self.tuplet, self.tuplet_left = Fraction(1), 0
        self.broken: Fraction | None = None  # factor on the next note, behind ">" or "<"
        self.tied = False

    def read(self, text: str) -> list[Note | str]:
        readers = {  # by the last group of a sign
            "length": self._note, "rest_length": self._rest, "chord_length": self._chord, "tuplet": self._tuplet,
            "time": self._tuplet, "count": self._tuplet, "broken": self._broken, "tie": self._tie, "ending": self._bar,
            "bar": self._bar, "field": self._field, "unknown": self._unknown,
        }  # fmt: skip
        for match in _TOKEN.finditer(text):
            if match.lastgroup in readers:  # else white space, slurs
                readers[match.lastgroup](match)
        return _tidy(self.events)

    def _pitch(self, accidental: str | None, letter: str, octave: str) -> int:
        step = letter.upper()
        height = (12 if letter.islower() else 0) + 12 * (octave.count("'") - octave.count(","))
        name = letter + octave
        if accidental:
            self.in_bar[name] = _ACCIDENTALS[accidental]
        self.last[name] = self.in_bar.get(name, self.tied_over.get(name, self.signature.get(step, 0)))
        return _STEPS[step] + height + self.last[name]

    def _length(self, written: str) -> Fraction:
        if written not in self.lengths:
            self.lengths[written] = _factor(written) * self.unit
        return self.lengths[written]

    def _add(self, pitch: int | None, length: Fraction) -> None:
        if self.tuplet_left:
            length, self.tuplet_left = length * self.tuplet, self.tuplet_left - 1
        if self.broken is not None:
            length, self.broken = length * self.broken, None
        last = self.events[-1] if self.events else None
        if self.tied and isinstance(last, Note) and last.pitch == pitch:
            # Inside a bar a tie is one note; across a bar line the note sounds again.
            last.length += length
        elif length:
            self.events.append(Note(pitch, length))
        self.tied, self.tied_over = False, {}

    def _note(self, match: re.Match[str]) -> None:
        self.last = {}
        self._add(self._pitch(match["accidental"], match["letter"], match["octave"]), self._length(match["length"]))

    def _rest(self, match: re.Match[str]) -> None:
        self.last = {}
        self._add(None, self._length(match["rest_length"]))

    def _chord(self, match: re.Match[str]) -> None:
        """A chord is its highest note."""
        inside = re.findall(r"(\^\^|\^|__|_|=)?([A-Ga-g])([,']*)(\d*/*\d*)", match["chord"])
        if not inside:
            raise NotOneVoiceError(match["chord"])
        self.last = {}
        top = max(self._pitch(accidental, letter, octave) for accidental, letter, octave, _ in inside)
        self._add(top, _factor(match["chord_length"]) * self._length(inside[0][3]))

    def _tuplet(self, match: re.Match[str]) -> None:
        notes = int(match["tuplet"])
        compound = self.score.metre in ("6/8", "9/8", "12/8", "3/8")
        time = int(match["time"] or _TUPLET_TIME.get(notes, 3 if compound else 2))
        self.tuplet, self.tuplet_left = Fraction(time, notes), int(match["count"] or notes)

    def _broken(self, match: re.Match[str]) -> None:
        """ "a>b" lengthens the first note by half and shortens the second; "a<b" is the other way round."""
        last = self.events[-1] if self.events else None
        if not isinstance(last, Note):
            return
        size = Fraction(1, 2 ** len(match["broken"]))
        long, short = 2 - size, size
        before, self.broken = (long, short) if match["broken"][0] == ">" else (short, long)
        last.length *= before

    def _tie(self, match: re.Match[str]) -> None:
        self.tied = True

    def _bar(self, match: re.Match[str]) -> None:
        if self.tied:
            self.tied_over = self.last
        self.in_bar.clear()
        self.events.extend(_bar_signs(match["bar"] or "", match["ending"] or ""))

    def _field(self, match: re.Match[str]) -> None:
        letter, value = match["field"][1], match["field"][3:-1].strip()
        if letter == "L":
            self.unit = Fraction(value) * 8
            self.lengths.clear()
        elif (letter == "K" and key_of(value)[::2] != (self.score.tonic, self.signature)) or (
            letter == "M" and metre_of(value) != self.score.metre
        ):
            raise NotOneVoiceError(f"{letter} changes")

    def _unknown(self, match: re.Match[str]) -> None:
        if match["unknown"] in "&Z":
            raise NotOneVoiceError(f"sign {match['unknown']!r}")


def _bar_signs(bar: str, ending: str) -> list[Note | str]:
    number = ending[1:2] or (bar[-1] if bar[-1:].isdigit() else "")
    bar = bar.rstrip("123456789")
    signs: list[Note | str] = []
    if bar:
        closes, opens = bar.startswith(":"), bar.endswith(":")
        double = bar.count("|") > 1 or "]" in bar or "[" in bar
        signs.append("::" if closes and opens else ":|" if closes else "|:" if opens else "||" if double else "|")
    if number in ("1", "2"):
        signs.append(f"[{number}")
    return signs


def _tidy(events: list[Note | str]) -> list[Note | str]:
    """No bar sign twice in a row, none at the start but a repeat; a repeat swallows a plain line beside it."""
    strength = {"|": 0, "||": 1, "|:": 2, ":|": 2, "::": 3}
    tidy: list[Note | str] = []
    for event in events:
        last = tidy[-1] if tidy else "||"
        if isinstance(event, str) and isinstance(last, str) and event in strength:
            if not tidy:
                if event == "|:":
                    tidy.append(event)
                continue
            if last in strength:
                if {last, event} == {":|", "|:"}:
                    tidy[-1] = "::"
                elif strength[event] > strength[last]:
                    tidy[-1] = event
                continue
            continue
        tidy.append(event)
    return tidy


def note_token(pitch: int | None, length: Fraction) -> str:
    """A pitch in semitones above C4 and a length in eighth notes, as one token."""
    return _note_token(pitch, length.numerator, length.denominator)


@cache
def _note_token(pitch: int | None, numerator: int, denominator: int) -> str:
    """The token; whole numbers as arguments, since the hash of a fraction takes longer than all else."""
    length = Fraction(numerator, denominator)
    if pitch is None:
        return f"z:{length}"
    octave, step = divmod(pitch, 12)
    name = SPELLING[step]
    if octave >= 1:
        name = name.lower() + "'" * (octave - 1)
    return f"{name}{',' * -octave if octave < 0 else ''}:{length}"


_NOTE_TOKEN = re.compile(r"(?:(z)|([\^_]?)([A-Ga-g])([,']*)):(\d+(?:/\d+)?)")


@cache
def parse_note(token: str) -> tuple[int | None, Fraction] | None:
    """The inverse of :func:`note_token`; None for a token that is no note (a bar, a special token)."""
    match = _NOTE_TOKEN.fullmatch(token)
    if match is None:
        return None
    rest, accidental, letter, octave, length = match.groups()
    if rest:
        return None, Fraction(length)
    pitch = _STEPS[letter.upper()] + _ACCIDENTALS.get(accidental, 0)
    pitch += (12 if letter.islower() else 0) + 12 * (octave.count("'") - octave.count(","))
    return pitch, Fraction(length)


def most_common_length(events: list[Note | str]) -> Fraction:
    """The length most notes have, in eighth notes."""
    lengths = Counter(event.length for event in events if isinstance(event, Note))
    return lengths.most_common(1)[0][0] if lengths else Fraction(1)
