"""How far a tune is from rewritten copies of itself and from other tunes, on the test tunes: the table of docs/tunes.md.

python tests/tune_distances.py [folder of an encoder]
"""

import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from random import Random

from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.tunes.abc import note_token
from cfg_distill.tunes.bars import Note, read_note
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.encoder import retrieval
from cfg_distill.tunes.melody import melodic_distance
from cfg_distill.tunes.pairs import two_parts
from cfg_distill.tunes.rewriting import (
    between_rests,
    dotted,
    in_values,
    rewritten_bars,
    transposed,
    upside_down,
    with_rests,
)


def each_note(change: Callable[[Note, Random], list[str]]) -> Callable[[str], str]:
    """A tune with each note that sounds replaced by others, drawn from the same seed for every tune."""

    def rewrite(tune: str) -> str:
        draw, words = Random(0), list[str]()
        for token in tune.split():
            note = read_note(token)
            words += [token] if note is None or note.pitch is None else change(note, draw)
        return " ".join(words)

    return rewrite


def ornamented(note: Note, draw: Random) -> list[str]:
    half = note.length / 2
    above = [note_token(note.pitch + 2, half), note_token(note.pitch, half)]  # type: ignore[operator]
    return above if draw.random() < 0.3 else [note_token(note.pitch, note.length)]


REWRITTEN: dict[str, Callable[[str], str]] = {
    "the same tune": lambda tune: tune,
    **{f"transposed by {by:+}": (lambda tune, by=by: transposed(tune, by)) for by in (-5, 2, 5, 7, 12)},
    **{f"bar signs: {style}": (lambda tune, style=style: rewritten_bars(tune, style)) for style in ("none", "double")},  # type: ignore[misc]
    **{
        f"{share:.0%} of the notes made rests": (lambda tune, share=share: with_rests(tune, share, Random(0)))  # type: ignore[misc]
        for share in (0.05, 0.1, 0.2, 0.4)
    },
    "rests behind 10% of the notes": lambda tune: between_rests(tune, 0.1, Random(0)),
    "every note twice as long": lambda tune: in_values(tune, Fraction(2)),
    "every note half as long": lambda tune: in_values(tune, Fraction(1, 2)),
    "other rhythms in the same bars": dotted,
    "turned upside down, in the same rhythm": upside_down,
    "every note of a random length": each_note(
        lambda note, draw: [note_token(note.pitch, draw.choice([Fraction(1, 2), Fraction(1), Fraction(2)]))]
    ),
    "a short note above before 30% of the notes": each_note(ornamented),
    "30% of the notes an octave up": each_note(
        lambda note, draw: [note_token(note.pitch + 12 * (draw.random() < 0.3), note.length)]  # type: ignore[operator]
    ),
    "10% of the notes a step up": each_note(
        lambda note, draw: [note_token(note.pitch + 2 * (draw.random() < 0.1), note.length)]  # type: ignore[operator]
    ),
    "the first 64 tokens of 96": lambda tune: " ".join(tune.split()[:64]),
    "the first 32 tokens of 96": lambda tune: " ".join(tune.split()[:32]),
}
Distances = Callable[[list[str], list[str]], list[float]]


def under(embedder: Embedder) -> Distances:
    """Cosine distances of pairs under an embedder."""

    def distances(first: list[str], second: list[str]) -> list[float]:
        cosine_N: Tensor = (embedder.embed(first) * embedder.embed(second)).sum(-1)
        return (1 - cosine_N).tolist()

    return distances


def melodic(first: list[str], second: list[str]) -> list[float]:
    return [melodic_distance(one, other) for one, other in zip(first, second, strict=True)]


def table(distances: Distances) -> dict[str, float]:
    """Mean distance by row, over the first 96 tokens of the test tunes."""
    whole = [tune.tokens for tune in tunes_of("test")]
    tunes = [" ".join(tokens[:96]) for tokens in whole]
    halves = [[" ".join(t[: len(t) // 2]) for t in whole], [" ".join(t[len(t) // 2 :]) for t in whole]]
    pairs = {name: (tunes, [rewrite(tune) for tune in tunes]) for name, rewrite in REWRITTEN.items()}
    pairs["two halves of one tune"] = (halves[0], halves[1])
    # Tunes of one family are near-duplicates: a shift by a fixed number of places pairs each with strangers.
    pairs["two different tunes"] = (
        tunes * 5,
        [other for by in (3, 17, 40, 71, 101) for other in tunes[by:] + tunes[:by]],
    )
    return {name: sum(found) / len(found) for name, (one, other) in pairs.items() if (found := distances(one, other))}


def other_part_found(embedder: Embedder, seed: int = 7, shortest: int = 24, longest: int = 96) -> float:
    """Share of parts of test tunes whose nearest part of the other side is of the same tune."""
    draw = Random(seed)
    tunes = [tune.tokens for tune in tunes_of("test") if len(tune.tokens) >= 2 * shortest]
    parts = [[" ".join(part) for part in two_parts(tokens, draw, shortest, longest)] for tokens in tunes]
    return retrieval(*(embedder.embed([part[side] for part in parts]) for side in (0, 1))).item()


def without_last_notes(distances: Distances) -> list[float]:
    """The farthest of each test tune and itself without its last one, two or three notes.

    The networks read times in units of the median length. Where it stands between two lengths, a note decides which it is.
    """
    farthest = []
    for tune in tunes_of("test"):
        tokens = tune.tokens[:96]
        notes = [place for place, token in enumerate(tokens) if read_note(token) is not None]
        cut = [" ".join(tokens[: notes[-number]]) for number in (1, 2, 3)]
        farthest.append(max(distances([" ".join(tokens)] * 3, cut)))
    return farthest


def rows(path: str) -> Iterator[str]:
    embedder = Tunes(path).load()
    learnt, plain = table(under(embedder)), table(melodic)
    for name in learnt:
        yield f"| {name} | {learnt[name]:.3f} | {plain[name]:.3f} |"
    for name, distances in (("learnt", under(embedder)), ("melodic", melodic)):
        farthest = sorted(without_last_notes(distances))
        far = sum(each > 0.2 for each in farthest)
        mean = sum(farthest) / len(farthest)
        yield f"without its last 1 to 3 notes, {name}: mean {mean:.3f}, most {farthest[-1]:.3f}, above 0.2: {far}"
    yield f"the other part of the right test tune comes first: {other_part_found(embedder):.3f}"


if __name__ == "__main__":
    print(*rows(sys.argv[1] if len(sys.argv) > 1 else "tunes:encoder"), sep="\n")
