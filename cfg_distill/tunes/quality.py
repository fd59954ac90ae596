"""Is it music as in the books? Measures of a tune that real tunes keep within bounds, and the factors made of them.

Every measure M has a bound B, beyond which 5 % of the real tunes lie, and a worst value W. Its factor is

    f = min(1, |M - W| / |B - W|)

So it is 1 for nearly all real tunes, and falls in a straight line to 0 at the worst value. Only what lies outside the
range of real tunes costs anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfg_distill.embedders.tokens import grams, repeated_grams
from cfg_distill.tunes.bars import read_bars, read_note

WORST = {"real": 0.0, "length": 0.0, "repetition": 1.0, "copied": 1.0}
"""The factors of the quality, with the worst value of each measure. Where it is 0, more is better."""
FACTORS = tuple(WORST)
OUTSIDE = 0.05
"""Share of the real tunes that lie beyond a bound."""
RUN = 14
"""Notes in a row that a tune shares with a training tune, to count as copied. Of the notes of a real tune from outside the
training set 4 % lie in such a run: folk tunes share phrases. With 10 notes, 27 % do."""
FILE = "bounds.json"


def measured(tunes: Sequence[str], real_N: Tensor, known: Container[tuple[str, ...]]) -> dict[str, Tensor]:
    """The measures of N tunes by the name of their factor, ``[N]`` each.

    - ``real``: the judge's probability that a tune is one of the books, and not a degenerate one;
    - ``length``: tokens;
    - ``repetition``, ``copied``: see the functions below.

    Args:
        tunes: decoded tunes.
        real_N: the first measure, which is the judge's.
        known: the runs of notes of the training tunes, as :func:`melody_runs` writes them.
    """
    of_text: dict[str, Callable[[str], float]] = {
        "length": lambda tune: len(tune.split()),
        "repetition": repetition,
        "copied": lambda tune: copied_share(tune, known),
    }
    values = {name: torch.tensor([float(measure(tune)) for tune in tunes]) for name, measure in of_text.items()}
    return {"real": real_N.float().cpu(), **values}


def bounds_of(measures: Mapping[str, Tensor]) -> dict[str, float]:
    """The bound of each measure, from real tunes: :data:`OUTSIDE` of them are worse."""
    return {
        name: round(float(values_N.quantile(1 - OUTSIDE if WORST[name] else OUTSIDE)), 4)
        for name, values_N in measures.items()
    }


def factors(measures: Mapping[str, Tensor], bounds: Mapping[str, float]) -> dict[str, Tensor]:
    """The factors, in [0, 1], ``[N]`` each; see the formula at the top of this file.

    Example:
        >>> factors({"repetition": torch.tensor([0.3, 0.75, 1.0])}, {"repetition": 0.5})
        {'repetition': tensor([1.0000, 0.5000, 0.0000])}
    """
    return {
        name: ((values_N - WORST[name]).abs() / abs(bounds[name] - WORST[name])).clamp(max=1)
        for name, values_N in measures.items()
    }


def save_bounds(bounds: Mapping[str, float], folder: str | Path) -> None:
    """Write the bounds into the judge's folder."""
    (Path(folder) / FILE).write_text(json.dumps(dict(bounds), indent=1) + "\n", encoding="utf-8")


def load_bounds(folder: str | Path) -> dict[str, float]:
    """The bounds in the judge's folder."""
    return json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))


def repetition(tune: str, n: int = 4) -> float:
    """Share of the n-grams of notes that stood before in the tune, bar signs left out; 0 for fewer than n notes.

    Example:
        >>> repetition("C:1 D:1 | C:1 D:1 | C:1 D:1 |", n=2)  # CD, DC, CD, DC, CD: three of five stood before
        0.6
    """
    return repeated_grams([token for token in tune.split() if read_note(token) is not None], n)


def repeated_bars(tune: str) -> float:
    """Share of the bars, the first left out, that are equal to the bar before; 0 for fewer than two bars.

    Example:
        >>> repeated_bars("C:4 | C:4 | D:4 |")
        0.5
    """
    bars = [bar.content for bar in read_bars(tune)]
    return sum(one == other for one, other in pairwise(bars)) / (len(bars) - 1) if bars[1:] else 0.0


def melody_runs(tune: str, n: int = RUN) -> list[tuple[str, ...]]:
    """Every run of n notes in a row, as n - 1 pairs of interval and length over the length of the first: the same in every key,
    in other note values, with other bar signs, and with rests between the notes.

    Example:
        >>> melody_runs("C:1 D:2 | z:1 G:1 A:1", n=3) == melody_runs("D:2 E:4 A:2 B:2", n=3)
        True
        >>> melody_runs("C:1 D:2 | z:1 G:1 A:1", n=3)
        [('2,1', '5,2'), ('5,1', '2,1/2')]
    """
    notes = [
        (note.pitch, token.partition(":")[2])
        for token in tune.split()
        if (note := read_note(token)) is not None and note.pitch is not None
    ]
    steps = [(after - before, length) for (before, length), (after, _) in pairwise(notes)]
    return [tuple(f"{interval},{_over(length, run[0][1])}" for interval, length in run) for run in grams(steps, n - 1)]


@cache
def _over(length: str, unit: str) -> str:
    return str(Fraction(length) / Fraction(unit))


def copied_share(tune: str, known: Container[tuple[str, ...]], n: int = RUN) -> float:
    """Share of the notes of a tune that lie in a run of n notes that is ``known``; 0 for fewer than n notes."""
    runs = melody_runs(tune, n)
    inside = [False] * (len(runs) + n - 1)
    for start, run in enumerate(runs):
        if run in known:
            inside[start : start + n] = [True] * n
    return sum(inside) / len(inside)


class KnownRuns(Container[tuple[str, ...]]):
    """A set of runs that can be asked for one. It keeps a hash of 8 bytes per run, where the words of a run take 200 bytes and
    more. Two runs share a hash of 64 bits so rarely that no share ever shows it.

    Args:
        runs: any number of times each.
    """

    def __init__(self, runs: Iterable[tuple[str, ...]]) -> None:
        self.hashes = np.unique(np.fromiter(map(hash, runs), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.hashes)

    def __contains__(self, run: object) -> bool:
        wanted = hash(run)
        place = int(np.searchsorted(self.hashes, wanted))
        return place < len(self.hashes) and int(self.hashes[place]) == wanted


def known_runs(tunes: Iterable[str], n: int = RUN) -> KnownRuns:
    """Every run of n notes of some tunes."""
    return KnownRuns(run for tune in tunes for run in melody_runs(tune, n))


@cache
def training_melodies() -> KnownRuns:
    """The runs of notes of the training tunes. Loading reads the corpus from the installed music21 package."""
    from cfg_distill.tunes.corpus import tunes_of

    return known_runs(" ".join(tune.tokens) for tune in tunes_of("train"))
