"""Matrix products with weights on a CPU, in float32, by oneDNN.

torch multiplies float32 matrices by its BLAS, which on many processors (AMD's with AVX-512 among them) reaches less than
half of what oneDNN does. Training, the teacher and the losses multiply many rows: oneDNN takes the weight as it lies.
Decoding multiplies few rows and is bound by reading the weight: oneDNN is given it in its own blocked layout, once a rollout.
Rounding aside the products are the same. Measured in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from cfg_distill.generators.lora import NAME, lora_layers

PACKED = "packed_weight"
"""The attribute of a weight that holds it laid out anew."""

LEAST_ROWS, LEAST_SIDE, LEAST_WORK = 4, 64, 2**21
"""The fewest rows, the narrowest weight and the least product of all three from which oneDNN pays for its call."""


_switch = ContextVar("onednn", default=True)


@contextmanager
def onednn(enabled: bool) -> Iterator[None]:
    """Whether oneDNN makes products, until the context ends; without it all are torch's own: the plain twin."""
    token = _switch.set(enabled)
    try:
        yield
    finally:
        _switch.reset(token)


class Linear(nn.Linear):
    """A linear layer whose products are made by :func:`product`."""

    def forward(self, rows: Tensor) -> Tensor:
        return product(rows, self.weight, self.bias)


def use_products(model: nn.Module) -> None:
    """Make :func:`product` multiply in all plain linear layers of a model, in place. Weights and names stay what they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def is_linear(layer: Any) -> TypeGuard[nn.Linear]:
    """Whether a layer is the plain linear map of its weight and bias, and no class of a library that only looks like one."""
    return type(layer) in (nn.Linear, Linear)


def can_use_onednn(weight: Tensor) -> bool:
    """Whether oneDNN serves this weight: a plain float32 matrix on a CPU, and no mixed precision."""
    return (
        _switch.get()
        and type(weight) in (Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` of torch, by oneDNN where it is the faster: ``[..., D]`` and ``[V, D]`` to ``[..., V]``.

    Where no gradient is asked for, by the packed weight while there is one. Can be differentiated once.
    """
    packed_weight = None if torch.is_grad_enabled() else getattr(weight, PACKED, None)
    if packed_weight is not None:
        return _onednn(rows, packed_weight, bias) if packed_weight.is_mkldnn else linear(rows, packed_weight, bias)
    if not (can_use_onednn(weight) and rows.dtype == torch.float32 and _pays(rows.numel() // rows.shape[-1], weight)):
        return linear(rows, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (rows, weight, bias)):
        return _Product.apply(rows, weight, bias)
    return _onednn(rows, weight, bias)


def times_weight(rows_MV: Tensor, weight_VD: Tensor) -> Tensor:
    """The gradient of a product's rows: ``[M, V]`` and ``[V, D]`` to ``[M, D]``, without gradient."""
    if can_use_onednn(weight_VD) and rows_MV.dtype == torch.float32 and _pays(len(rows_MV), weight_VD):
        return _onednn(rows_MV, weight_VD.t(), None)
    return rows_MV @ weight_VD.to(rows_MV.dtype)


def _pays(num_rows: int, weight: Tensor) -> bool:
    return num_rows >= LEAST_ROWS and min(weight.shape) >= LEAST_SIDE and num_rows * weight.numel() >= LEAST_WORK


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """A product whose gradients are products by oneDNN, too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _onednn(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad
        grad_MV, rows_MD = grad.flatten(0, -2), rows.flatten(0, -2)
        return (
            _onednn(grad, weight.t(), None) if needs_rows else None,
            _onednn(grad_MV.t(), rows_MD.t(), None) if needs_weight else None,
            grad_MV.sum(0) if needs_bias else None,
        )


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Keep the weights of a model's linear layers as decoding reads them fastest, until the context ends.

    On a CPU in float32 that is oneDNN's layout, with an adapter folded in; under mixed precision, on any device, the weight in
    the lower one, which autocast would make anew at every position. It costs a copy of the weights, and the time of a few
    decoding steps. The weights must not move meanwhile. Other models stay as they are.
    """
    # peft's layers stand around the linear ones; their small factors are folded in and need no packing of their own.
    adapted = {id(layer.base_layer): layer for layer in lora_layers(model).values()}
    inside = {id(part) for layer in adapted.values() for part in layer.modules()} - adapted.keys()
    layers = [module for module in model.modules() if is_linear(module) and id(module) not in inside]
    changed: list[Any] = []
    try:
        for layer in layers:
            # Where products are of low precision, a folded adapter would be rounded away.
            outer: Any = adapted.get(id(layer), layer) if can_use_onednn(layer.weight) else layer
            weight = layer.weight.detach()
            if outer is not layer:
                weight = weight + outer.get_delta_weight(NAME)
            if (laid_out := _laid_out(weight)) is not None:
                setattr(layer.weight, PACKED, laid_out)
                outer.forward = _forward(layer)
                changed.append(outer)
        yield
    finally:
        for outer in changed:
            del outer.forward
        for layer in layers:
            if hasattr(layer.weight, PACKED):  # two layers may share one weight
                delattr(layer.weight, PACKED)


def _laid_out(weight: Tensor) -> Tensor | None:
    """The weight as few rows are multiplied by it fastest; None where it is that already."""
    if can_use_onednn(weight):
        return torch.ops.mkldnn._reorder_linear_weight(weight, None)
    device = weight.device.type
    if weight.dtype == torch.float32 and type(weight) in (Tensor, nn.Parameter) and torch.is_autocast_enabled(device):
        return weight.to(torch.get_autocast_dtype(device))
    return None


def _forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda rows: product(rows, layer.weight, layer.bias)
