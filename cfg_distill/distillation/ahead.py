"""Rollouts of an engine beside training: the samples of the next step are drawn while this one trains.

    max_staleness 0    | draw 0 | train 0 | draw 1 | train 1 | draw 2 | train 2 |       drawn by the student of the same step
    max_staleness 1    | draw 0 | train 0 | train 1 | train 2 |
                                | draw 1  | draw 2  |                                   drawn by the student one step before

The divergence is computed under the student as it is, on samples that are one step old. The policy gradient has the importance
ratio of the two students. The first step of a run, of an epoch, and after a resumption draws its own samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer

from cfg_distill.distillation.dial import dialled_ahead
from cfg_distill.distillation.sharding import FSDP2
from cfg_distill.errors import Context, Problem, problems_of
from cfg_distill.generators import PromptLike
from cfg_distill.losses import Divergence
from cfg_distill.sampling import Places, Rollout, Seeds
from cfg_distill.sampling.samples import Samples, decoded

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation


@runtime_checkable
class Foreseeing(Protocol):
    """A data module that knows the next batch, as :class:`cfg_distill.data.PromptData` does."""

    def upcoming(self) -> Sequence[PromptLike]:
        """The prompts of this process's next training batch; empty at the end of an epoch."""
        ...


@dataclass
class _Begun:
    """A rollout that runs, and whose samples it will have."""

    prompts: Sequence[PromptLike]
    seeds: Seeds
    finish: Callable[[], Rollout]


class Ahead:
    """The rollout of the next step, where the sampler may be a step ahead."""

    def __init__(self) -> None:
        self._begun: _Begun | None = None

    def taken(self, module: CFGDistillation, prompts: Sequence[PromptLike], seeds: Seeds) -> Samples | None:
        """The samples that were begun in the step before; None where there are none for these prompts and keys."""
        begun, self._begun = self._begun, None
        if begun is None or list(begun.prompts) != list(prompts) or begun.seeds != seeds:
            return None
        return decoded(module.student, prompts, replace(begun.finish(), steps_behind=1))

    def begin(self, module: CFGDistillation) -> None:
        """Begin the rollout of the next step from the student as it is, at the dial's setting of that step."""
        data = module.trainer.datamodule  # type: ignore[attr-defined]
        if module.sampler.max_staleness == 0 or not isinstance(data, Foreseeing) or not (prompts := data.upcoming()):
            return
        seeds = module._rollout_seed(module.global_step + 1, [*Places().of(module, len(prompts), begins=True)])
        with dialled_ahead(module):
            finish = module.sampler.begin(module.student, prompts, module.sampling, seeds, module.conditioner)
        self._begun = _Begun(prompts, seeds, finish)


def problems_of_sampler(module: CFGDistillation, context: Context, is_readable: bool) -> list[Problem]:
    """What is wrong with a sampler, and why it cannot draw from this student; keys are relative to ``model``."""
    sampler, found = module.sampler, []
    if module.off_policy and not sampler.is_own_loop:
        text = "expected none under `@/model.off_policy`: the guided teacher draws the samples. Remove it."
        found.append(Problem("sampler", text))
    stale = [name for name, loss in module.mix.items() if isinstance(loss, Divergence) and loss.score_term]
    if sampler.max_staleness and stale:
        text = (
            "expected false under a `@/model.sampler.init_args.max_staleness` above 0: it needs samples of this step."
        )
        found += [Problem(f"losses.{name}.init_args.score_term", text) for name in stale]
    found += problems_of(sampler, context, under="sampler.init_args")
    if found or not is_readable:
        return found
    return [each.under("sampler.init_args") for each in sampler.problems_with(module.student, module.sampling)]


def problems_of_sampler_with(module: CFGDistillation, trainer: Trainer) -> list[Problem]:
    """What a sampler cannot do under a trainer; keys are relative to ``model``."""
    sampler = module.sampler
    if sampler.is_own_loop:
        return []
    found = problems_of_sampler_in_shards(module) if isinstance(trainer.strategy, FSDP2) else []
    if sampler.max_staleness and trainer.accumulate_grad_batches > 1:
        text = (
            "expected 1 under a `@/model.sampler.init_args.max_staleness` above 0, but got"
            f" {trainer.accumulate_grad_batches}. Raise `@/data.init_args.batch_size` instead; `@/model.micro_batch` bounds the"
            " memory."
        )
        found.append(Problem("/trainer.accumulate_grad_batches", text))
    return found + [each.under("sampler.init_args") for each in sampler.problems_in(trainer.world_size, module.student)]


def problems_of_sampler_in_shards(module: CFGDistillation) -> list[Problem]:
    """What a sampler cannot do under fsdp2."""
    if module.sampler.is_own_loop:
        return []
    text = "expected auto or ddp where an engine is the `@/model.sampler`, but got fsdp2, whose weights are in shards."
    return [Problem("/trainer.strategy", text)]


def problems_of_data_for_sampler(module: CFGDistillation, data: Any) -> list[Problem]:
    """Data that do not know their next batch."""
    if module.sampler.max_staleness == 0 or isinstance(data, Foreseeing):
        return []
    text = (
        "expected 0 unless the data are a PromptData, or have its method `upcoming`, but got"
        f" {module.sampler.max_staleness}. Set it to 0."
    )
    return [Problem("/model.sampler.init_args.max_staleness", text)]
