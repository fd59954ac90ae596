"""A file of real texts as a reference. Shapes: B prompts, R texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from cfg_distill.data.reading import normalised, numbered_prompts
from cfg_distill.errors import ConfigError, Context, Problem, listed, problems_of_counts
from cfg_distill.generators import PromptLike
from cfg_distill.references.base import Reference


class Texts(Reference):
    """Texts of a file, for all prompts alike or each for its own prompt.

    They are taken as long as they are: texts about as long as the samples compare best.

    Args:
        path: text (one per line), JSON lines, CSV or TSV, or a Hugging Face dataset on disk.
        field: of JSON lines and tables, where the text stands.
        prompt_field: where the prompt stands to which the text belongs; empty: every text serves every prompt.
        batch_size: texts that are embedded at once.
    """

    chosen_by = "prompt_field"
    if_none = "Add texts for them, or leave `prompt_field` empty: then every text serves every prompt."

    def __init__(self, path: str, field: str = "text", prompt_field: str = "", batch_size: int = 64) -> None:
        self.path = path
        self.field = field
        self.prompt_field = prompt_field
        self.batch_size = batch_size

    @cached_property
    def texts(self) -> list[str]:
        """The texts of the file."""
        return [str(row) for row in self._texts.values()]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompt of each text; empty where texts have none."""
        return [normalised(row) for row in self._prompts.values()]

    @cached_property
    def _texts(self) -> dict[int, PromptLike]:
        """By line."""
        return dict(numbered_prompts(self.path, self.field))

    @cached_property
    def _prompts(self) -> dict[int, PromptLike]:
        """By line; none where texts have none."""
        return dict(numbered_prompts(self.path, self.prompt_field)) if self.prompt_field else {}

    def problems(self, context: Context = Context()) -> list[Problem]:
        try:
            alone = sorted(self._texts.keys() ^ self._prompts.keys())
        except ConfigError as error:
            return [Problem("path", problem.text) for problem in error.problems]
        if self.prompt_field and alone:
            lines = listed([*map(str, alone)], 3)
            text = f"expected a prompt for each text, but lines of `{self.path}` have one of the two alone: {lines}."
            return [Problem("prompt_field", f"{text} Complete or remove them.")]
        return problems_of_counts(batch_size=self.batch_size)

    def size(self) -> int:
        return len(self.texts)

    def number(self, prompt: str) -> int:
        return self._numbers[normalised(prompt)] if self.prompt_field else len(self.texts)

    @cached_property
    def _numbers(self) -> Counter[str]:
        """How many texts each prompt has."""
        return Counter(self.prompts)

    def parts(self) -> Iterator[list[str]]:
        for start in range(0, len(self.texts), self.batch_size):
            yield self.texts[start : start + self.batch_size]

    def weight(self, prompts: Sequence[str]) -> Tensor:
        if not self.prompt_field:
            return super().weight(prompts)
        asked_B = [normalised(prompt) for prompt in prompts]
        return torch.tensor([[float(asked == own) for own in self.prompts] for asked in asked_B])
