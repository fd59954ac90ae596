"""Rewritten copies of tunes: what changes, and what stays."""

from random import Random

import pytest

from cfg_distill.tunes.abc import BARS
from cfg_distill.tunes.bars import bar_validity, read_note
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.rewriting import between_rests, dotted, rewritten_bars, transposed, with_rests


@pytest.fixture(scope="module")
def tunes() -> list[str]:
    return [" ".join(tune.tokens[:96]) for tune in tunes_of("test")[:20]]


def heights(tune: str) -> list[int | None]:
    return [note.pitch for token in tune.split() if (note := read_note(token))]


def test_transposed_moves_every_pitch_and_comes_back(tunes: list[str]) -> None:
    for tune in tunes:
        moved = transposed(tune, 7)
        assert heights(moved) == [None if pitch is None else pitch + 7 for pitch in heights(tune)]
        assert transposed(moved, -7) == tune


def test_bars_are_rewritten_and_notes_stay(tunes: list[str]) -> None:
    for tune in tunes:
        notes = [token for token in tune.split() if token not in BARS]
        for style in ("none", "double", "plain", "everywhere"):
            again = rewritten_bars(tune, style).split()
            assert [token for token in again if token not in BARS] == notes
        assert rewritten_bars(tune, "none") == " ".join(notes)
        assert rewritten_bars(tune, "everywhere").split()[1::2] == ["|"] * len(notes)


def test_notes_become_rests_of_the_same_length(tunes: list[str]) -> None:
    for tune in tunes:
        silent = with_rests(tune, 0.4, Random(3))
        pairs = list(zip(tune.split(), silent.split(), strict=True))
        changed = [(one, other) for one, other in pairs if one != other]
        assert len(changed) == round(0.4 * sum(pitch is not None for pitch in heights(tune)))
        assert all(other == "z:" + one.split(":")[1] for one, other in changed)
        assert bar_validity(silent, "6/8") == bar_validity(tune, "6/8")
        assert with_rests(tune, 0.4) == with_rests(tune, 0.4) != with_rests(tune, 0.4, Random(1))


def test_rests_between_notes_leave_the_notes(tunes: list[str]) -> None:
    for tune in tunes:
        words = between_rests(tune, 1.0).split()
        added = [
            place
            for place in range(1, len(words))
            if words[place] == "z:1" and words[place - 1][0] in "ABCDEFGabcdefg^_"
        ]
        assert len(added) == sum(pitch is not None for pitch in heights(tune))
        assert [word for place, word in enumerate(words) if place not in added] == tune.split()


def test_dotted_moves_time_within_pairs_of_notes_alone(tunes: list[str]) -> None:
    for tune in tunes:
        other = dotted(tune)
        assert heights(other) == heights(tune)
        assert [token for token in other.split() if token in BARS] == [token for token in tune.split() if token in BARS]
        assert bar_validity(other, "6/8") == bar_validity(tune, "6/8")
        assert other != tune
    assert dotted(dotted("C:1 D:1 E:3 F:1 G:2 | G:2 z:1 A:1")) == "C:1 D:1 E:3 F:1 G:2 | G:2 z:1 A:1"
