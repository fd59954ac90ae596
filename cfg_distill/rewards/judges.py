"""Which parts of a loss are frozen judges, although they lie in no box."""

from __future__ import annotations

from torch import nn

from cfg_distill.embedders import Embedder
from cfg_distill.rewards.base import Reward
from cfg_distill.rewards.running import RunningMean


def judges_of(loss: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """Frozen models among the submodules of a loss, by their names: embedders, and modules whose weights are all frozen.

    A reward may have no weights but the weights of its judge, and still have a running mean that is learnt: it is no judge.

    Args:
        loss: the holder.
        prefix: the holder's name.
    """
    found = {}
    for name, part in loss.named_modules():
        parameters = list(part.parameters())
        learns = any(isinstance(each, Reward | RunningMean) for each in part.modules())
        is_frozen = bool(parameters) and not learns and not any(p.requires_grad for p in parameters)
        if name and (is_frozen or isinstance(part, Embedder)):
            found[f"{prefix}.{name}"] = part
    return found
