"""The samples that a step learns from. Shapes: B prompts, G samples per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cfg_distill.distillation.asked import degenerate_of
from cfg_distill.distillation.off_policy import to_learn_from
from cfg_distill.distillation.sharding import sampling_from
from cfg_distill.generators import PromptLike
from cfg_distill.sampling.redraw import redrawn
from cfg_distill.sampling.samples import Samples

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation


def drawn_for_step(
    module: CFGDistillation, batch: Sequence[PromptLike], places: Sequence[int]
) -> tuple[Samples, Tensor, int]:
    """Samples to learn from, which of them are degenerate, ``[B, G]``, and how many were drawn again.

    Args:
        module: the one that takes the step.
        batch: B prompts.
        places: of the prompts among those of the step on all devices.
    """

    def draw(numbers: Sequence[int], attempt: int) -> Samples:
        seeds = module._rollout_seed(module.global_step, [places[b] for b in numbers], attempt)
        return to_learn_from(module, [batch[b] for b in numbers], seeds)

    def degenerate(samples: Samples) -> Tensor:
        return degenerate_of(module.mix, samples, module.global_step)

    with sampling_from(module, module.teacher if module.off_policy else module.student):
        return redrawn(draw(range(len(batch)), 0), degenerate, draw, module.redraw, module.student.pad_token)
