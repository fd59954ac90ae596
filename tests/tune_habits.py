"""What students write more or less of: does a diversity come from leaps, ornaments or mixed lengths? Minutes.

    python tests/tune_habits.py base=tunes:base guided=tunes:base@2 quality=FOLDER diversity=FOLDER

8 samples of each development prompt at temperature 1, and the first 96 tokens of the test tunes. Mean over tunes of at least 8
notes, with 1.96 standard errors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import pairwise

import torch
from tune_transfer import PROMPTS, samples_of

from cfg_distill.data import read_prompts
from cfg_distill.tunes.canonical import sounding_notes
from cfg_distill.tunes.corpus import tunes_of

COLUMNS = ("leaps of 9 semitones or more", "steps", "changes of length", "shorter than the median", "different lengths")


def habits(tune: str) -> list[float]:
    """Shares of the intervals and of the notes, and the number of different lengths; empty for a tune that is too short."""
    notes = sounding_notes(tune)
    if len(notes) < 8:
        return []
    pairs, usual = list(pairwise(notes)), sorted(note.length for note in notes)[len(notes) // 2]
    leaps = [abs(after.pitch - before.pitch) for before, after in pairs]
    return [
        sum(leap >= 9 for leap in leaps) / len(pairs),
        sum(leap <= 2 for leap in leaps) / len(pairs),
        sum(before.length != after.length for before, after in pairs) / len(pairs),
        sum(note.length < usual for note in notes) / len(notes),
        float(len({note.length for note in notes})),
    ]


def row(name: str, tunes: Iterable[str]) -> str:
    found_NC = torch.tensor([each for tune in tunes if (each := habits(tune))])
    errors = 1.96 * found_NC.std(0) / len(found_NC) ** 0.5
    return (
        f"| {name} | " + " | ".join(f"{m:.3f} ± {e:.3f}" for m, e in zip(found_NC.mean(0), errors, strict=True)) + " |"
    )


if __name__ == "__main__":
    prompts = [str(prompt) for prompt in read_prompts(PROMPTS, "prompt")]
    print("| system | " + " | ".join(COLUMNS) + " |")
    print(row("held-out real tunes", (" ".join(tune.tokens[:96]) for tune in tunes_of("test"))))
    for given in sys.argv[1:]:
        name, _, model = given.partition("=")
        print(row(name, (tune for drawn in samples_of(model, prompts) for tune in drawn.outputs)), flush=True)
