"""The weights of a student as callbacks handle them: by their names in a checkpoint, whole or sharded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def aliases(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same tensor. The two differ only where tensors are tied."""
    first: dict[Any, str] = {}
    return {name: first.setdefault(_place(tensor) or name, name) for name, tensor in weights.items()}


def _place(tensor: Tensor) -> Any:
    # A detached view is a new object on the same memory, so compare the memory; of a sharded tensor that of the local shard.
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return (local.data_ptr(), local.shape, local.stride()) if local.numel() else None


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one. Every process must call this, although Lightning saves the callbacks of rank 0 only."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor on the device of another, cut into its shards where it has some."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
