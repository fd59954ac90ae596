"""Rendering: notation, MIDI and sound say the same, read back by abc2midi, symusic, wave and a spectrum."""

import random
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import symusic
from scipy.signal import periodogram

from cfg_distill.tunes.abc import BARS
from cfg_distill.tunes.prompts import SLOTS, Understanding
from cfg_distill.tunes.rendering import (
    EIGHTHS_A_SECOND,
    Played,
    audio,
    played_notes,
    render,
    setting_of,
    synthesise,
    to_abc,
    to_midi,
)

JIG = "G:1 | c:1 e:1 g:1 _b:3/2 ^f:1/2 d:1 | c:3 z:2 :| e:1 | f:2/3 g:2/3 a:2/3 d:2 B,:1 z:1 | [1 c:6 :| [2 C:6 ||"


def meaning(mode: str = "major", key: str = "D", rhythm: str = "jig", metre: str = "6/8") -> Understanding:
    return Understanding(dict(zip(SLOTS, ("irish", rhythm, metre, mode), strict=True)), key)


def sounding(score: symusic.Score) -> list[tuple[int, float]]:
    """Pitch and start in eighth notes, as symusic reads them."""
    return [(note.pitch, note.start / score.ticks_per_quarter * 2) for track in score.tracks for note in track.notes]


def random_tunes() -> list[str]:
    """Strings as an untrained model emits them."""
    draw = random.Random(3)
    notes = ["C:1", "D:1/2", "_E:3/2", "^F:1", "G:2/3", "_A:1/3", "_B,:1/4", "c:8", "^c:1", "d:3/4", "z:2", "b:6"]
    return [" ".join(draw.choices([*notes * 2, *BARS], k=draw.randint(0, 50))) for _ in range(60)]


def test_no_signature_has_more_than_seven_signs() -> None:
    for mode in ("major", "minor", "dorian", "mixolydian"):
        for letter in "ABCDEFG":
            for sign in ("", "#", "b"):
                setting = setting_of(JIG, meaning(mode, letter + sign))
                assert abs(setting.fifths) <= 7, (mode, letter + sign, setting.key)
    assert setting_of(JIG, meaning("minor", "Db")).key == "C#"


@pytest.mark.parametrize("key", ["D", "Bb", "F#", "A", "C#", "Eb"])
@pytest.mark.parametrize("mode", ["major", "minor", "dorian", "mixolydian"])
def test_abc_read_by_abc2midi_is_the_played_tune(key: str, mode: str) -> None:
    setting = setting_of(JIG, meaning(mode, key))
    reread = sounding(symusic.Score.from_abc(to_abc(setting)))
    expected = played_notes(setting)
    assert [pitch for pitch, _ in reread] == [note.pitch for note in expected]
    # abc2midi starts every note a few ticks late.
    np.testing.assert_allclose([start for _, start in reread], [float(note.start) for note in expected], atol=0.05)


def test_any_string_is_rendered_alike() -> None:
    draw = random.Random(5)
    for tune in random_tunes():
        setting = setting_of(tune, meaning(draw.choice(["major", "minor"]), draw.choice("ABCDEFG"), metre="any"))
        reread = sounding(symusic.Score.from_abc(to_abc(setting)))
        assert [pitch for pitch, _ in reread] == [note.pitch for note in played_notes(setting)], tune


def test_repeats_and_endings_are_written_out() -> None:
    setting = setting_of("|: C:1 D:1 | [1 E:2 :| [2 F:2 |: G:2 :| A:2", meaning(key="C"))
    pitches = [note.pitch - setting.shift - 60 for note in played_notes(setting)]
    assert pitches == [0, 2, 4, 0, 2, 5, 7, 7, 9]


def test_midi_holds_as_many_notes_as_tokens(tmp_path: Path) -> None:
    tune = "C:1 E:1 z:1 G:2 | c:1/2 c:1/2"
    paths = render(tune, tmp_path, "tune", "a jig in G major")
    score = symusic.Score(paths["midi"])
    assert len(score.tracks[0].notes) == tune.count(":") - tune.count("z")
    assert [note.pitch % 12 for note in score.tracks[0].notes] == [7, 11, 2, 7, 7]  # G B D G G
    ticks = score.ticks_per_quarter
    assert [note.duration for note in score.tracks[0].notes] == [ticks / 2, ticks / 2, ticks, ticks / 4, ticks / 4]
    assert score.time_signatures[0].numerator == 6


def test_tonic_becomes_the_key_and_the_tune_lies_in_range() -> None:
    for key, step in (("C", 0), ("D", 2), ("Eb", 3), ("F#", 6), ("A", 9)):
        for octave in ("C,,:1", "C:1", "c'':1"):
            (note,) = played_notes(setting_of(octave, meaning(key=key)))
            assert note.pitch % 12 == step
            assert 48 <= note.pitch <= 96


def test_each_note_sounds_at_its_pitch() -> None:
    pitches = [62, 69, 76, 81]
    notes = [Played(Fraction(2 * place), Fraction(2), pitch, place == 0) for place, pitch in enumerate(pitches)]
    sound = synthesise(notes, eighths_a_second=4.0, rate=22050)
    for place, pitch in enumerate(pitches):
        window = sound[int((0.5 * place + 0.05) * 22050) : int((0.5 * place + 0.45) * 22050)]
        frequencies, power = periodogram(window, 22050, nfft=1 << 16)
        assert frequencies[power.argmax()] == pytest.approx(440 * 2 ** ((pitch - 69) / 12), abs=1.0)


def test_sound_lasts_as_long_as_the_tune_and_does_not_clip(tmp_path: Path) -> None:
    paths = render(JIG, tmp_path, "jig", "an Irish jig")
    setting = setting_of(JIG, meaning())
    last = played_notes(setting)[-1]
    seconds = float(last.start + last.eighths) / EIGHTHS_A_SECOND["jig"]
    with wave.open(str(paths["wav"])) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(seconds, abs=0.3)
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    assert 0.85 < np.abs(samples.astype(int)).max() / 32768 < 0.95
    assert abs(samples.mean()) < 50
    assert sounding(to_midi(setting))[-1][1] == pytest.approx(float(last.start), abs=0.01)


@pytest.mark.parametrize("tune", ["", "| :| ::", "z:2 z:2", "hello c:0 c:1/0 <s>", "[1 [2 |:"])
def test_tunes_without_a_note_are_silent(tune: str, tmp_path: Path) -> None:
    paths = render(tune, tmp_path, "silence", None)
    assert all(path.stat().st_size > 0 for path in paths.values())
    waveform, rate = audio(tune)
    assert rate == 22050
    assert not waveform.any()


def test_mode_is_read_from_the_notes_when_it_was_not_asked() -> None:
    assert setting_of("C:1 _E:1 G:1 _A:1 _B:1").mode == "minor"
    assert setting_of("C:1 E:1 G:1 B:1").mode == "major"
    assert setting_of("C:1 E:1 G:1 _B:1").mode == "mixolydian"
    assert setting_of("C:1 _E:1 A:1 _B:1").mode == "dorian"


def test_title_cannot_break_the_header() -> None:
    text = to_abc(setting_of("C:1", meaning()), "a jig\nK:C\nX:2")
    assert text.splitlines()[1] == "T:a jig K:C X:2"
