"""Who draws the samples that a student learns from: our own loop, or an engine. Shapes: N rows, T positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from cfg_distill.errors import Context, Problem
from cfg_distill.generators import Generator, PromptLike
from cfg_distill.sampling.conditioning import Conditioner
from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.rollout import Rollout, rollout
from cfg_distill.sampling.seeds import Seeds


class Sampler(ABC):
    """Draws groups of samples of a student as it is now, without guidance.

    Attributes:
        max_staleness: steps that the student may take between the start of a rollout and the step that learns from it.
        is_own_loop: whether the samples are drawn by this package, in its own processes.
    """

    max_staleness: int = 0
    is_own_loop: bool = False

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, whatever the student is."""
        return []

    def problems_with(self, student: Generator, sampling: Sampling) -> list[Problem]:
        """Why this sampler cannot draw from a student, found without loading weights."""
        return []

    def problems_in(self, num_processes: int, student: Generator) -> list[Problem]:
        """Why this sampler cannot draw from a student in a number of processes."""
        return []

    @abstractmethod
    def rollout(
        self,
        student: Generator,
        prompts: Sequence[PromptLike],
        sampling: Sampling,
        seed: int | Seeds = 0,
        conditioner: Conditioner | None = None,
    ) -> Rollout:
        """Samples of the student. Arguments: see :func:`cfg_distill.sampling.rollout`.

        Returns:
            Its log-probabilities are the student's own, whoever drew the tokens.
        """

    def begin(
        self,
        student: Generator,
        prompts: Sequence[PromptLike],
        sampling: Sampling,
        seed: int | Seeds = 0,
        conditioner: Conditioner | None = None,
    ) -> Callable[[], Rollout]:
        """Begin a rollout of the student as it is now; the result waits for its end.

        By default the samples are drawn at once. Override it to draw them while the caller goes on.
        """
        drawn = self.rollout(student, prompts, sampling, seed, conditioner)
        return lambda: drawn


class OwnLoop(Sampler):
    """The loop of this package (:func:`cfg_distill.sampling.rollout`): every generator, on every device."""

    is_own_loop = True

    def rollout(
        self,
        student: Generator,
        prompts: Sequence[PromptLike],
        sampling: Sampling,
        seed: int | Seeds = 0,
        conditioner: Conditioner | None = None,
    ) -> Rollout:
        return rollout(student, prompts, sampling, seed=seed, conditioner=conditioner)
