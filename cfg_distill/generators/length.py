"""The length of a sample of sound: seconds to frames, and checks."""

from __future__ import annotations

from cfg_distill.errors import Problem
from cfg_distill.generators.base import Generator

DEFAULT_SECONDS = 10.0
"""The length of a clip unless another one is asked for."""


def frames(generator: Generator, seconds: float) -> int:
    """The number of frames in this many seconds of sound; at least one.

    Raises:
        ValueError: the generator writes text.
    """
    if generator.frame_rate is None:
        raise ValueError("Expected argument `generator` of sound but got one of text.")
    return max(1, round(seconds * generator.frame_rate))


def problems_of_seconds(generator: Generator, seconds: float) -> list[Problem]:
    """What is wrong with a length in seconds, found without loading weights; the key is ``seconds``."""
    rate, most = generator.frame_rate, generator.longest_sample
    if rate is None:
        return [Problem("seconds", f"is for models of sound, but `{generator.path}` writes text. Leave it out.")]
    if not seconds > 0:
        return [Problem("seconds", f"expected a number above 0, but got {seconds:g}.")]
    if most is not None and frames(generator, seconds) > most:
        longest = int(most / rate * 10) / 10
        text = (
            f"expected at most {longest:g}, since `{generator.path}` has positions for {most} frames at {rate:g} per second,"
            f" but got {seconds:g}. Lower it."
        )
        return [Problem("seconds", text)]
    return []
