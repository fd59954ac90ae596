"""The length of a sample of sound: seconds to frames, and checks."""

from __future__ import annotations

import math

from cfg_distill.audio import problems_of_audio_extra
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
    if not 0 < seconds * rate < math.inf:
        return [Problem("seconds", f"expected a finite number above 0, but got {seconds:g}. Take 10, say.")]
    if most is not None and frames(generator, seconds) > most:
        longest = int(most / rate * 10) / 10
        text = (
            f"expected at most {longest:g}, since `{generator.path}` has positions for {most} frames at {rate:g} per second,"
            f" but got {seconds:g}. Lower it."
        )
        return [Problem("seconds", text)]
    return []


def asked_length(
    generator: Generator, max_new_tokens: int | None, seconds: float | None
) -> tuple[int | None, list[Problem]]:
    """The longest sample in tokens or frames, and its problems; None for text without a given length."""
    if generator.frame_rate is None:
        return max_new_tokens, [] if seconds is None else problems_of_seconds(generator, seconds)
    found = problems_of_audio_extra()
    if max_new_tokens is not None:
        if seconds is not None:
            found.append(Problem("seconds", "`@.max_new_tokens` is given, and both are the length. Give one of them."))
        return max_new_tokens, found
    asked = DEFAULT_SECONDS if seconds is None else seconds
    wrong = problems_of_seconds(generator, asked)
    return (1 if wrong else frames(generator, asked)), found + wrong
