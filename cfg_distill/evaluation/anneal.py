"""Samples that begin by a start model: how a study and the commands name them. No torch before it is called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from cfg_distill.errors import Problem, problems_of

if TYPE_CHECKING:
    from cfg_distill.generators import Generator, Predictor, Schedule


@dataclass(frozen=True)
class Anneal:
    """Samples begin by a start model and end by the system's own, at the passes of both.

    See :class:`cfg_distill.generators.Annealed`.

    Args:
        base: the start model, from which the system's model was tuned: a model folder or hub name; in a study also a fit or a
            merge.
        kind: how the share of the system's model rises over the positions: see :class:`cfg_distill.guidance.Schedule`.
        power: the exponent of ``power``.
        step_at: the share of the positions before a ``step``.
        positions: where the share reaches 1; 0 for the longest sample.
    """

    base: str
    kind: Literal["linear", "cosine", "power", "step"] = "power"
    power: float = 2.0
    step_at: float = 0.5
    positions: int = 0

    def schedule(self, longest: int) -> Schedule:
        """The share of the system's model over the positions of a sample.

        Args:
            longest: tokens or frames of the longest sample.
        """
        from cfg_distill.generators import Schedule

        return Schedule(self.kind, positions=self.positions or longest, power=self.power, step_at=self.step_at)

    def problems_on(self, tuned: Generator) -> list[Problem]:
        """Why the samples of a model without problems of its own cannot begin by the start model; no weights are loaded."""
        from cfg_distill.generators import open_generator
        from cfg_distill.generators.annealed import problems_of_mixing

        start = open_generator(self.base)
        of_base = problems_of(start) or problems_of_mixing(start, tuned)
        return [replace(each, key="base", prefix="") for each in of_base] + self.schedule(1).problems()

    def over(self, tuned: Generator, longest: int) -> Predictor:
        """The mixture of a loaded model and the start model, which is loaded here."""
        from cfg_distill.generators import Annealed, open_generator

        start = open_generator(self.base, dtype=tuned.dtype).load().to(tuned.device)
        return Annealed(start, tuned, self.schedule(longest))


def problems_of_anneal(anneal: Anneal | None, tuned: Generator) -> list[Problem]:
    """Why the samples of a model cannot begin by a start model, by keys under ``anneal``; none where none is asked for."""
    return [] if anneal is None else [each.under("anneal") for each in anneal.problems_on(tuned)]


def annealed(tuned: Generator, anneal: Anneal | None, longest: int) -> Predictor:
    """A loaded model, or its mixture with a start model where one is asked for."""
    return tuned if anneal is None else anneal.over(tuned, longest)
