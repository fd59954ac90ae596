"""A prompt, and what else it conditions on. No torch in here."""

from __future__ import annotations

from typing import Self


class Prompt(str):
    """A prompt is its text; what else it conditions on travels with it, unseen by what knows texts only.

    Attributes:
        conditions: by name, for generators that know it: ``{"melody": "tune.wav"}``.

    Example:
        >>> prompt = Prompt("80s synth pop", melody="tune.wav")
        >>> prompt, prompt.conditions
        ('80s synth pop', {'melody': 'tune.wav'})
    """

    conditions: dict[str, str]

    def __new__(cls, text: str, **conditions: str) -> Self:
        prompt = super().__new__(cls, text)
        prompt.conditions = conditions
        return prompt

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, str]]:
        return (str(self),), self.conditions
