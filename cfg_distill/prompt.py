"""A prompt, and what else it conditions on. No torch in here."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

MOST_CHARACTERS = 100_000
"""The longest prompt. A tokenizer may take minutes for a line of ten million characters, and no model here can read them."""

PLACE = "{prompt}"
"""Where a template takes the text of a prompt."""

TEACHER = "teacher_prompt"
"""The field of what the teacher reads in place of the prompt; so no condition has this name."""


@dataclass(frozen=True, init=False)
class Prompt:
    """A text, and the further conditions that come with it.

    A plain text is a prompt without conditions: every function that takes prompts takes texts too, and turns them into
    prompts by :meth:`of`. Printed, a prompt is its text.

    Attributes:
        text: the text.
        conditions: further conditions by name, for generators that know them: ``{"melody": "tune.wav"}``.
        teacher_prompt: what the teacher of a distillation reads in place of the text, which goes to ``{prompt}`` in it; None
            for the text itself. No generator reads it.

    Example:
        >>> prompt = Prompt("80s synth pop", melody="tune.wav")
        >>> print(prompt, prompt.conditions)
        80s synth pop {'melody': 'tune.wav'}
        >>> prompt == Prompt("80s synth pop", melody="other.wav"), Prompt.of("jazz") == Prompt("jazz")
        (False, True)
    """

    text: str
    conditions: Mapping[str, str]
    teacher_prompt: str | None

    def __init__(self, text: str, /, teacher_prompt: str | None = None, **conditions: str) -> None:
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "conditions", conditions)
        object.__setattr__(self, "teacher_prompt", teacher_prompt)

    @classmethod
    def of(cls, prompt: PromptLike) -> Prompt:
        """The prompt itself, or a text as a prompt without conditions."""
        return prompt if isinstance(prompt, Prompt) else cls(prompt)

    def but(self, text: str | None = None, **conditions: str) -> Prompt:
        """The prompt with another text, or with further conditions."""
        return Prompt(self.text if text is None else text, self.teacher_prompt, **{**self.conditions, **conditions})

    def within(self, template: str | None) -> Prompt:
        """The prompt with its text put into a template, at ``{prompt}``; the prompt itself where there is none.

        Example:
            >>> print(Prompt("a haiku").within("Be surprising. {prompt}"))
            Be surprising. a haiku
        """
        return self if template is None else self.but(template.replace(PLACE, self.text))

    def for_teacher(self, system: str | None = None) -> Prompt:
        """What the teacher reads: :attr:`teacher_prompt`, and a system message of its own where there is one."""
        asked = self.within(self.teacher_prompt)
        return Prompt(asked.text, **{**asked.conditions, **({} if system is None else {"system": system})})

    def to(self, device: Any) -> Prompt:
        """The prompt itself: Lightning moves batches by this method, and would refuse a frozen dataclass without it."""
        return self

    def __hash__(self) -> int:
        return hash((self.text, self.teacher_prompt, frozenset(self.conditions.items())))

    def __str__(self) -> str:
        return self.text


PromptLike: TypeAlias = str | Prompt


def problem_of_conditions(names: Iterable[str]) -> str:
    """What is wrong with the names of the conditions of any prompt, whatever the model is; empty when nothing is.

    Example:
        >>> problem_of_conditions(["lyrics", "bpm"])
        ''
    """
    if TEACHER not in names:
        return ""
    return (
        f"expected conditions that a model reads, but got `{TEACHER}`, which only the teacher of a fit reads. Take it out; in a"
        " file of prompts make it a field of its own, beside the conditions."
    )


def problem_of_text(text: str) -> str:
    """What is wrong with the text of any prompt, whatever the model is; empty when nothing is.

    Control characters other than tabs and line breaks are refused: they come from a file of another kind, and a terminal obeys
    some of them.

    Example:
        >>> problem_of_text("an Irish jig"), problem_of_text("an Irish\\0 jig")
        ('', 'expected text, but it holds the character U+0000. Remove it.')
    """
    if len(text) > MOST_CHARACTERS:
        return f"expected at most {MOST_CHARACTERS:,} characters per prompt, but got {len(text):,}. Shorten it."
    strange = next((each for each in text if each not in "\t\n\r" and unicodedata.category(each) in ("Cc", "Cs")), None)
    return "" if strange is None else f"expected text, but it holds the character U+{ord(strange):04X}. Remove it."
