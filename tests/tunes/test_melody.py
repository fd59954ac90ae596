"""Melodic distance against a plain dynamic programme; what it does not hear; and its speed."""

import math
import random
from fractions import Fraction
from itertools import combinations

import pytest

from cfg_distill.tunes.canonical import is_degenerate, rest_share, runs_of, sounding_notes
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.melody import MelodicDiversity, common_melody, common_subsequence, melodic_distance
from cfg_distill.tunes.rewriting import (
    between_rests,
    dotted,
    in_values,
    rewritten_bars,
    transposed,
    upside_down,
    with_rests,
)


def plain_common_subsequence(first: list, second: list) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first, start=1):
        for j, other in enumerate(second, start=1):
            table[i][j] = table[i - 1][j - 1] + 1 if one == other else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


@pytest.fixture(scope="module")
def real() -> list[str]:
    return [" ".join(tune.tokens[:96]) for tune in tunes_of("test")]


def test_common_subsequence_is_that_of_the_table() -> None:
    draw = random.Random(0)
    for _ in range(300):
        first, second = (draw.choices(range(draw.randint(1, 6)), k=draw.randint(0, 90)) for _ in range(2))
        assert common_subsequence(first, second) == plain_common_subsequence(first, second)


def test_common_melody_tries_every_transposition() -> None:
    draw = random.Random(1)
    lengths = [Fraction(1), Fraction(1, 2), Fraction(3, 2)]
    for _ in range(60):
        first, second = (
            [(draw.randint(-5, 8), draw.choice(lengths)) for _ in range(draw.randint(0, 25))] for _ in range(2)
        )
        expected = max(
            plain_common_subsequence(first, [(pitch + shift, length) for pitch, length in second])
            for shift in range(-14, 15)
        )
        assert common_melody(first, second) == expected
        assert common_melody(second, first) == expected


def test_a_copy_is_at_zero_however_it_is_written(real: list[str]) -> None:
    for tune in real[:40]:
        for semitones in (-5, 1, 7, 12):
            assert melodic_distance(tune, transposed(tune, semitones)) == 0
        for style in ("none", "double", "plain", "everywhere"):
            assert melodic_distance(tune, rewritten_bars(tune, style)) == 0
        for factor in (Fraction(1, 4), Fraction(1, 2), Fraction(2), Fraction(4)):
            assert melodic_distance(tune, in_values(tune, factor)) == 0
        assert melodic_distance(tune, with_rests(tune, 0.4)) == 0
        assert melodic_distance(tune, between_rests(transposed(tune, 3), 0.5)) == 0


def test_real_tunes_are_far_apart_and_halves_of_a_tune_nearer(real: list[str]) -> None:
    draw = random.Random(0)
    different = [melodic_distance(*draw.sample(real, 2)) for _ in range(200)]
    assert 0.65 < sum(different) / 200 < 0.75
    assert min(different) > 0.3
    whole = [tune.tokens for tune in tunes_of("test")]
    halves = [melodic_distance(" ".join(t[: len(t) // 2]), " ".join(t[len(t) // 2 :])) for t in whole]
    assert sum(halves) / len(halves) < 0.58


def test_group_is_the_mean_of_its_pairs_and_degenerate_tunes_earn_nothing(real: list[str]) -> None:
    group = real[:4]
    pairs = [melodic_distance(one, other) for one, other in combinations(group, 2)]
    metric = MelodicDiversity()
    assert metric.score_group(group) == pytest.approx(sum(pairs) / 6)
    for nothing in (
        "",
        "z:1 | z:2",
        "C:1 D:1 E:1",
        "c:1 d:1 e:1 f:1 g:1 a:1 b:1 c':1 | " * 12,
        with_rests(real[5], 0.7),
    ):
        assert metric.score_group([*group[:3], nothing]) == pytest.approx((pairs[0] + pairs[1] + pairs[3]) / 6)
    assert metric.score_group(["", "", ""]) == 0
    assert math.isnan(metric.score_group(group[:1]))
    assert metric.axis == "diversity"


@pytest.mark.slow
def test_no_real_tune_is_degenerate() -> None:
    tunes = [tune.tokens for split in ("train", "validation", "test") for tune in tunes_of(split)]
    assert not any(is_degenerate(" ".join(tokens[:length])) for tokens in tunes for length in (48, 96, 400))


def test_onsets_count_rests_and_places_count_bar_signs() -> None:
    notes = sounding_notes("z:2 C:1 | z:1/2 D:1/2 D:1/3 E:1 :| z:4")
    assert [(n.pitch, n.length, n.onset, n.place) for n in notes] == [
        (0, 1, 2, 1),
        (2, Fraction(1, 2), Fraction(7, 2), 4),
        (2, Fraction(1, 3), 4, 5),
        (4, 1, Fraction(13, 3), 6),
    ]


def test_runs_are_counted_once_in_any_key() -> None:
    notes = sounding_notes("C:1 D:1 E:1 F:2 | G:1 A:1 B:1 c:2")
    # Five runs; the last says what the first said, a fifth higher.
    assert len(runs_of(notes)) == 4
    assert runs_of(sounding_notes("C:1 D:1 E:1")) == set()
    assert rest_share("C:1 z:3") == 0.75
    assert rest_share("") == 1.0


def test_pitch_and_rhythm_alone_tell_where_a_difference_comes_from(real: list[str]) -> None:
    """One melody in another rhythm, and another melody in the same rhythm: each is far under one half of the notes alone."""
    for tune in real[:10]:
        uneven, turned = dotted(tune), upside_down(tune)
        assert melodic_distance(tune, uneven, "pitch") == 0 and melodic_distance(tune, turned, "rhythm") == 0
        assert melodic_distance(tune, uneven) > 0.3 and melodic_distance(tune, uneven, "rhythm") > 0.3
        assert melodic_distance(tune, turned, "pitch") > 0.3
    metric = MelodicDiversity("pitch")
    assert metric.score_group([real[0], dotted(real[0])]) == 0
