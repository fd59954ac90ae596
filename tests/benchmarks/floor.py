"""The floor of a step: its matrix products with weights, each alone. What else a step does is above the floor."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import torch
from measure import now
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PACKED = torch.ops.mkldnn._linear_pointwise.default
PRODUCTS = {
    torch.ops.aten.mm.default: slice(0, 2),
    torch.ops.aten.addmm.default: slice(1, 3),
    torch.ops.aten.addmm_.default: slice(1, 3),
    PACKED: slice(0, 2),
}
"""Operators, and which of their arguments are the two factors."""

BYTES = 2**26
"""Bytes of factors that a timed product goes through in turn, so that none is in a cache already, as in a model."""

Factor = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
Product = tuple[bool, Factor, Factor]


class Recorded(TorchDispatchMode):
    """Counts the products of what runs inside, by shapes, strides and kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            left, right = (_factor(tensor) for tensor in args[PRODUCTS[func]])
            self.products[func is PACKED, left, right] += 1
        return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> float:
        """Of all products."""
        return sum(
            2.0 * _rows(left) * right[0][0] * right[0][1] * count for (_, left, right), count in self.products.items()
        )

    def seconds(self) -> float:
        """What the products take when nothing else is done."""
        return sum(count * _time(product) for product, count in self.products.items())


def _factor(tensor: Tensor) -> Factor:
    strides = (tensor.shape[1], 1) if tensor.is_mkldnn else tensor.stride()
    return tuple(tensor.shape), strides, tensor.dtype


def _rows(factor: Factor) -> int:
    return torch.Size(factor[0][:-1]).numel()


@torch.no_grad()
def _time(product: Product) -> float:
    is_packed, left, right = product
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = torch.Size(right[0]).numel() * right[2].itemsize
    num_pairs = min(32, max(1, BYTES // size))
    pairs = []
    for _ in range(num_pairs):
        pair = [torch.empty_strided(*factor[:2], dtype=factor[2], device=device).normal_() for factor in (left, right)]
        if is_packed:
            pair[1] = torch.ops.mkldnn._reorder_linear_weight(pair[1], None)
        pairs.append(pair)
    samples = []
    for _ in range(5):
        began = now()
        for one, other in pairs:
            if is_packed:
                PACKED(one, other, None, "none", [], "")
            else:
                torch.mm(one, other)
        samples.append((now() - began) / num_pairs)
    return statistics.median(samples[1:])
