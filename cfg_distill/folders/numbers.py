"""Which weights are numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def not_numbers(weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the weights that hold NaN or infinity.

    A bias may hold minus infinity: some models forbid a token so.

    Example:
        >>> import torch
        >>> nan, forbidden = torch.tensor([torch.nan]), torch.tensor([-torch.inf])
        >>> not_numbers([("a", nan), ("bias", forbidden), ("norm", forbidden), ("b.bias", -forbidden), ("c", torch.ones(2))])
        ['a', 'norm', 'b.bias']
    """
    return [name for name, weight in weights if not _are_numbers(weight, name)]


def _are_numbers(weight: Tensor, name: str) -> bool:
    finite = weight.isfinite()
    if weight.ndim < 2 and name.endswith("bias"):
        finite |= weight == -torch.inf
    return bool(finite.all())
