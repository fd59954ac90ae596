"""Classifier-free guidance: the one formula of guided logits, its negative branch, and its scale over positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cfg_distill.errors import Context, Problem, problems_of_counts, problems_of_positive, problems_of_scale
from cfg_distill.prompt import Prompt, PromptLike


def guided_logits(prompt: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    r"""Logits under classifier-free guidance.

    .. math:: z_\text{guided} = z(\text{negative}) + \gamma \, (z(\text{prompt}) - z(\text{negative}))

    Scale 0 is the negative branch, 1 the prompt branch exactly, above 1 guidance. Mixing logits or log-probabilities
    gives the same distribution: they differ by one constant per position. Source: Cideron et al., ICLR 2025, section 2;
    Sanchez et al., arXiv 2306.17806, Eq. 7.

    A logit of minus infinity is a token that the model forbids. The formula gives NaN or plus infinity there, so:

    - forbidden by both branches, it stays forbidden;
    - forbidden by the prompt's branch alone, it is forbidden at any scale above 0, which is the formula's limit;
    - forbidden by the negative branch alone, it is forbidden at a scale below 1, the limit again. At 1 and above the
      token keeps the logit of the prompt's branch. The limit there is plus infinity, all probability on that token, and no
      distribution to learn. Without guidance on that token the teacher allows what the prompt's branch allows, which is
      what a student begins with, and every divergence between the two stays finite.

    Args:
        prompt: logits given the prompt, ``[..., V]``.
        negative: logits given the negative (or no) prompt on the same generated prefix, ``[..., V]``.
        scale: gamma, at least 0, a number or a tensor that broadcasts against the logits.

    Returns:
        Guided logits, ``[..., V]``.

    Example:
        >>> guided_logits(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), 3.0)
        tensor([4., 0.])
        >>> guided_logits(torch.tensor([2.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), 3.0)
        tensor([4., -inf])
    """
    guided = guided_states(prompt, negative, scale)
    # One sum tells whether every logit is finite. Where it overflows, the longer way gives the same values.
    if guided.detach().sum().isfinite():
        return guided
    no_prompt, no_negative = torch.isneginf(prompt), torch.isneginf(negative)
    forbidden = (no_prompt & (scale > 0)) | (no_negative & (scale < 1)) | (no_prompt & no_negative)
    # The finite branch stands in for the other one, so that neither the result nor a gradient meets infinity.
    finite_prompt = torch.where(no_prompt, torch.where(no_negative, 0.0, negative), prompt)
    finite_negative = torch.where(no_negative, torch.where(no_prompt, 0.0, prompt), negative)
    return guided_states(finite_prompt, finite_negative, scale).masked_fill(forbidden, -torch.inf)


def guided_states(prompt: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    """The formula of :func:`guided_logits` on finite values: the states in front of a linear head, ``[..., D]``."""
    # torch.lerp computes from the nearer end, so that scale 1 returns the prompt's values to the bit.
    return torch.lerp(negative, prompt, scale)


ScheduleKind: TypeAlias = Literal["constant", "linear", "cosine", "power", "step"]


@dataclass(frozen=True)
class Schedule:
    r"""A number that moves over the generated positions n of a sample.

    .. math:: s_n = \text{first} + w_n (\text{last} - \text{first}), \qquad x_n = \min(n / N, 1)

    where w_n is 0 for ``constant``, x_n for ``linear``, (1 - cos(pi x_n)) / 2 for ``cosine``, x_n to the ``power``, and for
    ``step`` 1 from x_n = ``step_at`` on and 0 before.

    Args:
        kind: how it moves.
        first: its value at position 0.
        last: its value at position N and beyond.
        positions: N, a fixed number: nobody knows the length of a sample before it ends.
        power: the exponent of ``power``. The higher, the longer the value stays near the first.
        step_at: the share of the positions before a ``step``.

    Example:
        >>> Schedule("power", positions=4).at(torch.arange(5))
        tensor([0.0000, 0.0625, 0.2500, 0.5625, 1.0000])
    """

    kind: ScheduleKind = "power"
    first: float = 0.0
    last: float = 1.0
    positions: int = 128
    power: float = 2.0
    step_at: float = 0.5

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        found = problems_of_counts(positions=self.positions)
        found += problems_of_positive(power=self.power)
        if not 0 < self.step_at <= 1:
            found.append(Problem("step_at", f"expected a share above 0 and up to 1, but got {self.step_at}."))
        return found

    def at(self, position_T: Tensor) -> Tensor:
        """The value at generated positions counted from 0: ``[T]`` integers to ``[T]`` float32."""
        progress_T = (position_T.float() / self.positions).clamp(max=1.0)
        if self.kind == "constant":
            progress_T = torch.zeros_like(progress_T)
        elif self.kind == "cosine":
            progress_T = (1 - torch.cos(torch.pi * progress_T)) / 2
        elif self.kind == "power":
            progress_T = progress_T**self.power
        elif self.kind == "step":
            progress_T = (progress_T >= self.step_at).float()
        return self.first + (self.last - self.first) * progress_T


@dataclass
class Guidance:
    """How the frozen start model is guided: the teacher of the distillation, and the baseline to beat.

    Args:
        scale: gamma. 1 is no guidance; the default is the paper's text-to-music setting, and that of a recipe.
        negative: the negative prompt. None drops the prompt: the unconditional branch.
        negative_system: the system message of the negative branch, for models whose chat template takes one. The negative
            branch then keeps the prompt, unless ``negative`` is given too (the empty text drops the prompt). Source: Sanchez
            et al., section 3.4.
        schedule: how gamma moves over the generated positions, from ``scale`` to ``final_scale``: see :class:`Schedule`.
        final_scale: gamma at ``positions`` and beyond; None keeps ``scale``. Read when ``schedule`` is not constant.
        positions: the number of generated positions over which gamma moves.
        teacher_system: a system message that the teacher reads and the student does not. With ``scale`` 1 the student learns to
            sample as if it had read it (context distillation), above 1 it learns that and guidance. The branch of a dropped
            prompt drops this message too. The column ``teacher_prompt`` of prompts does the same for each prompt.
        mix_states: mix the states in front of a linear head, which gives the same logits with one product of the head
            instead of two. Off: mix the logits, the plain twin.
        power: the exponent of the schedule ``power``.
        step_at: the share of ``positions`` before the schedule ``step`` takes ``final_scale``.
        drop: what a dropped prompt leaves: nothing of it, or its last token, with which the negative branch then begins. The
            second is for causal language models without a chat template. Source: Sanchez et al., on zero-shot tasks.
    """

    scale: float = 3.0
    negative: str | None = None
    schedule: ScheduleKind = "constant"
    final_scale: float | None = None
    positions: int = 128
    negative_system: str | None = None
    mix_states: bool = True
    power: float = 2.0
    step_at: float = 0.5
    teacher_system: str | None = None
    drop: Literal["prompt", "last_token"] = "prompt"

    @property
    def active(self) -> bool:
        """Whether guidance needs a second forward pass."""
        return self.scale != 1.0 or (self.schedule != "constant" and self.final_scale not in (None, 1.0))

    def negatives(self, prompts: Sequence[PromptLike | None]) -> list[PromptLike | None]:
        """The prompts of the negative branch: one for all rows, or one per prompt where a part of the prompt stays."""
        system, negative = self.negative_system, self.negative
        if self.drop == "last_token":
            return [Prompt.of(prompt or "").but(tail="1") for prompt in prompts]
        if system is None:
            return [negative]
        if negative is not None:
            return [Prompt(negative, system=system)]
        return [Prompt.of(prompt or "").but(system=system) for prompt in prompts]

    def of_teacher(self, prompts: Sequence[PromptLike]) -> list[PromptLike]:
        """What the teacher reads in place of these prompts: a context of its own, which the student is not shown."""
        return [
            Prompt.of(prompt).for_teacher(self.teacher_system) if self._differs(prompt) else prompt
            for prompt in prompts
        ]

    def _differs(self, prompt: PromptLike) -> bool:
        return self.teacher_system is not None or Prompt.of(prompt).teacher_prompt is not None

    def at(self, dial: float) -> Guidance:
        r"""This guidance at a setting of the dial: of scale :math:`1 + s\,(\gamma - 1)`, no guidance at 0 and this one at 1.

        Example:
            >>> Guidance(3.0).at(0.25).scale
            1.5
        """
        return replace(self, scale=1 + dial * (self.scale - 1))

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with these settings."""
        found = []
        for name, value in (("scale", self.scale), ("final_scale", self.final_scale)):
            if value is not None:
                found += problems_of_scale(name, value, "negative")
        if self.schedule != "constant" and self.final_scale is None:
            found.append(
                Problem(
                    "final_scale",
                    f"expected a number for the {self.schedule} schedule, but got none. Set it, or `@.schedule` to constant.",
                )
            )
        if self.drop == "last_token" and (self.negative, self.negative_system) != (None, None):
            text = "expected `prompt`, since the negative branch reads `@.negative` or `@.negative_system`, but got last_token."
            found.append(Problem("drop", text))
        return found + self.moved.problems()

    @property
    def strongest(self) -> float:
        """The largest gamma over the positions: what a student carries afterwards."""
        return float(max(self.moved.first, self.moved.last))

    @property
    def moved(self) -> Schedule:
        """Gamma over the generated positions."""
        final = self.scale if self.schedule == "constant" or self.final_scale is None else self.final_scale
        return Schedule(self.schedule, self.scale, final, self.positions, self.power, self.step_at)

    def scale_at(self, position_T: Tensor) -> Tensor:
        """Gamma at generated positions counted from 0: ``[T]`` integers to ``[T]`` float32."""
        return self.moved.at(position_T)
