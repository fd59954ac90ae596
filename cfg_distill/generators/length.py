"""How long a sample of sound is: seconds to frames, and what is too long."""

from __future__ import annotations

from cfg_distill.generators.base import Generator

SECONDS = 10.0
"""Of a clip, where nobody says another length."""


def frames(generator: Generator, seconds: float) -> int:
    """Frames of so many seconds of sound; at least one.

    Raises:
        ValueError: the generator writes text.
    """
    if generator.frame_rate is None:
        raise ValueError("Expected argument `generator` of sound but got one of text.")
    return max(1, round(seconds * generator.frame_rate))


def problems_of_seconds(generator: Generator, seconds: float) -> list[str]:
    """What is wrong with a length in seconds, a sentence each, found without loading weights."""
    rate, most = generator.frame_rate, generator.longest_sample
    path = getattr(generator, "path", type(generator).__name__)
    if rate is None:
        return [f"Option `--seconds`: is for models of sound, but `{path}` writes text."]
    if not seconds > 0:
        return [f"Option `--seconds`: expected a number above 0, but got {seconds:g}."]
    if most is not None and frames(generator, seconds) > most:
        longest = int(most / rate * 10) / 10
        return [
            f"Option `--seconds`: expected at most {longest:g}, since `{path}` has positions for {most} frames at {rate:g} a"
            f" second, but got {seconds:g}. Lower it."
        ]
    return []
