"""Weights laid out anew for the few rows of decoding on a CPU.

A matrix product of few rows is bound by reading the weight. BLAS reads it row by row as it lies and repacks it at every call;
oneDNN can be given the weight in its own blocked layout, once a rollout. On a processor with AVX-512, one core, the products
of a decoding step of SmolLM2-135M take 54 ms instead of 94 at 16 rows, 92 instead of 134 at 32. Rounding aside the products
are the same. See docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cfg_distill.generators.lora import NAME, lora_layers

PACKED = "packed_weight"
"""The attribute of a weight that holds it laid out anew."""

WIDE = 2**14
"""Outputs from which a layer is a head over a vocabulary."""


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN serves this weight: a plain float32 matrix on a CPU, and no mixed precision."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` of torch; where no gradient is asked for, by the packed weight while there is one.

    The head over a vocabulary goes to oneDNN as it lies, too: on a processor with AVX-512 it takes 41 ms instead of 57 for 64
    rows of SmolLM2.
    """
    if torch.is_grad_enabled():
        return linear(rows, weight, bias)
    packed_weight = getattr(weight, PACKED, None)
    if packed_weight is None and len(weight) >= WIDE and can_pack(weight):
        packed_weight = weight
    if packed_weight is None:
        return linear(rows, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(rows, packed_weight, bias, "none", [], "")


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Pack the weights of a model's linear layers, and fold an adapter into them, until the context ends.

    It costs a copy of the weights, and the time of about ten decoding steps. The weights must not move meanwhile. Where
    :func:`can_pack` says no, the model stays as it is.
    """
    # peft's layers stand around the linear ones; their small factors are folded in and need no packing of their own.
    adapted = {id(layer.base_layer): layer for layer in lora_layers(model).values()}
    inside = {id(part) for layer in adapted.values() for part in layer.modules()} - adapted.keys()
    layers = [module for module in model.modules()
              if type(module) is nn.Linear and id(module) not in inside and can_pack(module.weight)]  # fmt: skip
    changed: list[Any] = []
    try:
        for layer in layers:
            outer: Any = adapted.get(id(layer), layer)
            weight = layer.weight.detach()
            if outer is not layer:
                weight = weight + outer.get_delta_weight(NAME)
            setattr(layer.weight, PACKED, torch.ops.mkldnn._reorder_linear_weight(weight, None))
            outer.forward = _forward(layer)
            changed.append(outer)
        yield
    finally:
        for outer in changed:
            del outer.forward
        for layer in layers:
            if hasattr(layer.weight, PACKED):  # two layers may share one weight
                delattr(layer.weight, PACKED)


def _forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda rows: product(rows, layer.weight, layer.bias)
