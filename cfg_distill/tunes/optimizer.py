"""Muon for the matrices of a network, AdamW for the rest, as one optimiser."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """The parameters in two groups: matrices that multiply, and the rest (embeddings, gains), without weight decay."""
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim == 2 and id(parameter) not in embeddings]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in parameters if id(parameter) not in chosen]
    return [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]


class MuonAdamW(torch.optim.Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon) on the first parameter group, AdamW on the others.

    Muon makes the update of a matrix orthogonal. On the tunes 350 steps of it reach a validation NLL for which AdamW
    needs about twice as many (docs/tunes.md). Both halves are torch's own; the step of Muon is scaled to the size of
    AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate is of one kind.

    Args:
        params: parameter groups, the matrices first (see :func:`parameter_groups`).
        lr: learning rate of the matrices.
        rest_lr: of everything else.
        weight_decay: of the matrices.
        momentum: of Muon.
        betas: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 4e-3,
        rest_lr: float = 3e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        matrices, *rest = [dict(group) for group in params]
        self.muon = torch.optim.Muon(
            [matrices], lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(rest, lr=rest_lr, betas=betas, weight_decay=0.0)
        super().__init__([{"params": group["params"]} for group in (matrices, *rest)], {})
        self._share()

    def _share(self) -> None:
        """The groups are those of the halves, so that a scheduler that sets a learning rate here sets it there."""
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share()
