"""One step of the optimiser: the batches that it adds up, the micro-batches that they are cut into, and its end.

Shapes: R ranks, L losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from cfg_distill.distillation.bad_steps import BadSteps
from cfg_distill.distillation.finite import gradient_norm, problems_of_optimizer
from cfg_distill.distillation.memory import with_less_memory
from cfg_distill.distillation.sharding import in_equal_number
from cfg_distill.errors import ConfigError
from cfg_distill.generators import PromptLike
from cfg_distill.losses import CellTerm, Divergence, Loss, mix
from cfg_distill.sampling.samples import Samples

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation

PATIENCE = 30
"""Steps in a row that a gradient scaler may skip. It begins at 2^16 and halves at each: by then float16 is not the cause."""


def micro_batches(prompts: Sequence[PromptLike], group: int, size: int) -> list[tuple[Sequence[PromptLike], slice]]:
    """Prompts and rows to be scored together, in the order of the rows.

    Args:
        prompts: of a batch.
        group: G, the rows of each.
        size: rows at once, a divisor or a multiple of G; 0 for all.

    Example:
        >>> micro_batches(["a", "b"], group=2, size=1)[:3]
        [(['a'], slice(0, 1, None)), (['a'], slice(1, 2, None)), (['b'], slice(2, 3, None))]
        >>> micro_batches(["a", "b", "c"], group=2, size=4)
        [(['a', 'b'], slice(0, 4, None)), (['c'], slice(4, 8, None))]
    """
    if not size:
        return [(prompts, slice(None))]
    if size < group:
        starts = range(0, len(prompts) * group, size)
        return [([prompts[start // group]], slice(start, start + size)) for start in starts]
    together = size // group
    return [
        (prompts[first : first + together], slice(first * group, (first + together) * group))
        for first in range(0, len(prompts), together)
    ]


@dataclass
class Batch:
    """The samples of a batch, and all that their gradient needs: it can be computed again.

    Attributes:
        samples: the decoded groups.
        advantages: of the samples, by loss.
        rewards: ``[B, G]`` by the losses that have one.
        weights: of the losses in this step.
        watched: functions of cells that are summed too.
        sums: the unweighted sum of each loss, and of what is watched, once they are computed.
    """

    samples: Samples
    advantages: Mapping[str, Tensor | None]
    rewards: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    watched: Mapping[str, CellTerm]
    sums: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.samples.outputs)

    @property
    def loss(self) -> Tensor:
        """The weighted sum of the losses."""
        return torch.stack([weight * self.sums[name] for name, weight in self.weights.items()]).sum()

    def means(self) -> dict[str, Tensor]:
        """Each sum, per cell."""
        cells = self.samples.rollout.mask_NKT.sum()
        return {name: value / cells for name, value in self.sums.items()}

    def weights_of_samples(self) -> dict[str, Tensor]:
        """The advantage of each sample, ``[N]``, by the losses that have one; not what else they fixed."""
        return {name: each for name, each in self.advantages.items() if each is not None and each.ndim == 1}

    def differentiate(self, module: CFGDistillation, size: int) -> None:
        """Add the gradient of the batch to the student's, a micro-batch at a time.

        Args:
            module: the one that takes the step.
            size: samples at once; 0 for all.
        """
        losses = module.mix
        sums: dict[str, Tensor] = {}
        parts = micro_batches(self.samples.asked, module.sampling.samples, size)
        for (prompts, rows), counts in in_equal_number(module, parts):
            total, part = mix(
                losses,
                module.score(self.samples, prompts, rows),
                self.weights,
                self.advantages,
                self.watched,
                module.execution.logits_chunk,
            )
            sums = {name: sums.get(name, 0.0) + value * counts for name, value in part.items()}
            # Divided by a constant here, by the true count of all batches and ranks before the optimiser steps.
            share = total * counts / count_scale(module) / module.trainer.accumulate_grad_batches
            # The graph of a micro-batch is gone before the next one's is made; autocast is for forward passes.
            with torch.autocast(share.device.type, enabled=False):
                module.trainer.strategy.backward(share, None)
        self.sums = sums


def count_scale(module: CFGDistillation) -> int:
    """A constant of the order of one prompt's count: it keeps the gradients of half precision in range."""
    return module.sampling.samples * (module.sampling.max_new_tokens if module.reduction == "mean" else 1)


def watched_sums(
    module: CFGDistillation, samples: Samples, watched: Mapping[str, CellTerm], size: int
) -> dict[str, Tensor]:
    """Sums over the cells of samples, a micro-batch at a time, without any loss.

    Args:
        module: whose student and teacher score the samples.
        samples: the decoded groups.
        watched: the functions of cells to sum.
        size: samples at once; 0 for all.
    """
    sums: dict[str, Tensor] = {}
    for (prompts, rows), counts in in_equal_number(module, micro_batches(samples.asked, module.sampling.samples, size)):
        part = mix({}, module.score(samples, prompts, rows), {}, {}, watched, module.execution.logits_chunk)[1]
        sums = {name: sums.get(name, 0.0) + value * counts for name, value in part.items()}
    return sums


def values_of_step(losses: Mapping[str, Loss], batch: Batch, count: Tensor) -> dict[str, Tensor]:
    """What is logged of a batch: length, each loss and its weight, and what the losses log of themselves.

    Args:
        losses: by name.
        batch: whose gradient is computed.
        count: of the batch.
    """
    shown = {"train/length": batch.samples.rollout.length_N.float().mean()}
    means = batch.means()
    for name, loss in losses.items():
        shown[f"train/{name}"] = batch.sums[name] / count
        shown[f"weight/{name}"] = batch.weights[name]
        if loss.is_over_cells:
            loss.logs["per_token"] = means[name]
        shown |= {f"train/{name}_{key}": value for key, value in loss.logs.items()}
    return shown | overview(losses, shown)


def reference_of(losses: Mapping[str, Loss]) -> str:
    """The loss whose gradient ``gradient_ratio/*`` divides by: the first divergence of the mix, else the first loss."""
    return next((name for name, loss in losses.items() if isinstance(loss, Divergence)), next(iter(losses)))


def overview(losses: Mapping[str, Loss], logged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers to watch first, once more under one group: a logger shows ``overview/*`` side by side.

    Args:
        losses: the mix.
        logged: values by the names they have in a log.
    """
    tags = {f"train/{reference_of(losses)}_per_token": "kl_per_token"}
    rewarded = next(
        (name for name in losses if f"train/{name}_reward" in logged or f"gradient_ratio/{name}" in logged), ""
    )
    tags |= {f"train/{rewarded}_reward": "reward", f"gradient_ratio/{rewarded}": "gradient_ratio"}
    return {f"overview/{name}": logged[tag] for tag, name in tags.items() if tag in logged}


class Step:
    """The batches that one step of the optimiser accumulates.

    Attributes:
        batches: of this rank, so far.
        bad: the steps that were skipped.
        overflows: steps in a row that a gradient scaler has skipped.
    """

    def __init__(self, max_bad_steps: int) -> None:
        self.batches: list[Batch] = []
        self.bad = BadSteps(max_bad_steps)
        self.overflows = 0

    @property
    def begins(self) -> bool:
        """Whether no batch has been added yet."""
        return not self.batches

    def add(self, module: CFGDistillation, batch: Batch) -> None:
        """Add the gradient of a batch to that of the step.

        When memory runs out, the gradient of a micro-batch may be there in part. So all batches of the step are repeated, from
        a gradient of zero. All this is within one rank: the gradients of the ranks are added up afterwards (:func:`ended`).
        (Not so in shards, where the ranks add them up layer by layer: there nothing is repeated.)
        """
        optimizer = cast(torch.optim.Optimizer, module.optimizers(use_pl_optimizer=False))
        self.batches.append(batch)
        tried = False

        def attempt(size: int) -> None:
            nonlocal tried
            anew = tried or len(self.batches) == 1
            tried = True
            if anew:
                # Here and not by Lightning, which would do it after the micro-batches.
                optimizer.zero_grad()
            for each in self.batches if anew else [batch]:
                each.differentiate(module, size)

        with_less_memory(module, max(each.num_samples for each in self.batches), attempt)

    def close(self, module: CFGDistillation, optimizer: torch.optim.Optimizer) -> None:
        """Turn Lightning's mean of means over micro-batches and ranks into all-reduced sum over all-reduced count.

        A step whose loss, reward or gradient is NaN or infinite is skipped, on all ranks alike: an optimiser moves no parameter
        without a gradient, nor its own state. The next step begins.

        Raises:
            ConfigError: too many bad steps in a row, or a number of the optimiser is not finite; on all ranks alike.
        """
        batches, self.batches = self.batches, []
        count = torch.stack([module.count.of_rows(each.samples.rollout.mask_NKT) for each in batches]).sum()
        samples = sum(each.num_samples for each in batches)
        norm = gradient_norm(module.student.parameters()).to(count.device)
        is_finite = torch.stack([norm, *_looked_at(batches)]).isfinite().all()
        own_3 = torch.stack([count, torch.full_like(count, samples), is_finite]).float()
        # One message per step: the verdict travels with the counts.
        every_R3 = cast(Tensor, module.all_gather(own_3)).view(-1, 3)
        if every_R3[:, 2].all():
            self.overflows, self.bad.in_a_row = 0, 0
        elif not self._is_overflow(module, batches):
            self.bad.meet(module, batches)
            module.student.zero_grad(set_to_none=True)
            return
        if found := problems_of_optimizer(optimizer):
            raise ConfigError([problem.under("model") for problem in found])
        divisor = float(module.count.close(every_R3[:, 0].mean(), every_R3[:, 1].mean()))
        factor = count_scale(module) * module.trainer.accumulate_grad_batches / divisor
        for gradient in [p.grad for p in module.student.parameters() if p.grad is not None]:
            gradient.mul_(factor)

    def _is_overflow(self, module: CFGDistillation, batches: Sequence[Batch]) -> bool:
        """Whether a gradient scaler is to blame, which skips the step itself.

        Scaled for float16, a sound gradient may overflow. The scaler then skips the step and lowers its factor, which is how it
        finds one. A loss that is not finite has another cause, and so have many skipped steps in a row.
        """
        plugin = module.trainer.precision_plugin
        if not isinstance(plugin, MixedPrecision) or plugin.scaler is None:
            return False
        own = torch.stack(_looked_at(batches)).isfinite().all()
        self.overflows += 1
        return self.overflows < PATIENCE and bool(cast(Tensor, module.all_gather(own)).all())


def _looked_at(batches: Sequence[Batch]) -> list[Tensor]:
    """Numbers of which one is not finite where a loss or a reward is not."""
    sums = [each.sums[name].float() for each in batches for name in each.weights]
    rewards = [reward_BG.float().sum() for each in batches for reward_BG in each.rewards.values()]
    return sums + [each.to(sums[0].device) for each in rewards]


# What Lightning differentiates is a stub: the gradients are there already. The stub exists for DDP, which adds up the ranks'
# gradients while it sees the parameters' turn come in a backward pass:
#
#   training_step   rank 0: | micro-batch | micro-batch |                        gradients of each rank, in its own time:
#                   rank 1: | micro-batch | no memory! | half | half | half |    it may begin anew without telling anybody
#   backward        both:   | zeros for each parameter; DDP adds up the ranks |
class _Stub(torch.autograd.Function):
    """A value with a gradient of zero for each parameter."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        # One zero that is seen everywhere takes no memory.
        zeros = (torch.zeros((), dtype=p.dtype, device=p.device).expand_as(p) for p in ctx.parameters)
        return None, *zeros


def ended(module: CFGDistillation, loss: Tensor) -> Tensor:
    """The loss of a batch whose gradient is there already, for Lightning to differentiate: DDP then adds up the ranks."""
    if isinstance(module.trainer.strategy, DDPStrategy):
        parameters = [p for p in module.student.parameters() if p.requires_grad]
    else:
        parameters = [nn.Parameter(torch.zeros(()))]
    return cast(Tensor, _Stub.apply(loss, *parameters))
