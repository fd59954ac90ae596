"""A linear layer with an adapter that makes no more activations than it must. Importing this imports peft."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from cfg_distill.generators.linear import replace_layers
from cfg_distill.generators.lora import NAME


class AdaptedLinear(PeftLinear):
    """peft's layer, to the bit. The change is scaled and added to in place, so two activations are made and not four.

    .. math:: y = W x + b + s\\, B A x, \\qquad s = \\alpha / R
    """

    @classmethod
    def of(cls, layer: PeftLinear) -> AdaptedLinear:
        """A layer with the state of peft's: the very parameters, mode and hooks."""
        own = cls.__new__(cls)
        own.__setstate__(vars(layer))
        return own

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adds = not self.disable_adapters and not self.merged and self.active_adapters == [NAME]
        if args or kwargs or not adds or NAME in self.lora_variant:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x)
        factor_a: Any = self.lora_A[NAME]
        factor_b: Any = self.lora_B[NAME]
        rows = self._cast_input_dtype(x, factor_a.weight.dtype)
        change, scale = factor_b(factor_a(self.lora_dropout[NAME](rows))), self.scaling[NAME]
        # oneDNN's product of a large rank is a view made by a function of ours, which autograd lets nobody write into.
        if change._is_view() or torch.promote_types(change.dtype, result.dtype) != change.dtype:
            return (result + change * scale).to(result.dtype)
        return change.mul_(scale).add_(result).to(result.dtype)


def use_adapted(model: nn.Module) -> None:
    """Put an :class:`AdaptedLinear` in place of each of peft's linear layers inside a model. All else about them stays."""
    replace_layers(model, PeftLinear, AdaptedLinear.of)
