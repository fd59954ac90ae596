"""Linear layers: matrix products with weights on a CPU, in float32, by oneDNN.

torch multiplies float32 matrices by its BLAS, Intel's MKL. On AMD's processors with AVX-512 that reaches less than half of
oneDNN's speed, on Intel's it is the faster one. Training, the teacher and the losses multiply many rows: oneDNN reads the
weight in its usual layout. Decoding multiplies few rows, and its time is the reading of the weight: for a rollout each layer
copies its weight once into oneDNN's own blocked layout. The products are the same up to rounding. Measured in
docs/performance.md.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from cfg_distill.generators.lora import NAME, lora_layers


def least_sizes(is_intel: bool, has_avx512: bool) -> tuple[int, int]:
    """From which product of rows and weight oneDNN multiplies, and from how many elements a weight is packed for a rollout.

    Without AVX-512 torch's own products are as fast, but for the largest; on Intel's processors they are faster whatever the
    size, and only large packed weights pay.
    """
    if is_intel:
        return sys.maxsize, 2**18
    return (2**21, 1) if has_avx512 else (2**27, 2**18)


def _is_intel() -> bool:
    about = Path("/proc/cpuinfo")  # Linux names no maker elsewhere
    if not about.is_file():
        return "GenuineIntel" in platform.processor()
    with about.open(encoding="utf-8") as lines:
        return any(
            "GenuineIntel" in line for line in islice(lines, 4)
        )  # the first processor's: all of a big machine take long


LEAST_ROWS, LEAST_SIDE = 4, 64
"""oneDNN pays for its call from this many rows, and this shorter side of the weight."""
LEAST_WORK, LEAST_PACKED = least_sizes(_is_intel(), torch.backends.cpu.get_cpu_capability() == "AVX512")

_Layer = TypeVar("_Layer", bound=nn.Module)
_switch = ContextVar("onednn", default=True)


@contextmanager
def onednn(enabled: bool) -> Iterator[None]:
    """Switch oneDNN's products on or off until the context ends. Off, all products are torch's own: the plain twin."""
    token = _switch.set(enabled)
    try:
        yield
    finally:
        _switch.reset(token)


class Linear(nn.Linear):
    """A linear layer that multiplies by :func:`product`, and owns a second copy of its weight while there is one.

    Attributes:
        packed_weight: the copy, in the form that multiplies few rows fastest. It may have an adapter added in. No buffer: the
            state dict and copies of the layer leave it out.
    """

    packed_weight: Tensor | None = None

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """A layer with the state of another: the very parameters, mode and hooks."""
        own = cls.__new__(cls)
        own.__setstate__(vars(layer))
        return own

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "packed_weight"}

    def forward(self, rows: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., V]``; without gradient by the packed weight, while there is one."""
        packed_weight = self.packed_weight
        if packed_weight is None or torch.is_grad_enabled():
            return product(rows, self.weight, self.bias)
        if packed_weight.is_mkldnn:
            return _onednn(rows, packed_weight, self.bias)
        return linear(rows, packed_weight, self.bias)


def use_products(model: nn.Module) -> None:
    """Put a :class:`Linear` in place of each plain linear layer inside a model. Parameters, names and modes stay."""
    replace_layers(model, nn.Linear, Linear.of)


def replace_layers(model: nn.Module, kind: type[_Layer], of: Callable[[_Layer], nn.Module]) -> None:
    """Put another layer in place of each layer of exactly this class inside a model, under the same name.

    A layer that stands in two places stays one layer.
    """
    own: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, layer in parent._modules.items():
            if type(layer) is kind:
                parent._modules[name] = own.setdefault(layer, of(layer))


def is_linear(layer: Any) -> TypeGuard[nn.Linear]:
    """Whether a layer is the plain linear map of its weight and bias; a library's subclass of ``nn.Linear`` is not."""
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
    """torch's ``linear``, by oneDNN where that is faster: ``[..., D]`` and ``[V, D]`` to ``[..., V]``.

    The result can be differentiated once.
    """
    if not (can_use_onednn(weight) and rows.dtype == torch.float32 and _pays(rows.numel() // rows.shape[-1], weight)):
        return linear(rows, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (rows, weight, bias)):
        return _Product.apply(rows, weight, bias)
    return _onednn(rows, weight, bias)


def times_weight(rows_MV: Tensor, weight_VD: Tensor) -> Tensor:
    """The gradient with respect to a product's rows: ``[M, V]`` and ``[V, D]`` to ``[M, D]``. It has no gradient itself."""
    if can_use_onednn(weight_VD) and rows_MV.dtype == torch.float32 and _pays(len(rows_MV), weight_VD):
        return _onednn(rows_MV, weight_VD.t(), None)
    return rows_MV @ weight_VD.to(rows_MV.dtype)


def _pays(num_rows: int, weight: Tensor) -> bool:
    return num_rows >= LEAST_ROWS and min(weight.shape) >= LEAST_SIDE and num_rows * weight.numel() >= LEAST_WORK


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """A product whose gradients are oneDNN's products, too."""

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
    """Give the :class:`Linear` layers of a model packed copies of their weights, until the context ends.

    On a CPU in float32 the copy has oneDNN's layout, with an adapter added in. Under mixed precision, on any device, the copy
    has the lower precision: autocast would cast the weight anew at every position. The copy costs memory, and the time of a
    few decoding steps. The weights must not change meanwhile. Other models stay as they are.

    Which layer multiplies by the copy::

        plain                       with an adapter, on a CPU in float32
        Linear(weight, copy)        lora.Linear(base_layer=Linear(weight, copy of weight + s B A), lora_A, lora_B)
        ^ multiplies                                   ^ multiplies; lora_A and lora_B rest, as in a merged layer of peft
    """
    # The factors of an adapter are linear layers too; their change is in the copy, and they need no copies of their own.
    adapted = {id(layer.base_layer): layer for layer in lora_layers(model).values()}
    factors = {id(part) for layer in adapted.values() for part in layer.modules()} - adapted.keys()
    layers = [module for module in model.modules() if isinstance(module, Linear) and id(module) not in factors]
    merged = []
    try:
        for layer in layers:
            weight = layer.weight.detach()
            outer = adapted.get(id(layer))
            # Under mixed precision the adapter is not added in: low precision would round it away.
            if outer is not None and can_use_onednn(layer.weight):
                weight = weight + outer.get_delta_weight(NAME)
                merged.append(outer)
                outer.merged_adapters = [NAME]
            layer.packed_weight = _laid_out(weight)
        yield
    finally:
        for layer in layers:
            layer.packed_weight = None
        for outer in merged:
            outer.merged_adapters = []


def _laid_out(weight: Tensor) -> Tensor | None:
    """The weight in the form that multiplies few rows fastest; None where only :func:`product` can tell."""
    if can_use_onednn(weight):
        return torch.ops.mkldnn._reorder_linear_weight(weight, None) if weight.numel() >= LEAST_PACKED else weight
    device = weight.device.type
    if weight.dtype == torch.float32 and type(weight) in (Tensor, nn.Parameter) and torch.is_autocast_enabled(device):
        return weight.to(torch.get_autocast_dtype(device))
    return None
