"""Real tunes as a reference. Shapes: B prompts, R tunes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from cfg_distill.errors import Context, Problem
from cfg_distill.references import Reference
from cfg_distill.tunes.corpus import Tune, tunes_of
from cfg_distill.tunes.prompts import NULL, understand
from cfg_distill.tunes.split import SPLITS


class TuneReference(Reference):
    """The beginnings of the tunes of a split, those for a prompt that have what it asks for.

    Reading the tunes takes about ten seconds, once in a process.

    Args:
        split: ``train``, ``validation`` or ``test``.
        tokens: of each tune; as many as the samples have, ``model.sampling.max_new_tokens``.
        match: ``slots`` keeps the tunes of the asked origin, rhythm, metre and mode; ``none`` keeps all for every prompt.
    """

    def __init__(self, split: str = "train", tokens: int = 80, match: Literal["slots", "none"] = "slots") -> None:
        self.split = split
        self.tokens = tokens
        self.match = match

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = []
        if self.split not in SPLITS:
            found.append(Problem("split", f"expected one of {list(SPLITS)}, but got `{self.split}`."))
        if not self.tokens >= 1:
            found.append(Problem("tokens", f"expected at least 1, but got {self.tokens}."))
        if self.match not in ("slots", "none"):
            found.append(Problem("match", f"expected `slots` or `none`, but got `{self.match}`."))
        return found

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
        asked = [understand(prompt).slots for prompt in prompts]
        return torch.tensor([[float(_fits(tune, slots)) for tune in self.tunes] for slots in asked])


def _fits(tune: Tune, asked: dict[str, str]) -> bool:
    return all(value in (NULL, tune.slots[slot]) for slot, value in asked.items())
