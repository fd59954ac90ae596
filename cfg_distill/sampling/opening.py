"""Samples that begin as samples of the start model do. No formula here: rewards of pairs say what it is for."""

from __future__ import annotations

from dataclasses import dataclass

from cfg_distill.errors import Context, Problem


@dataclass(frozen=True)
class Opening:
    """Each training sample goes on from the beginning of a sample of the start model, which it brings along.

    Given the opening, both are independent. So a reward may compare the two (:class:`~cfg_distill.rewards.PairedContrast`), and
    its policy gradient is that of the positions behind the opening. Samples that share random numbers in place of an opening
    have no such gradient: what makes one makes the other. The student learns the divergence from the teacher at all positions.
    Validation and evaluation sample without openings. It costs a rollout of the start model per step.

    Args:
        tokens: t, positions that are given.
    """

    tokens: int = 16

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        if not self.tokens >= 1:
            return [Problem("tokens", f"expected at least 1, but got {self.tokens}. Take 16, say, or no opening.")]
        if context.length is None or self.tokens < context.length:
            return []
        text = f"expected fewer than the {context.length} of `@/model.sampling.max_new_tokens`, but got {self.tokens}"
        return [Problem("tokens", f"{text}: nothing is left to write. Lower it.")]
