"""A number that changes when any weight of a module does."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from cfg_distill.checkpoints.shards import local


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers of a module; of its own shards on each process."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(local(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
