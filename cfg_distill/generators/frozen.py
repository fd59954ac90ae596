"""One box for frozen models: a module that holds it neither saves, moves nor trains what is inside."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

import torch
from torch import nn

from cfg_distill.errors import ConfigError, without_base_init

T = TypeVar("T")


class Frozen(Generic[T]):
    """A frozen model out of sight of ``nn.Module``.

    A module registers every module among its attributes: it then stands in each checkpoint and goes into train mode with the
    rest. A box is no module. So its model is in no state dict and no list of parameters, and stays in eval mode. A copy of
    the holder shares the model, and pickling the holder takes the model along. Nobody moves the model: ask for it with
    :meth:`on`.

    Args:
        model: a module, which is frozen here and put into eval mode; or anything else that holds frozen weights.

    Example:
        >>> class Holder(nn.Module):
        ...     def __init__(self, judge: nn.Module) -> None:
        ...         super().__init__()
        ...         self.judge = Frozen(judge)
        >>> holder = Holder(nn.Linear(2, 1)).train()
        >>> holder.judge.model.training, holder.state_dict(), list(holder.parameters())
        (False, OrderedDict(), [])
    """

    def __init__(self, model: T) -> None:
        if said := without_base_init(model):
            raise ConfigError(said)
        self.model = model
        self._freeze()

    def on(self, device: torch.device) -> T:
        """The model on a device; frozen again, since its weights may have been loaded after it was put in here."""
        self._freeze()
        if isinstance(self.model, nn.Module):
            self.model.to(device)
        return self.model

    def _freeze(self) -> None:
        if isinstance(self.model, nn.Module):
            self.model.requires_grad_(False).eval()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
