"""Real tunes as a reference. Shapes: B prompts, R tunes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from cfg_distill.errors import Context, Problem, problems_of_counts, problems_of_not_negative
from cfg_distill.references import Reference, problems_of_length
from cfg_distill.tunes.corpus import Tune, tunes_of
from cfg_distill.tunes.ladder import matches
from cfg_distill.tunes.prompts import problems_of_prompts, understand
from cfg_distill.tunes.split import SPLITS

DROPPED = ("origin", "mode", "metre", "rhythm")
"""The slots in the order in which they are left out where too few tunes have all of them: the least audible first."""


class TuneReference(Reference):
    """The beginnings of the tunes of a split, those for a prompt that have what it asks for.

    Reading the tunes takes about ten seconds, once in a process.

    Args:
        split: ``train``, ``validation`` or ``test``.
        tokens: of each tune; as many as the samples have, ``model.sampling.max_new_tokens``.
        match: ``slots`` keeps the tunes of the asked origin, rhythm, metre and mode; ``none`` keeps all for every prompt.
        at_least: the fewest tunes for a prompt. Where fewer have all that it asks for, the origin is not looked at, then
            neither the mode, the metre and the rhythm. 0 looks at all of them, and refuses a prompt that no tune fits.
    """

    chosen_by = "at_least"
    if_none = "Raise `at_least` to as many, so that it takes tunes that have most of what a prompt asks for."

    def __init__(
        self, split: str = "train", tokens: int = 80, match: Literal["slots", "none"] = "slots", at_least: int = 0
    ) -> None:
        self.split = split
        self.tokens = tokens
        self.match = match
        self.at_least = at_least

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = []
        if self.split not in SPLITS:
            found.append(Problem("split", f"expected one of {list(SPLITS)}, but got `{self.split}`."))
        found += problems_of_counts(tokens=self.tokens) or problems_of_length(self.tokens, context)
        if self.match not in ("slots", "none"):
            found.append(Problem("match", f"expected `slots` or `none`, but got `{self.match}`."))
        return found + problems_of_not_negative(at_least=self.at_least)

    def problems_of_prompts(self, prompts: Sequence[str], at_least: int = 1) -> list[Problem]:
        # Reading the tunes takes seconds, and cannot find any prompt that has fewer.
        if self.match == "none" or self.at_least >= at_least:
            return []
        return problems_of_prompts(prompts) or super().problems_of_prompts(prompts, at_least)

    def number(self, prompt: str) -> int | None:
        return None if self.match == "none" else int(sum(self._fitting(understand(prompt).slots)))

    @cached_property
    def tunes(self) -> list[Tune]:
        """The tunes of the split."""
        return tunes_of(self.split)

    def parts(self) -> Iterator[list[str]]:
        for start in range(0, len(self.tunes), 64):
            yield [" ".join(tune.tokens[: self.tokens]) for tune in self.tunes[start : start + 64]]

    def weight(self, prompts: Sequence[str]) -> Tensor:
        if self.match == "none":
            return super().weight(prompts)
        return torch.tensor([self._fitting(understand(prompt).slots) for prompt in prompts])

    def _fitting(self, asked: Mapping[str, str]) -> list[float]:
        """Which tunes have what is asked for."""
        for number in range(len(DROPPED) + 1):
            wanted = {slot: value for slot, value in asked.items() if slot not in DROPPED[:number]}
            fitting = [float(matches(tune.slots, wanted)) for tune in self.tunes]
            if sum(fitting) >= self.at_least:
                break
        return fitting
