"""A dial for guidance: each step of training draws the scale of a LoRA adapter, and guides the teacher to match.

The adapter then serves every gamma from 1 to that of the recipe, in any engine that scales adapters. A step costs what the step
of a plain LoRA student costs: a scale is a number that each layer multiplies by anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cfg_distill.errors import Context, Problem
from cfg_distill.generators.lora import adapter_scaled
from cfg_distill.sampling import Seeds

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation

STREAM = 2**63
"""In the place of a rollout's attempt: no rollout draws the same numbers."""


@dataclass
class Dial:
    r"""Make the scale of a LoRA adapter the scale of guidance.

    Each step draws one setting s. The student samples, and is scored, with its adapter times s; the teacher is guided by

    .. math:: \gamma = 1 + s\,(\gamma_\text{max} - 1), \qquad s = a + (b - a)\,(1 - u)^p, \quad u \sim U[0, 1)

    with :math:`\gamma_\text{max}` the scale in ``guidance``. s depends on the seed and the step alone, so that a resumed run
    draws the same, and so does any number of devices. Validation is at s = 1.

    Args:
        low: a, the lowest setting, which is not drawn unless it is the highest too; at 0 there is nothing to learn.
        high: b, the highest setting.
        power: p. 1 is the uniform distribution; below 1 leans to the highest setting, above 1 to the lowest.
    """

    low: float = 0.0
    high: float = 1.0
    power: float = 1.0

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with these settings."""
        found = []
        if not 0 <= self.low <= 1:
            found.append(Problem("low", f"expected a number from 0 to 1, but got {self.low}."))
        if not max(self.low, 0) <= self.high <= 1 or self.high == 0:
            found.append(Problem("high", f"expected a number above 0, from `@.low` to 1, but got {self.high}."))
        if not 0 < self.power < float("inf"):
            found.append(Problem("power", f"expected a number above 0 (1 is uniform), but got {self.power}."))
        return found

    def at(self, seed: int, step: int) -> float:
        """The setting of a step, which is never 0.

        Example:
            >>> round(Dial().at(seed=0, step=0), 4), Dial(0.5, 0.5).at(seed=0, step=0)
            (0.8298, 0.5)
        """
        uniform = float(Seeds((seed, step + 1, STREAM), [0]).uniform_NKT(1, 1, 1))
        return self.low + (self.high - self.low) * (1 - uniform) ** self.power


@contextmanager
def dialled(module: CFGDistillation) -> Iterator[None]:
    """Student and teacher at the setting of this step, where there is a dial; until the context ends."""
    if module.dial is None:
        yield
        return
    setting, full = module.dial.at(module.seed, module.global_step), module.guidance
    module.log("train/dial", setting)
    module.guidance = full.at(setting)
    try:
        with adapter_scaled(module.student.model, setting):
            yield
    finally:
        module.guidance = full


@contextmanager
def dialled_ahead(module: CFGDistillation) -> Iterator[None]:
    """Within a step, the student at the setting of the next one, whose samples an engine begins to draw."""
    if module.dial is None:
        yield
        return
    own, following = (module.dial.at(module.seed, module.global_step + ahead) for ahead in (0, 1))
    with adapter_scaled(module.student.model, following / own):  # which is scaled by its own setting already
        yield


def problems_of_dial(module: CFGDistillation) -> list[Problem]:
    """What else of a recipe a dial cannot work with; keys are relative to ``model``."""
    guidance, found = module.guidance, []
    if module.dial is None:
        return []
    if module.student.lora is None:
        text = (
            "expected a LoRA student, whose adapter is scaled, but all weights are trained. Set"
            " `@/model.generator.init_args.lora`, or leave the dial out."
        )
        found.append(Problem("dial", text))
    if 0 <= guidance.scale <= 1:  # any other number is a problem of the guidance already
        text = f"expected a number above 1, up to which the dial goes, but got {guidance.scale:g}."
        text += " Raise it, or leave the dial out."
        found.append(Problem("guidance.scale", text))
    if guidance.schedule != "constant":
        text = (
            f"expected constant, since the dial sets one gamma for all positions, but got {guidance.schedule}. Leave one of"
            " the two out."
        )
        found.append(Problem("guidance.schedule", text))
    return [*(problem.under("dial") for problem in module.dial.problems()), *found]
