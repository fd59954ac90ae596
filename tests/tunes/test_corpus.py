"""Reading ABC and the corpus. The ABC in here was composed for these tests."""

import random
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import combinations, pairwise

import pytest

from cfg_distill.tunes.abc import NotOneVoiceError, note_token, parse_note, read
from cfg_distill.tunes.bars import bar_validity
from cfg_distill.tunes.corpus import finish, fold, load_corpus, make_tune, parse_tunes, pitches_of, vocabulary
from cfg_distill.tunes.split import COMMON, RUN, SHARED, assign_splits, cluster, shingles

JIG = """1
T:The Tester's Jig
R:jig
M:6/8
L:1/8
K:G
D|GBd gfg|{a}"G"GBd e2d|c>dc (3BcB A-|A3 "D7"^G2=G|
GBd gfg|[GBd]Bd e2d|cAF DEF|G3 G2:|
|:B|dBd gdB|dBd g2a|bag fef|g3 d2:|
"""


def tokens(body: str, key: str = "C", metre: str = "4/4", unit: str = "1/8") -> list[str]:
    score = read(f"1\nT:x\nM:{metre}\nL:{unit}\nK:{key}\n{body}\n")
    return [event if isinstance(event, str) else note_token(event.pitch, event.length) for event in score.events]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("CDEF", "C:1 D:1 E:1 F:1"),
        ("c2 c/2 c/ c3/2 c// c,", "c:2 c:1/2 c:1/2 c:3/2 c:1/4 C:1"),
        ("A>B A<B A>>B", "A:3/2 B:1/2 A:1/2 B:3/2 A:7/4 B:1/4"),
        ("(3ABc d", "A:2/3 B:2/3 c:2/3 d:1"),
        ("d (3ABc ((3ABc) d", "d:1 A:2/3 B:2/3 c:2/3 A:2/3 B:2/3 c:2/3 d:1"),
        ("(3:2:2A2B d", "A:4/3 B:2/3 d:1"),
        ("^F F|F", "^F:1 ^F:1 | F:1"),
        ("A-A B-|B", "A:2 B:1 | B:1"),
        ("^F-|F F", "^F:1 | ^F:1 F:1"),  # a tie carries an accidental over the bar line, for its note alone
        ("^F-||F|F", "^F:1 || ^F:1 | F:1"),
        ("^F-|F-|F F", "^F:1 | ^F:1 | ^F:1 F:1"),
        ("^F-|G F", "^F:1 | G:1 F:1"),
        ("[D^F]-|[DF] F", "^F:1 | ^F:1 F:1"),
        ("A-B", "A:1 B:1"),
        ('{ab}A "Am"B !trill!c ~d .e', "A:1 B:1 c:1 d:1 e:1"),
        ("[CEG]2 [ceg]", "G:2 g:1"),
        ("|:A|B|1c:|2d|]", "|: A:1 | B:1 | [1 c:1 :| [2 d:1 ||"),
        ("A::B:|\n|:c :|", "A:1 :: B:1 :: c:1 :|"),
        ("A z2 x | B % a comment | c", "A:1 z:2 z:1 | B:1"),
        ("c' C, B,", "c':1 C,:1 B,:1"),
        ("A c2 [L:1/16] A c2 [Ac]2", "A:1 c:2 A:1/2 c:1 c:1"),  # the unit changes, and lengths that were read before
        ("A c0 B", "A:1 B:1"),
    ],
)
def test_notation_is_read(body: str, expected: str) -> None:
    assert " ".join(tokens(body)) == expected


def test_key_signatures() -> None:
    assert tokens("FC", "D") == ["^F:1", "^C:1"]
    assert tokens("BE", "Gm") == ["_B:1", "_E:1"]
    assert tokens("FC", "A Mixolydian") == ["^F:1", "^C:1"]
    assert tokens("FC", "Ador") == ["^F:1", "C:1"]


@pytest.mark.parametrize("body", ["C|[K:D]D", "C|\nK:D\nD", "C|[M:3/4]D", "C&D"])
def test_a_tune_that_changes_is_refused(body: str) -> None:
    with pytest.raises(NotOneVoiceError):
        tokens(body)


def test_note_tokens_there_and_back() -> None:
    for pitch in [None, *range(-20, 30)]:
        for length in (Fraction(1), Fraction(2, 3), Fraction(7, 4)):
            assert parse_note(note_token(pitch, length)) == (pitch, length)
    assert parse_note("|") is None
    assert parse_note("<s>") is None


def test_a_tune_has_its_tonic_on_c_and_its_conditions() -> None:
    (tune,) = parse_tunes("X:" + JIG, "mine", "irish")
    assert tune.slots == {"origin": "irish", "rhythm": "jig", "metre": "6/8", "mode": "major"}
    assert tune.tokens[:9] == ("G,:1", "|", "C:1", "E:1", "G:1", "c:1", "B:1", "c:1", "|")
    assert bar_validity(" ".join(tune.tokens), "6/8") == 1.0


def test_transposed_twins_are_one_tune_to_the_reader() -> None:
    """A G tune moved by hand to D (letters a fifth down) gives the same tokens."""
    in_g = "GABc dBGB|cAFA G2B2|GABc dBGB|cAFA G4|GABc dBGB|cAFA G4:|"
    in_d = "DEFG AFDF|GECE D2F2|DEFG AFDF|GECE D4|DEFG AFDF|GECE D4:|"
    found = [make_tune(read(f"1\nT:x\nM:4/4\nL:1/8\nK:{key}\n{body}\n"), "x", "irish")
             for key, body in (("G", in_g), ("D", in_d))]  # fmt: skip
    assert found[0] is not None
    assert found[0] == found[1]


def test_halved_values_are_one_way_of_writing() -> None:
    body = "GABc dBGB|cAFA G2B2|GABc dBGB|cAFA G4|GABc dBGB|cAFA G4:|"
    eighths = make_tune(read(f"1\nT:x\nM:C|\nL:1/8\nK:G\n{body}\n"), "x", "irish")
    sixteenths = make_tune(read(f"1\nT:x\nM:2/4\nL:1/16\nK:G\n{body}\n"), "x", "irish")
    assert eighths is not None
    assert eighths.metre == "4/4"
    assert eighths == sixteenths


def test_a_key_signature_alone_is_not_taken_for_the_tonic() -> None:
    part = "AcAG E2EG|AcAG A2Bd|AcAG EGAB|cABG A4:|"
    tune = make_tune(read(f"1\nT:x\nM:4/4\nL:1/8\nK:G\n{part}\n{part}\n"), "x", "irish")
    assert tune is not None
    assert tune.mode == "dorian"
    assert tune.tokens[0].lower() == "c:1"


@pytest.mark.parametrize(
    "change", [("K:G", "Z: Henrik Norbeck\nK:G"), ("GBd gfg", "GBd gf"), ("R:jig", "V:1\nV:2")], ids=str
)
def test_what_is_not_usable_is_left_out(change: tuple[str, str]) -> None:
    text = JIG.replace(*change)
    if change[0] == "GBd gfg":
        text = text.replace("dBd", "dB").replace("cAF", "cA")
    assert parse_tunes("X:" + text, "mine", "irish") == []


def test_folding_keeps_the_length_of_a_bar() -> None:
    known = {"C:1", "C:3", "C:2", "c:1", "|"}
    assert fold(["C:5", "|"], known) == ("C:3", "C:2", "|")
    assert fold(["c':1"], known) == ("c:1",)
    assert fold(["D:1"], known) is None


def test_near_duplicates_are_found_whatever_key_and_lengths() -> None:
    melody = [0, 2, 4, 7, 5, 4, 2, 9, 7, 4, 0, 2, 5, 4, 2, 0, 7, 9, 12, 11, 7, 5, 4, 0, 2, 7]
    other = [0, 4, 7, 12, 11, 9, 7, 4, 5, 2, 0, 2, 4, 5, 9, 7, 5, 4, 5, 7, 4, 2, 0, 7, 0, 4]
    varied = [pitch + 5 for pitch in melody]
    varied[3] += 2
    assert cluster([melody, other, varied]) == [0, 1, 0]
    plain, transposed = [0, 0, 2, 2, 4, 5, 7, 9, 11, 12, 14], [5, 7, 9, 10, 12, 14, 16, 17, 19]
    assert shingles(plain).tolist() == shingles(transposed).tolist()


def test_families_are_those_of_a_slow_count() -> None:
    """Melodies of a few phrases in any order; some phrases stand in many melodies, some melodies are too short for a run."""
    draw = random.Random(5)
    phrases = [[draw.randrange(24) for _ in range(12)] for _ in range(400)]
    common = [phrases[:4], phrases]
    melodies = [
        [pitch for _ in range(draw.randrange(4)) for pitch in draw.choice(common[draw.random() < 0.7])]
        for _ in range(150)
    ]
    moves = [[b - a for a, b in pairwise(melody) if a != b] for melody in melodies]
    runs = [{tuple(own[start : start + RUN]) for start in range(len(own) - RUN + 1)} for own in moves]
    num_owners = Counter(run for own in runs for run in own)
    rare = [{run for run in own if num_owners[run] <= COMMON} for own in runs]
    family = list(range(len(melodies)))
    for one, other in combinations(range(len(melodies)), 2):
        shared = len(rare[one] & rare[other])
        if shared >= 3 and shared >= SHARED * min(len(rare[one]), len(rare[other])):
            old, new = max(family[one], family[other]), min(family[one], family[other])
            family = [new if each == old else each for each in family]
    assert any(num > COMMON for num in num_owners.values()) and any(not own for own in runs)
    assert 1 < len(set(family)) < len(family)
    assert cluster(melodies) == family


def test_a_phrase_of_too_many_tunes_makes_no_family() -> None:
    draw = random.Random(1)
    phrase, *others = [[draw.randrange(24) for _ in range(13)] for _ in range(COMMON + 2)]
    assert cluster([phrase + other for other in others[:COMMON]]) == [0] * COMMON
    assert cluster([phrase + other for other in others]) == list(range(COMMON + 1))


def test_no_family_is_parted() -> None:
    families = [number // 2 for number in range(400)]
    splits = assign_splits(families)
    assert all(splits[index] == splits[index + 1] for index in range(0, 400, 2))
    assert {name: splits.count(name) for name in ("validation", "test")} == {"validation": 24, "test": 24}
    assert splits == assign_splits(families)


def test_a_small_corpus_is_finished() -> None:
    tunes = parse_tunes("X:" + JIG + "\nX:" + JIG, "mine", "irish")
    (tune,) = finish(tunes, rare=1)
    assert set(vocabulary([tune])) == set(tune.tokens)
    assert vocabulary([tune])[0] == "|"


def test_the_corpus() -> None:
    tunes = load_corpus()
    assert 3600 < len(tunes) < 4000
    assert len({tune.tokens for tune in tunes}) == len(tunes)
    present = {token for tune in tunes for token in tune.tokens}
    assert len({id(token) for tune in tunes for token in tune.tokens}) == len(present), "each token is one string"
    parted: dict[int, set[str]] = {}
    for tune in tunes:
        parted.setdefault(tune.cluster, set()).add(tune.split)
    assert all(len(splits) == 1 for splits in parted.values())
    validity = [bar_validity(" ".join(tune.tokens), tune.metre) for tune in tunes]
    assert sum(validity) / len(validity) > 0.985
    # Independent of the families: no held-out tune has most of its runs of nine notes in one tune of the training set.
    owners: defaultdict[int, list[int]] = defaultdict(list)
    for index, tune in enumerate(tunes):
        if tune.split == "train":
            for run in shingles(pitches_of(tune.tokens)).tolist():
                owners[run].append(index)
    for split in ("validation", "test"):
        chosen = [tune for tune in tunes if tune.split == split]
        assert 0.05 < len(chosen) / len(tunes) < 0.07
        for tune in chosen:
            own = shingles(pitches_of(tune.tokens)).tolist()
            shared = Counter(index for run in own for index in owners[run])
            assert max(shared.values(), default=0) < 0.5 * len(own), tune.name
