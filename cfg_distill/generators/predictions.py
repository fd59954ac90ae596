"""Predictions of a model at every position: logits, or the states and the linear heads that make them.

Shapes: N rows, K codebooks, T positions, V vocabulary, D width of the states, M cells (one codebook at one position).

Over a vocabulary of 49,152 the logits of one training step take gigabytes; the states take megabytes. So a model with a linear
head gives :class:`HiddenStates`, and losses make logits of them for a few cells at a time
(:mod:`cfg_distill.losses.chunked`). A model with a depth decoder gives :class:`DepthStates`, a state for each codebook. A model
whose head is not linear gives :class:`Logits`. All have the same methods.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias, final

import torch
from torch import Tensor, nn

from cfg_distill.generators.linear import product

NEVER = -1e4
"""Added to the logit of a token that cannot be drawn: probability 0 in any precision, and no difference of two is NaN."""


@dataclass
class Head:
    """The linear map from a state to the logits of each codebook.

    Attributes:
        weight_KVD: one matrix per codebook.
        bias_KV: one bias per codebook, or none.
        layer_K: the layers that own the matrices, where each has its own. They multiply, by packed weights while they have
            such.
    """

    weight_KVD: Tensor | Sequence[Tensor]
    bias_KV: Tensor | Sequence[Tensor] | None = None
    layer_K: Sequence[nn.Linear] | None = None

    @classmethod
    def of(cls, layer_K: Sequence[nn.Linear]) -> Head:
        """The head that these layers are, one per codebook: all of them with a bias, or none."""
        biased = layer_K[0].bias is not None
        return cls([layer.weight for layer in layer_K], [layer.bias for layer in layer_K] if biased else None, layer_K)

    def logits(self, states_MD: Tensor, k: int) -> Tensor:
        """Logits of codebook k, ``[..., D]`` to ``[..., V]``."""
        if self.layer_K is not None:
            return self.layer_K[k](states_MD)
        bias_V = None if self.bias_KV is None else self.bias_KV[k]
        return product(states_MD, self.weight_KVD[k], bias_V)

    def all_logits(self, states_NTD: Tensor) -> Tensor:
        """Logits of all codebooks, ``[N, T, D]`` to ``[N, K, T, V]``."""
        return torch.stack([self.logits(states_NTD, k) for k in range(len(self.weight_KVD))], dim=1)


class _OldNames:
    """The methods of `Scored` of version 0.1. To go after the next release."""

    def repeat_interleave(self, times: int) -> Self:
        warnings.warn("`repeat_interleave` of predictions is `repeat` now.", DeprecationWarning, stacklevel=2)
        return self.repeat(times)  # type: ignore[attr-defined]

    def __add__(self, later: Predictions) -> Predictions:
        warnings.warn("The sum of predictions is `join` now: `first.join(later)`.", DeprecationWarning, stacklevel=2)
        return self.join(later)  # type: ignore[attr-defined]


@final
@dataclass(frozen=True, eq=False)
class Logits(_OldNames):
    """Predictions as logits.

    Attributes:
        logits_NKTV: the logits of every cell, ``[N, K, T, V]``.
    """

    logits_NKTV: Tensor

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.logits_NKTV)

    def rows(self, rows: slice) -> Logits:
        """Some of the rows."""
        return Logits(self.logits_NKTV[rows])

    def join(self, later: Predictions) -> Logits:
        """These positions, and then the positions of ``later``."""
        return Logits(torch.cat([self.logits_NKTV, later.whole()], dim=2))

    def repeat(self, times: int) -> Logits:
        """Each row ``times`` times, neighbours together."""
        return Logits(self.logits_NKTV.repeat_interleave(times, dim=0))

    def whole(self) -> Tensor:
        """All logits, ``[N, K, T, V]``."""
        return self.logits_NKTV

    def at(self, k: int, row_M: Tensor, position_M: Tensor) -> Tensor:
        """The logits of some cells of codebook k, ``[M, V]``."""
        return self.logits_NKTV[row_M, k, position_M]


@final
@dataclass(frozen=True, eq=False)
class HiddenStates(_OldNames):
    """Predictions as the states in front of a linear head. The logits are made where they are asked for.

    Attributes:
        states_NTD: the input of the head at every position, ``[N, T, D]``.
        head: the head of these states.
    """

    states_NTD: Tensor
    head: Head

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.states_NTD)

    def rows(self, rows: slice) -> HiddenStates:
        """Some of the rows."""
        return HiddenStates(self.states_NTD[rows], self.head)

    def join(self, later: Predictions) -> Predictions:
        """These positions, and then the positions of ``later``, by the same head."""
        if isinstance(later, Logits):
            return Logits(self.whole()).join(later)
        return HiddenStates(torch.cat([self.states_NTD, later.states(0)], dim=1), self.head)

    def states(self, k: int) -> Tensor:
        """The input of the head of codebook k, ``[N, T, D]``: the same for all codebooks."""
        return self.states_NTD

    def mixed(self, other: HiddenStates | DepthStates, mix: Callable[[Tensor, Tensor], Tensor]) -> HiddenStates:
        """A function of the states of both, in the precision of these, under the head of these."""
        return HiddenStates(mix(self.states_NTD, other.states(0)).to(self.states_NTD.dtype), self.head)

    def repeat(self, times: int) -> HiddenStates:
        """Each row ``times`` times, neighbours together."""
        return HiddenStates(self.states_NTD.repeat_interleave(times, dim=0), self.head)

    def whole(self) -> Tensor:
        """All logits, ``[N, K, T, V]``."""
        return self.head.all_logits(self.states_NTD)

    def at(self, k: int, row_M: Tensor, position_M: Tensor) -> Tensor:
        """The logits of some cells of codebook k, ``[M, V]``; of no other cell are any made."""
        return self.head.logits(self.states_NTD[row_M, position_M], k)


@final
@dataclass(frozen=True, eq=False)
class DepthStates(_OldNames):
    """Predictions of a model with a depth decoder: a codebook is predicted from those before it at the same position.

    Attributes:
        states_KNTD: the input of each codebook's head at every position, ``[N, T, D]`` each. Their widths may differ.
        head: the heads of these states.
    """

    states_KNTD: Sequence[Tensor]
    head: Head

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.states_KNTD[0])

    def _each(self, change: Callable[[Tensor], Tensor]) -> DepthStates:
        return DepthStates([change(states_NTD) for states_NTD in self.states_KNTD], self.head)

    def rows(self, rows: slice) -> DepthStates:
        """Some of the rows."""
        return self._each(lambda states_NTD: states_NTD[rows])

    def join(self, later: Predictions) -> Predictions:
        """These positions, and then the positions of ``later``, by the same heads."""
        if isinstance(later, Logits):
            return Logits(self.whole()).join(later)
        both = [torch.cat([own_NTD, later.states(k)], dim=1) for k, own_NTD in enumerate(self.states_KNTD)]
        return DepthStates(both, self.head)

    def states(self, k: int) -> Tensor:
        """The input of the head of codebook k, ``[N, T, D]``."""
        return self.states_KNTD[k]

    def mixed(self, other: HiddenStates | DepthStates, mix: Callable[[Tensor, Tensor], Tensor]) -> DepthStates:
        """A function of the states of both, in the precision of these, under the heads of these."""
        both = [mix(own_NTD, other.states(k)).to(own_NTD.dtype) for k, own_NTD in enumerate(self.states_KNTD)]
        return DepthStates(both, self.head)

    def repeat(self, times: int) -> DepthStates:
        """Each row ``times`` times, neighbours together."""
        return self._each(lambda states_NTD: states_NTD.repeat_interleave(times, dim=0))

    def whole(self) -> Tensor:
        """All logits, ``[N, K, T, V]``."""
        each = [self.head.logits(states_NTD, k) for k, states_NTD in enumerate(self.states_KNTD)]
        return torch.stack(each, dim=1)

    def at(self, k: int, row_M: Tensor, position_M: Tensor) -> Tensor:
        """The logits of some cells of codebook k, ``[M, V]``; of no other cell are any made."""
        return self.head.logits(self.states_KNTD[k][row_M, position_M], k)


Predictions: TypeAlias = HiddenStates | DepthStates | Logits


def Scored(
    states_NTD: Tensor | None = None, head: Head | None = None, logits_NKTV: Tensor | None = None
) -> Predictions:
    """The name in version 0.1 of :class:`HiddenStates` and :class:`Logits`. To go after the next release."""
    warnings.warn(
        "`Scored` is `HiddenStates(states_NTD, head)` or `Logits(logits_NKTV)` now.", DeprecationWarning, stacklevel=2
    )
    if states_NTD is not None and head is not None:
        return HiddenStates(states_NTD, head)
    if logits_NKTV is None:
        raise TypeError("Expected arguments `states_NTD` and `head`, or `logits_NKTV`, but got none of them.")
    return Logits(logits_NKTV)
