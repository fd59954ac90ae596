"""What is frozen in a model, and the proof that it stays so."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def trained_names(module: nn.Module) -> set[str]:
    """The names of a state dict that training moves.

    All, buffers included, of a model whose parameters are all trained; of one with frozen parameters those that are not: its
    buffers belong to the frozen part.
    """
    state = module.state_dict(keep_vars=True)
    trained = {name for name, tensor in state.items() if tensor.requires_grad}
    frozen = any(isinstance(tensor, nn.Parameter) and not tensor.requires_grad for tensor in state.values())
    return trained if frozen else set(state)
