"""What a forward pass over a few tokens shows of a network: there is no list of models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NUM_TOKENS = 6
NUM_PADS = 2
NEAR = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far two computations of the same logits may differ, as a share of their spread: by the dtype of the weights."""
NEAR_OF_HALF = 0.1


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode until the context ends; then every part of the model has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def has_linear_head(network: Any) -> bool:
    """Whether the logits of a causal language model are a linear map of its last states."""
    ids_1S = _tokens(network, -1)
    with torch.no_grad(), in_eval_mode(network):
        logits = network(input_ids=ids_1S, use_cache=False).logits
        states = network.base_model(input_ids=ids_1S, use_cache=False).last_hidden_state
        product = network.get_output_embeddings()(states)
    # In a plan tensors have no values, and are alike for this function (planning/dry.py).
    share = _apart(product, logits) / (_near(network) * _spread(logits) + 1e-12)
    return torch.allclose(share, torch.zeros_like(share), rtol=0.0, atol=1.0)


def takes_positions(network: Any, pad_token: int) -> bool:
    """Whether a causal language model counts positions as it is told: pads on the left then change nothing.

    A model that counts its input from 0 gives a prompt other logits beside a longer one; one that counts from its pad token on
    needs other numbers than 0, 1, 2, ... Pads on the right change nothing but rounding, which is what is allowed.
    """
    ids_1S = _tokens(network, pad_token)
    pads_1P = torch.full_like(ids_1S[:, :NUM_PADS], pad_token)
    positions_1S = torch.arange(ids_1S.shape[-1], device=ids_1S.device)[None]

    pads = (pads_1P, torch.zeros_like(pads_1P), torch.zeros_like(pads_1P))
    own = (ids_1S, torch.ones_like(ids_1S), positions_1S)

    def logits(*parts: tuple[Tensor, ...]) -> Tensor:
        ids, mask, positions = (torch.cat(each, -1) for each in zip(*parts, strict=True))
        return network(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits

    num = ids_1S.shape[-1]
    with torch.no_grad(), in_eval_mode(network):
        untold, told = network(input_ids=ids_1S, use_cache=False).logits, logits(own)
        before, behind = logits(pads, own)[:, -num:], logits(own, pads)[:, :num]
    allowed = torch.maximum(_near(network) * _spread(untold), 4 * _apart(told, behind))
    return bool(_apart(untold, before) <= allowed)


def _tokens(network: Any, pad_token: int) -> Tensor:
    """A few different tokens from all over the vocabulary, none of them the pad token: ``[1, S]``."""
    table_VD = network.get_input_embeddings().weight
    spread = max(1, len(table_VD) // (NUM_TOKENS + 2))
    ids = [number * spread % len(table_VD) for number in range(1, NUM_TOKENS + 2)]
    return torch.tensor([[each for each in ids if each != pad_token][:NUM_TOKENS]], device=table_VD.device)


def _near(network: Any) -> float:
    return NEAR.get(network.get_input_embeddings().weight.dtype, NEAR_OF_HALF)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How far logits are apart; infinity and NaN are no difference where both have them: a rollout speaks of those."""
    first, second = one.float(), other.float()
    is_same = (first == second) | (first.isnan() & second.isnan())
    return torch.where(is_same, 0.0, first - second).norm()


def _spread(logits: Tensor) -> Tensor:
    """The norm of the finite logits around their mean."""
    values, counted = logits.float(), logits.isfinite()
    mean = torch.where(counted, values, 0.0).sum() / counted.sum()
    return torch.where(counted, values - mean, 0.0).norm()
