"""The floor of a step: its matrix products with weights, each alone. What else a step does is above the floor."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any, Literal

import torch
from measure import now
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ONEDNN = torch.ops.mkldnn._linear_pointwise.default
PRODUCTS = {
    torch.ops.aten.mm.default: slice(0, 2),
    torch.ops.aten.addmm.default: slice(1, 3),
    torch.ops.aten.addmm_.default: slice(1, 3),
    ONEDNN: slice(0, 2),
}
"""Operators, and which of their arguments are the two factors."""

BYTES = 2**26
"""Bytes of factors that a timed product goes through in turn, so that none is in a cache already, as in a model."""

Factor = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
Kernel = Literal["torch", "onednn", "packed"]
Product = tuple[Kernel, Factor, Factor]


class Recorded(TorchDispatchMode):
    """Counts the products of what runs inside, by shapes, strides and kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            left, right = args[PRODUCTS[func]]
            kernel: Kernel = "torch" if func is not ONEDNN else "packed" if right.is_mkldnn else "onednn"
            self.products[kernel, _factor(left), _factor(right)] += 1
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
    plain = (tensor.shape[1], 1)  # of a packed factor, which has none, and of an expanded one
    strides = plain if tensor.is_mkldnn or 0 in tensor.stride() else tensor.stride()
    return tuple(tensor.shape), strides, tensor.dtype


def _rows(factor: Factor) -> int:
    return torch.Size(factor[0][:-1]).numel()


@torch.no_grad()
def _time(product: Product) -> float:
    kernel, left, right = product
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = torch.Size(right[0]).numel() * right[2].itemsize
    num_pairs = min(32, max(1, BYTES // size))
    first = [torch.empty_strided(*factor[:2], dtype=factor[2], device=device).normal_() for factor in (left, right)]
    pairs = [[factor.clone() for factor in first] for _ in range(num_pairs)]
    if kernel == "packed":
        pairs = [[one, torch.ops.mkldnn._reorder_linear_weight(other, None)] for one, other in pairs]
    samples = []
    for _ in range(5):
        began = now()
        for one, other in pairs:
            if kernel == "torch":
                torch.mm(one, other)
            else:
                ONEDNN(one, other, None, "none", [], "")
        samples.append((now() - began) / num_pairs)
    return statistics.median(samples[1:])
