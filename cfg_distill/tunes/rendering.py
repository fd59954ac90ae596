"""Music tokens to ABC notation, MIDI and sound.

All three come from one list of played notes, so they agree note for note; any string a model can emit is rendered
(unfinished bars, stray repeats, no note at all). The key is applied here: the tokens have their tonic at C.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import symusic

from cfg_distill.tunes.abc import SPELLING, Note
from cfg_distill.tunes.bars import METRES, Bar, Sign, likely_metre, played, read_bars, repeats
from cfg_distill.tunes.prompts import NULL, Understanding, understand

RATE = 22050
EIGHTHS_A_SECOND = {
    "jig": 5.5, "slip jig": 5.5, "reel": 6.2, "hornpipe": 5.0, "strathspey": 4.4, "march": 4.4, "air": 3.2, NULL: 4.8,
}  # fmt: skip
_DEFAULT_KEY = {"major": "D", "minor": "E", "dorian": "A", "mixolydian": "A"}
_LETTERS = "CDEFGAB"
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_FIFTHS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}
_MODE_FIFTHS = {"major": 0, "mixolydian": -1, "dorian": -2, "minor": -3}
_MODE_STEPS = {
    "major": {0, 2, 4, 5, 7, 9, 11}, "mixolydian": {0, 2, 4, 5, 7, 9, 10},
    "dorian": {0, 2, 3, 5, 7, 9, 10}, "minor": {0, 2, 3, 5, 7, 8, 10},
}  # fmt: skip
_LOWEST, _HIGHEST, _CENTRE = 48, 96, 72
_LONGEST_SECONDS = 180.0


@dataclass(frozen=True)
class Played:
    """A sounding note: start and duration in eighth notes, MIDI pitch, and whether it opens a bar."""

    start: Fraction
    eighths: Fraction
    pitch: int
    accent: bool


@dataclass(frozen=True)
class Setting:
    """How a tune is set down: its bars, metre, mode, tonic ("Bb"), semitones from the tokens' C to it, and speed."""

    bars: list[Bar]
    metre: str
    mode: str
    key: str
    shift: int
    eighths_a_second: float
    rhythm: str

    def pitch(self, note: Note) -> int | None:
        """MIDI number in the key, brought into a playable range by octaves; None for a rest."""
        if note.pitch is None:
            return None
        pitch = 60 + note.pitch + self.shift
        pitch += 12 * max(0, -((pitch - _LOWEST) // 12))
        return pitch - 12 * max(0, -((_HIGHEST - pitch) // 12))

    @property
    def fifths(self) -> int:
        """Sharps (or minus flats) of the key signature."""
        return _fifths(self.key, self.mode)


def setting_of(tokens: str, meaning: Understanding | None = None) -> Setting:
    """Decides metre, mode, key, octave and speed: what the prompt says, else what the tune itself suggests."""
    meaning = meaning or understand(None)
    bars = read_bars(tokens)
    pitches = [note.pitch for bar in bars for note in bar.notes if note.pitch is not None]
    metre, mode, rhythm = (meaning.slots[slot] for slot in ("metre", "mode", "rhythm"))
    if metre not in METRES:
        metre = likely_metre(tokens)
    if mode == NULL:
        # The mode with the fewest foreign notes; major when they tie.
        mode = min(_MODE_STEPS, key=lambda name: sum(pitch % 12 not in _MODE_STEPS[name] for pitch in pitches))
    key = meaning.key or _DEFAULT_KEY[mode]
    tonic = _tonic_step(key)
    if abs(_fifths(key, mode)) > 7:
        # G sharp major has eight sharps: write A flat.
        key = next(name for name in ("C", "Db", "C#", "D", "Eb", "E", "F", "Gb", "F#", "G", "Ab", "G#", "A", "Bb", "B")
                   if _tonic_step(name) == tonic and abs(_fifths(name, mode)) <= 7)  # fmt: skip
    mean = 60 + sum(pitches) / len(pitches) if pitches else _CENTRE
    shift = tonic + 12 * round((_CENTRE - mean - tonic) / 12)
    speed = EIGHTHS_A_SECOND[rhythm] * meaning.tempo
    return Setting(bars, metre, mode, key, shift, speed, rhythm)


def _tonic_step(key: str) -> int:
    return (_STEPS[key[0]] + {"b": -1, "#": 1}.get(key[1:], 0)) % 12


def _fifths(key: str, mode: str) -> int:
    return _FIFTHS[key[0]] + 7 * {"b": -1, "#": 1}.get(key[1:], 0) + _MODE_FIFTHS[mode]


def played_notes(setting: Setting) -> list[Played]:
    """The sounding notes in order, repeats written out, at most ``_LONGEST_SECONDS`` of them."""
    notes: list[Played] = []
    time = Fraction(0)
    for bar in played(setting.bars):
        for index, note in enumerate(bar.notes):
            if float(time + note.length) / setting.eighths_a_second > _LONGEST_SECONDS:
                return notes
            pitch = setting.pitch(note)
            if pitch is not None:
                notes.append(Played(time, note.length, pitch, index == 0))
            time += note.length
    return notes


def to_abc(setting: Setting, title: str = "") -> str:
    """ABC text with well-formed repeats; four bars per line."""
    metre_unit = "3/8" if setting.metre in ("6/8", "9/8") else "1/4"
    beats = setting.eighths_a_second * 60 / (3 if metre_unit == "3/8" else 2)
    head = ["X:1", "T:" + (" ".join(title.split()) or "Tune")]
    head += [f"R:{setting.rhythm}"] if setting.rhythm != NULL else []
    head += [f"M:{setting.metre}", "L:1/8", f"Q:{metre_unit}={round(beats)}", f"K:{setting.key} {setting.mode}"]
    opens, closes, endings = set[int](), set[int](), dict[int, str]()
    bars, found = setting.bars, list(repeats(setting.bars))
    if any(repeat.ending < repeat.stop and other.start == repeat.stop for repeat in found for other in found):
        # A second ending that is itself repeated: readers of ABC differ, so it is written out.
        bars, found = [Bar(Sign(), bar.notes, Sign()) for bar in played(bars)], []
    inside = set[int]()
    for repeat in found:
        # A double bar inside a repeat would end its first ending for some readers.
        inside.update(range(repeat.start, repeat.stop))
        opens.add(repeat.start)
        closes.add(repeat.stop - 1)
        if repeat.ending < repeat.stop:
            endings[repeat.ending], endings[repeat.stop] = "[1 ", "[2 "
    lines, line = [], ""
    for index, bar in enumerate(bars):
        line += ("|: " if index in opens else "") + endings.get(index, "") + _bar_text(setting, bar)
        is_last = index == len(bars) - 1
        is_edge = bar.right is not None and bar.right.edge and index not in inside
        line += " :| " if index in closes else " |] " if is_last else " || " if is_edge else " | "
        if (index + 1) % 4 == 0 or is_last:
            lines.append(line.strip())
            line = ""
    return "\n".join([*head, *(lines or ["z |]"])]) + "\n"


def _bar_text(setting: Setting, bar: Bar) -> str:
    """The notes of a bar. Accidentals are written whenever a letter was altered before in the bar, in any octave: so
    both readings of ABC (an accidental holds for its octave, or for all) give the same notes."""
    order = "FCGDAEB" if setting.fifths > 0 else "BEADGCF"
    signature = dict.fromkeys(order[: abs(setting.fifths)], 1 if setting.fifths > 0 else -1)
    altered: set[str] = set()
    written: list[tuple[str, Fraction]] = []
    for note in bar.notes:
        pitch = setting.pitch(note)
        if pitch is None or note.pitch is None:
            written.append(("z", note.length))
            continue
        degree = _LETTERS.index(SPELLING[note.pitch % 12][-1])
        letter = _LETTERS[(degree + _LETTERS.index(setting.key[0])) % 7]
        alteration = (pitch - _STEPS[letter] + 6) % 12 - 6
        octave = (pitch - alteration) // 12 - 5
        sign = ""
        if alteration != signature.get(letter, 0) or letter in altered:
            sign = "^" * alteration or "_" * -alteration or "="
            altered.add(letter)
        name = letter.lower() + "'" * (octave - 1) if octave >= 1 else letter + "," * -octave
        written.append((sign + name, note.length))
    pieces = []
    for tuplet, group in groupby(written, key=lambda piece: _odd_part(piece[1].denominator)):
        notes = list(group)
        if tuplet > 1:
            time = 1 << (tuplet.bit_length() - 1)
            pieces.append(f"({tuplet}:{time}:{len(notes)}")
            notes = [(name, length * tuplet / time) for name, length in notes]
        pieces += [name + ("" if length == 1 else str(length)) for name, length in notes]
    return " ".join(pieces)


def _odd_part(number: int) -> int:
    return number // (number & -number)


def to_midi(setting: Setting) -> Any:
    """A ``symusic.Score`` of one track, 480 ticks per quarter, repeats written out."""
    ticks = 480
    # symusic's classes are made at run time; a type checker knows none of their attributes.
    score: Any = symusic.Score(ticks)
    score.tempos.append(symusic.Tempo(0, qpm=setting.eighths_a_second * 30))
    numerator, denominator = setting.metre.split("/")
    score.time_signatures.append(symusic.TimeSignature(0, int(numerator), int(denominator)))
    track: Any = symusic.Track("tune", program=73)
    for note in played_notes(setting):
        start, stop = round(note.start * ticks / 2), round((note.start + note.eighths) * ticks / 2)
        track.notes.append(symusic.Note(start, max(1, stop - start), note.pitch, 100 if note.accent else 84))
    score.tracks.append(track)
    return score


def synthesise(notes: Sequence[Played], eighths_a_second: float, rate: int = RATE) -> np.ndarray:
    """Additive synthesis: six harmonics that fade the faster the higher they are, under an attack-decay-release
    envelope; the first note of a bar is a little louder.

    Returns:
        float32 samples [length], peak 0.9 (all zero when there is no note).
    """
    release = 0.06
    end = max((float(note.start + note.eighths) for note in notes), default=1.0) / eighths_a_second
    sound = np.zeros(int((end + release + 0.1) * rate), dtype=np.float32)
    strengths = np.array([1.0, 0.5, 0.3, 0.14, 0.08, 0.04], dtype=np.float32)
    for note in notes:
        held = float(note.eighths) / eighths_a_second * 0.94
        time = np.arange(int((held + release) * rate), dtype=np.float32) / rate
        envelope = np.minimum(time / 0.012, 1.0) * (0.35 + 0.65 * np.exp(-2.5 * time))
        envelope *= np.clip((held + release - time) / release, 0.0, 1.0)
        frequency = 440.0 * 2.0 ** ((note.pitch - 69) / 12)
        tone = np.zeros_like(time)
        for number, strength in enumerate(strengths, start=1):
            if number * frequency < rate / 2:
                fade = np.exp(-1.2 * (number - 1) * time)
                tone += strength * fade * np.sin((2 * np.pi * number * frequency) * time)
        start = int(float(note.start) / eighths_a_second * rate)
        sound[start : start + len(tone)] += (1.25 if note.accent else 1.0) * envelope * tone
    peak = float(np.abs(sound).max(initial=0.0))
    return sound * np.float32(0.9 / peak) if peak > 0 else sound


def audio(tokens: str, prompt: str | None = None, rate: int = RATE) -> tuple[np.ndarray, int]:
    """The sound of a tune: float32 samples [length] within -1 to 1, and their rate."""
    setting = setting_of(tokens, understand(prompt))
    return synthesise(played_notes(setting), setting.eighths_a_second, rate), rate


def render(tokens: str, folder: str | Path, stem: str, prompt: str | None = None) -> dict[str, Path]:
    """Writes ``stem``.abc, .mid and .wav into a folder.

    Args:
        tokens: music tokens separated by spaces.
        folder: made if it does not exist. Files of the same name are replaced: who calls decides about overwriting.
        stem: file name without suffix.
        prompt: gives key, metre, speed and the title; None: taken from the tune itself.

    Returns:
        The three paths, by "abc", "midi", "wav".
    """
    setting = setting_of(tokens, understand(prompt))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"abc": folder / f"{stem}.abc", "midi": folder / f"{stem}.mid", "wav": folder / f"{stem}.wav"}
    title = (prompt or "").strip()
    paths["abc"].write_text(to_abc(setting, title[:1].upper() + title[1:]), encoding="utf-8")
    to_midi(setting).dump_midi(paths["midi"])
    sound = synthesise(played_notes(setting), setting.eighths_a_second)
    with wave.open(str(paths["wav"]), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return paths
