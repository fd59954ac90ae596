"""What moves over the positions of a sample, as a study and the commands name it: annealing, and the guidance scale.

No torch before it is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from cfg_distill.errors import Problem, problems_of

if TYPE_CHECKING:
    from cfg_distill.generators import Generator, Guidance, Predictor, Schedule


@dataclass(frozen=True)
class Course:
    """How a number moves over the positions of a sample: see :class:`cfg_distill.guidance.Schedule`.

    Args:
        kind: the curve.
        power: the exponent of ``power``.
        step_at: the share of the positions before a ``step``.
        positions: where the number has reached its last value; 0 for the longest sample.
    """

    kind: Literal["linear", "cosine", "power", "step"] = "power"
    power: float = 2.0
    step_at: float = 0.5
    positions: int = 0


@dataclass(frozen=True)
class GuidanceCourse(Course):
    """The guidance scale moves over the positions, from ``first`` to the scale of the system.

    Args:
        first: the scale at the first position; 1 is no guidance.
        kind: the curve.
        power: the exponent of ``power``.
        step_at: the share of the positions before a ``step``.
        positions: where the scale has reached that of the system; 0 for the longest sample.
    """

    first: float = 1.0

    def on(self, guidance: Guidance, longest: int) -> Guidance:
        """A guidance whose scale moves to the one that it has.

        Args:
            guidance: with one scale at all positions.
            longest: tokens or frames of the longest sample.
        """
        return replace(
            guidance,
            scale=self.first,
            final_scale=guidance.scale,
            schedule=self.kind,
            positions=self.positions or longest,
            power=self.power,
            step_at=self.step_at,
        )


@dataclass(frozen=True)
class Anneal(Course):
    """Samples begin by a start model and end by the system's own, at the passes of both.

    See :class:`cfg_distill.generators.Annealed`.

    Args:
        base: the start model, from which the system's model was tuned: a model folder or hub name; in a study also a fit or a
            merge.
        kind: how the share of the system's model rises over the positions.
        power: the exponent of ``power``.
        step_at: the share of the positions before a ``step``.
        positions: where the share reaches 1; 0 for the longest sample.
    """

    base: str = field(kw_only=True)

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


def problems_of_course(course: GuidanceCourse | None) -> list[Problem]:
    """Why guidance cannot move so, by keys under ``schedule``; none where it does not move."""
    from cfg_distill.generators import Guidance

    found = [] if course is None else course.on(Guidance(), longest=1).problems()
    return [replace(each, key=each.key.replace("scale", "first")).under("schedule") for each in found]


def problems_of_anneal(anneal: Anneal | None, tuned: Generator) -> list[Problem]:
    """Why the samples of a model cannot begin by a start model, by keys under ``anneal``; none where none is asked for."""
    return [] if anneal is None else [each.under("anneal") for each in anneal.problems_on(tuned)]


def annealed(tuned: Generator, anneal: Anneal | None, longest: int) -> Predictor:
    """A loaded model, or its mixture with a start model where one is asked for."""
    return tuned if anneal is None else anneal.over(tuned, longest)
