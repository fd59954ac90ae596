"""How hard each term of a mix pulls: the norms of their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cfg_distill.checkpoints.shards import whole
from cfg_distill.distillation.memory import with_less_memory
from cfg_distill.distillation.sharding import in_equal_number
from cfg_distill.distillation.step import count_scale, micro_batches, overview, reference_of
from cfg_distill.losses import mix
from cfg_distill.sampling.samples import Samples

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation

LARGEST_RATIO = 3.0
"""A term whose gradient is longer than this many times that of the divergence outweighs the teacher."""
PATIENCE = 5
"""Measurements in a row: the ratio is large for some steps where a fit begins."""


def norms(
    parameters: Sequence[nn.Parameter], terms: Mapping[str, Callable[[], None]], reduce: Callable[[Tensor], Any]
) -> dict[str, Tensor]:
    """Norm of the gradient of each term, summed over all ranks: no split changes it.

    Each term's gradient is that of the parameters for a while, one term after the other; earlier gradients are restored at the
    end. So a measurement takes the memory of a step, and of the earlier gradients where there are some.

    Args:
        parameters: the trained ones.
        terms: the backward pass of each term, which leaves its gradient, and no other, in the parameters.
        reduce: the sum of a tensor over ranks.
    """
    kept = [p.grad for p in parameters]
    found = {}
    for name, differentiate in terms.items():
        differentiate()
        # Every rank takes part for every parameter: what one rank did not use, another may have.
        sums = (reduce(torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters)
        found[name] = torch.stack([whole(gradient.norm()) for gradient in sums]).norm()
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
    return found


def norms_of_step(
    module: CFGDistillation, samples: Samples, advantages: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """Norm of the gradient of each unweighted loss over one batch of all ranks, divided by their common count as a step is.

    Args:
        module: the one that takes the step.
        samples: the batch.
        advantages: of the samples, by loss.
    """
    losses = module.mix
    parameters = [p for p in module.student.parameters() if p.requires_grad]
    mask_NKT = samples.rollout.mask_NKT

    def differentiate(name: str, size: int) -> None:
        for parameter in parameters:
            parameter.grad = None
        parts = micro_batches(samples.asked, module.sampling.samples, size)
        for (prompts, rows), counts in in_equal_number(module, parts):
            inputs = module.score(samples, prompts, rows)
            total, _ = mix({name: losses[name]}, inputs, {name: 1.0}, advantages, chunk=module.execution.logits_chunk)
            (total * counts / count_scale(module)).backward()

    def of(name: str) -> Callable[[], None]:
        # Memory may run out on one rank: it repeats its own part, and the others wait where they add up.
        return lambda: with_less_memory(module, len(mask_NKT), partial(differentiate, name))

    everywhere = partial(module.trainer.strategy.reduce, reduce_op="sum")

    def added_up(gradient: Tensor) -> Tensor:
        # In shards the backward pass has averaged it over the ranks.
        return gradient * module.trainer.world_size if isinstance(gradient, DTensor) else everywhere(gradient)

    counts_2 = torch.stack(
        [module.count.of_rows(mask_NKT), torch.tensor(len(mask_NKT), device=mask_NKT.device)]
    ).float()
    scale = count_scale(module) / module.count.of_step(*cast(Tensor, everywhere(counts_2)))
    found = norms(parameters, {name: of(name) for name in losses}, added_up)
    return {name: norm * scale for name, norm in found.items()}


def as_logged(norms: Mapping[str, Tensor], weights: Mapping[str, Tensor], reference: str) -> dict[str, Tensor]:
    """Weighted norms and their ratios, by the names they have in a log.

    Args:
        norms: of the unweighted losses.
        weights: the weights of this step.
        reference: the loss that the ratios divide by.

    Example:
        >>> two, three = torch.tensor(2.0), torch.tensor(3.0)
        >>> as_logged({"kl": two, "diversity": three}, {"kl": two, "diversity": two}, reference="kl")
        {'gradient_norm/kl': tensor(4.), 'gradient_norm/diversity': tensor(6.), 'gradient_ratio/diversity': tensor(1.5000)}
    """
    weighted = {name: weights[name] * norm for name, norm in norms.items()}
    ratios = {name: norm / weighted[reference] for name, norm in weighted.items() if name != reference}
    return {f"gradient_norm/{name}": norm for name, norm in weighted.items()} | {
        f"gradient_ratio/{name}": ratio for name, ratio in ratios.items()
    }


def log_measured(module: CFGDistillation, values: Mapping[str, Tensor]) -> None:
    """Log values that only some steps have: Lightning's own logging would repeat them at every step of the epoch."""
    module.log_dict(dict(values), logger=False)  # for callbacks
    for logger in module.trainer.loggers:
        logger.log_metrics({name: float(value) for name, value in values.items()}, step=module.global_step)


class RatioWatch:
    """Measures gradients; and warns, once per loss, when one has outweighed the divergence for long."""

    def __init__(self) -> None:
        self._weights: dict[str, list[float]] = {}

    def measure(
        self,
        module: CFGDistillation,
        samples: Samples,
        advantages: Mapping[str, Tensor | None],
        weights: Mapping[str, Tensor],
    ) -> None:
        """Measure the gradients of a batch, for callbacks and for the log, and warn.

        Args:
            module: the one that takes the step. No warning where a callback has it measure, which sets the weight itself.
            samples: the batch.
            advantages: of the samples, by loss.
            weights: of this step.
        """
        if module._step.begins:
            # The step before is over: with its gradients, a measurement would hold two.
            module.student.zero_grad(set_to_none=True)
        module.gradient_norms = norms_of_step(module, samples, advantages)
        reference = reference_of(module.mix)
        found = as_logged(module.gradient_norms, weights, reference)
        for said in () if module.measure_gradients else self.remarks(found, weights, reference):
            rank_zero_warn(said)
        log_measured(module, found | overview(module.mix, found))

    def remarks(self, logged: Mapping[str, Tensor], weights: Mapping[str, Tensor], reference: str) -> list[str]:
        """What to tell the user after a measurement, and the weight to set.

        Args:
            logged: see :func:`as_logged`.
            weights: of this step.
            reference: the loss that the ratios divide by.
        """
        found = []
        for name, weight in weights.items():
            ratio = float(logged.get(f"gradient_ratio/{name}", 0.0))
            seen = self._weights.setdefault(name, [])
            if len(seen) >= PATIENCE:
                continue  # it is said
            if not LARGEST_RATIO < ratio < math.inf:
                seen.clear()
                continue
            seen.append(float(weight) / ratio)
            if len(seen) == PATIENCE:
                found.append(
                    f"The gradient of `{name}` was more than {LARGEST_RATIO:g} times as long as that of `{reference}` in the"
                    f" last {PATIENCE} measurements, now {ratio:.3g} times: it outweighs the teacher. A weight of"
                    f" {sum(seen) / PATIENCE:.2g} makes it as long: set `model.losses.{name}.init_args.weight` to that or"
                    " less, or to `auto`, which calibrates it."
                )
        return found
