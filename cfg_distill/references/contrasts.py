"""The prototypes of a fixed list of prompts. Shapes: B prompts, C contrasted prompts, D embedding width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from cfg_distill.data.reading import read_prompts
from cfg_distill.embedders import Embedder
from cfg_distill.embedders.similarity import unit
from cfg_distill.errors import ConfigError, Problem, blamed
from cfg_distill.generators import PromptLike
from cfg_distill.references.base import Reference
from cfg_distill.references.functions import prototypes

ROUNDING = 1e-5
"""Of a cosine distance in float32."""


class Contrasts:
    """Which other prompts a prompt is contrasted with, and where all of them lie.

    Args:
        reference: outputs for each prompt.
        against: a file of prompts.
        apart: the cosine distance below which two prototypes mean the same.
    """

    def __init__(self, reference: Reference, against: str, apart: float) -> None:
        self.reference = reference
        self.against = against
        self.apart = apart
        self._known: tuple[Embedder, Tensor] | None = None

    @cached_property
    def prompts(self) -> list[PromptLike]:
        """The contrasted prompts."""
        return read_prompts(self.against)

    def problems(self) -> list[Problem]:
        """What is wrong with the file and the distance, by the keys ``against`` and ``apart``."""
        found = (
            [] if 0 <= self.apart <= 2 else [Problem("apart", f"expected a number in [0, 2], but got {self.apart}.")]
        )
        try:
            if len(self.prompts) < 2:
                found.append(Problem("against", f"expected at least 2 prompts, but `{self.against}` holds 1."))
        except ConfigError as error:
            found += [Problem("against", problem.text) for problem in error.problems]
        return found

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        """Which of these prompts, and of those in the file, have no outputs."""
        return self.reference.problems_of_prompts([*prompts, *map(str, self.prompts)])

    def at(
        self, prompts: Sequence[PromptLike], embedder: Embedder, width: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The prototypes of the prompts ``[B, D]``, of the contrasted ones ``[C, D]``, and which of these count ``[B, C]``."""
        with blamed(self.reference, "reference"):
            own_BD = prototypes(*self.reference.at(prompts, embedder, width))
            if self._known is None or self._known[0] is not embedder:
                self._known = embedder, prototypes(*self.reference.at(self.prompts, embedder))
        others_CD = self._known[1].to(own_BD)
        distance_BC = 1 - unit(own_BD) @ unit(others_CD).T
        return (
            own_BD,
            others_CD,
            distance_BC > max(self.apart, ROUNDING),
        )  # a prompt of the list is none of its own others
