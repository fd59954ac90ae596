"""Ogg Vorbis of any length."""

from __future__ import annotations

from typing import Any

BLOCK = 65_536
"""Samples per channel that the encoder gets at once. libvorbis copies the first ones onto the stack: two million in one call
overflow it, and the process dies without a message."""


def write_vorbis(soundfile: Any, file: Any, samples_LC: Any, rate: int, **settings: Any) -> None:
    """Write sound as Ogg Vorbis.

    Args:
        soundfile: the library.
        file: a path, or a stream of bytes.
        samples_LC: the sound, an array of float32 or int16.
        rate: samples per second.
        settings: of ``soundfile.SoundFile``.
    """
    with soundfile.SoundFile(file, "w", rate, samples_LC.shape[1], "VORBIS", format="OGG", **settings) as sound:
        for first in range(0, len(samples_LC), BLOCK):
            sound.write(samples_LC[first : first + BLOCK])
