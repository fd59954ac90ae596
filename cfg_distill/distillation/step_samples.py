"""The samples that a step learns from. Shapes: B prompts, G samples per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cfg_distill.distillation.asked import degenerate_of
from cfg_distill.distillation.off_policy import to_learn_from
from cfg_distill.distillation.sharding import in_equal_length, sampling_from
from cfg_distill.generators import PromptLike
from cfg_distill.sampling.redraw import redrawn
from cfg_distill.sampling.samples import Samples
from cfg_distill.sampling.seeds import Seeds

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation


def drawn_for_step(module: CFGDistillation, batch: Sequence[PromptLike]) -> tuple[Samples, Tensor]:
    """Samples to learn from, and which of them are degenerate, ``[B, G]``.

    Args:
        module: the one that takes the step.
        batch: B prompts.
    """
    # Of the prompts among those of the step on all devices.
    places = module._places.of(module, len(batch), module._step.begins)

    def seeds(numbers: Sequence[int], attempt: int) -> Seeds:
        return module._rollout_seed(module.global_step, [places[b] for b in numbers], attempt)

    def draw(numbers: Sequence[int], attempt: int) -> Samples:
        return to_learn_from(module, [batch[b] for b in numbers], seeds(numbers, attempt))

    def degenerate(samples: Samples) -> Tensor:
        return degenerate_of(module.mix, samples, module.global_step)

    with sampling_from(module, module.teacher if module.off_policy else module.student):
        every = range(len(batch))
        first = module._ahead.taken(module, batch, seeds(every, 0)) or draw(every, 0)
        samples, degenerate_BG, num_redrawn = redrawn(first, degenerate, draw, module.redraw, module.student.pad_token)
        module._ahead.begin(module)
    shown = {"degenerate": degenerate_BG.float().mean(), "redrawn": torch.tensor(float(num_redrawn))}
    if module.sampler.max_staleness:
        shown["staleness"] = torch.tensor(float(samples.rollout.steps_behind))
    module.log_dict({f"train/{name}": value for name, value in shown.items()})
    return in_equal_length(module, samples), degenerate_BG
