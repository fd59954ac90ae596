"""Samples whose outputs are outcomes of a tiny policy, and an embedder that looks their vectors up."""

from collections.abc import Callable, Sequence
from typing import Self

import pytest
import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples


class Lookup(Embedder):
    """Outputs are row numbers of a table. Those in ``empty`` are degenerate, whatever their vector."""

    def __init__(self, table_VD: Tensor, empty: Sequence[int] = ()) -> None:
        super().__init__()
        self.table_VD = torch.nn.Buffer(table_VD)
        self.empty = empty

    def problems(self) -> list[str]:
        return []

    def load(self) -> Self:
        return self

    def embed(self, outputs: Sequence[int]) -> Tensor:
        return self.table_VD[torch.tensor(outputs)]

    def degenerate(self, outputs: Sequence[int]) -> Tensor:
        return torch.tensor([output in self.empty for output in outputs])


def _samples(outcomes_BG: Tensor) -> Samples:
    tokens_BGKT = outcomes_BG[..., None, None]
    rollout = Rollout(tokens_BGKT, torch.ones_like(tokens_BGKT).bool(), torch.zeros(tokens_BGKT.shape))
    return Samples([f"prompt {row}" for row in range(len(outcomes_BG))], outcomes_BG.flatten().tolist(), rollout)


@pytest.fixture
def lookup() -> type[Lookup]:
    return Lookup


@pytest.fixture
def samples_of() -> Callable[[Tensor], Samples]:
    return _samples


@pytest.fixture
def expected_gradient() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """E[(1/G) sum_i advantage_i * grad log p(y_i)] over ALL groups of a softmax policy, given the advantage of each."""

    def gradient(theta_V: Tensor, outcomes_BG: Tensor, advantage_BG: Tensor) -> Tensor:
        p_V = theta_V.softmax(-1).double()
        score_VV = torch.eye(len(theta_V)) - p_V  # d log p(v) / d theta
        probability_B = p_V[outcomes_BG].prod(-1)
        group = outcomes_BG.shape[1]
        return torch.einsum("b,bg,bgv->v", probability_B, advantage_BG.double(), score_VV[outcomes_BG]) / group

    return gradient


@pytest.fixture
def all_groups() -> Callable[[int, int], Tensor]:
    """Every group of G outcomes out of V, ``[V ** G, G]``."""
    return lambda num_outcomes, group: torch.cartesian_prod(*[torch.arange(num_outcomes)] * group)
