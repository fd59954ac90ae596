"""A folder of real sound as a reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from cfg_distill.audio import Waveform, read_audio, seconds_of
from cfg_distill.data.reading import SOUNDS
from cfg_distill.errors import Context, Problem
from cfg_distill.references.base import Reference

NEARLY = 0.9
"""The part of a clip's length that a file may have and still count as long enough: encoders of sound pad their frames."""


class Sounds(Reference):
    """Clips of the sound files in a folder, for all prompts alike.

    Args:
        folder: a folder of sound files (WAV, FLAC, OGG, MP3, AIFF), subfolders included.
        seconds: files are cut into clips of this length, which should be the samples' length; a rest shorter than half of it is
            left out.
    """

    def __init__(self, folder: str, seconds: float = 10.0) -> None:
        self.folder = folder
        self.seconds = seconds

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = []
        if not 0 < self.seconds < math.inf:
            found.append(Problem("seconds", f"expected a number above 0, but got {self.seconds}."))
        elif context.seconds is not None and self.seconds < context.seconds:
            text = f"expected at least the {context.seconds:g} of the samples, but got {self.seconds:g}. Raise it."
            found.append(Problem("seconds", text))
        if not self._files():
            text = f"expected a folder with sound files ({', '.join(SOUNDS)}), but `{self.folder}` holds none."
            found.append(Problem("folder", f"{text} Name a folder of real clips."))
        return found or self._problems_of_clips()

    def _problems_of_clips(self) -> list[Problem]:
        """Files that are all too short for one clip."""
        longest = 0.0
        for file in self._files():
            seconds = seconds_of(file)
            if seconds is None or seconds >= NEARLY * self.seconds:
                return []  # most folders: one header is read
            longest = max(longest, seconds)
        text = f"expected sound files of at least {self.seconds:g} s, but the longest in `{self.folder}` lasts {longest:g} s."
        return [
            Problem("seconds", f"{text} Lower it, which asks for samples as short, or name a folder of longer files.")
        ]

    def parts(self) -> Iterator[list[Waveform]]:
        for file in self._files():
            yield _cut(read_audio(file), self.seconds)

    def _files(self) -> list[Path]:
        return sorted(file for file in Path(self.folder).expanduser().rglob("*") if file.suffix.lower() in SOUNDS)


def _cut(waveform: Waveform, seconds: float) -> list[Waveform]:
    """A file as clips of one length, and its rest when that is at least half as long."""
    pieces = waveform.samples.split(max(1, round(seconds * waveform.rate)), dim=-1)
    return [Waveform(piece, waveform.rate) for piece in pieces if 2 * piece.shape[-1] >= seconds * waveform.rate]
