"""What a step asks of its losses before it scores: advantages, rewards, which samples are degenerate. Failures name the sample.

Shapes: B prompts, G samples per prompt, N = B G.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cfg_distill.errors import PartError, blamed, shortened
from cfg_distill.losses import Loss
from cfg_distill.rewards.base import empty
from cfg_distill.sampling.samples import Samples


def advantages_of(losses: Mapping[str, Loss], samples: Samples, step: int) -> dict[str, Tensor | None]:
    """The advantage of each sample by the name of the loss; None for a loss that needs none.

    Raises:
        ConfigError: a reward or an embedder returned what it must not.
        PartError: it raised an exception, which is the cause.
    """
    found = {}
    for name, loss in losses.items():
        with _on(samples, step), blamed(loss, f"model.losses.{name}"):
            found[name] = loss.advantage(samples)
    return found


def degenerate_of(losses: Mapping[str, Loss], samples: Samples, step: int) -> Tensor:
    """Which samples are degenerate for any of the losses, ``[B, G]``; which are empty, where no loss has an opinion.

    Raises:
        ConfigError: a reward returned something else than bool ``[B, G]``.
        PartError: a reward or an embedder raised an exception, which is the cause.
    """
    found = []
    for name, loss in losses.items():
        with _on(samples, step), blamed(loss, f"model.losses.{name}"):
            opinion_BG = loss.degenerate(samples)
            if opinion_BG is not None:
                found.append(opinion_BG.cpu())
    return torch.stack(found).any(0) if found else empty(samples)


@contextmanager
def _on(samples: Samples, step: int) -> Iterator[None]:
    """Say in which step, and on which sample, a part failed."""
    try:
        yield
    except PartError as error:
        given = f" in step {step}, on {_named(samples, error.outputs)} The student is as the step before left it."
        raise PartError(error.part, error.key, error.outputs, given) from error.__cause__


def _named(samples: Samples, outputs: Any) -> str:
    if len(outputs) == 1:
        b, g = divmod(outputs[0], samples.group)
        return f"sample {g + 1} of prompt `{samples.prompts[b]}`: {shortened(repr(samples.outputs[outputs[0]]), 120)}."
    if outputs:
        return f"the samples of prompt `{samples.prompts[outputs[0] // samples.group]}`."
    shown = ", ".join(f"`{shortened(prompt, 120)}`" for prompt in samples.prompts[:3])
    return f"{samples.group} samples each of {len(samples.prompts)} prompts: {shown}{', ...' * (len(samples.prompts) > 3)}."
