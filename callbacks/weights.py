"""The weights of a student as callbacks handle them: by their names in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cfg_distill.checkpoints.shards import local


def aliases(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same tensor. The two differ only where tensors are tied."""
    first: dict[Any, str] = {}
    return {name: first.setdefault(_place(tensor) or name, name) for name, tensor in weights.items()}


def _place(tensor: Tensor) -> Any:
    # A detached view is a new object on the same memory, so compare the memory; of a sharded tensor that of the local shard.
    rows = local(tensor)
    return (rows.data_ptr(), rows.shape, rows.stride()) if rows.numel() else None
