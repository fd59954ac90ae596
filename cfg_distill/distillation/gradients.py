"""How hard each term of a mix pulls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def norms(
    parameters: Sequence[nn.Parameter], terms: Mapping[str, Iterable[Tensor]], reduce: Callable[[Tensor], Any]
) -> dict[str, Tensor]:
    """Norm of the gradient of each term, summed over its parts and over all ranks: no split changes it.

    The terms take turns in the place of the gradients, where their parts add up; what stood there stands there again at the
    end. So a measurement takes the memory of a step, and that of gradients of earlier batches, where there are some.

    Args:
        parameters: that are trained.
        terms: the parts of each term, scalars whose backward pass is run as they come.
        reduce: the sum of a tensor over ranks.
    """
    kept = [p.grad for p in parameters]
    found = {}
    for name, parts in terms.items():
        for parameter in parameters:
            parameter.grad = None
        for part in parts:
            part.backward()
        # Every rank takes part for every parameter: what one rank did not use, another may have.
        sums = (reduce(torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters)
        found[name] = torch.stack([gradient.norm() for gradient in sums]).norm()
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
    return found
