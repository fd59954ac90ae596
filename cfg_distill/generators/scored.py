"""What a model predicts at every position: logits, or the states and the linear head that make them.

Shapes: N rows, K codebooks, T positions, V vocabulary, D width of the states, M cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfg_distill.generators.products import product


@dataclass
class Head:
    """The linear map from a state to the logits of each codebook.

    Attributes:
        weight_KVD: one matrix a codebook, a parameter itself where there can be a packed one of it.
        bias_KV: one bias a codebook, or none.
    """

    weight_KVD: Tensor | Sequence[Tensor]
    bias_KV: Tensor | Sequence[Tensor] | None = None

    def logits(self, states_MD: Tensor, k: int) -> Tensor:
        """Logits of codebook k, ``[..., D]`` to ``[..., V]``."""
        bias_V = None if self.bias_KV is None else self.bias_KV[k]
        return product(states_MD, self.weight_KVD[k], bias_V)

    def all_logits(self, states_NTD: Tensor) -> Tensor:
        """Logits of all codebooks, ``[N, T, D]`` to ``[N, K, T, V]``."""
        return torch.stack([self.logits(states_NTD, k) for k in range(len(self.weight_KVD))], dim=1)


@dataclass
class Scored:
    """Predictions at every generated position, ``[N, K, T]``, whose logits need not exist.

    Over a vocabulary of 49,152 the logits of one training step take gigabytes; the states take megabytes. Losses turn the
    states into logits a few cells at a time (:mod:`cfg_distill.losses.chunked`). A model whose head is not linear gives
    logits.

    Attributes:
        states_NTD: what the head reads; None when there are only logits.
        head: the head of these states.
        logits_NKTV: the logits; None while there are only states.
    """

    states_NTD: Tensor | None = None
    head: Head | None = None
    logits_NKTV: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        tensor = self.logits_NKTV if self.states_NTD is None else self.states_NTD
        assert tensor is not None
        return len(tensor)

    def __add__(self, later: Scored) -> Scored:
        """These positions, and then those of ``later``, by the same head."""
        if self.states_NTD is None or later.states_NTD is None:
            return Scored(logits_NKTV=torch.cat([self.whole(), later.whole()], dim=2))
        return Scored(torch.cat([self.states_NTD, later.states_NTD], dim=1), self.head)

    def rows(self, rows: slice) -> Scored:
        """Some of the rows."""
        states_NTD = None if self.states_NTD is None else self.states_NTD[rows]
        logits_NKTV = None if self.logits_NKTV is None else self.logits_NKTV[rows]
        return Scored(states_NTD, self.head, logits_NKTV)

    def repeat_interleave(self, repeats: int) -> Scored:
        """Each row ``repeats`` times, neighbours together."""
        states_NTD = None if self.states_NTD is None else self.states_NTD.repeat_interleave(repeats, dim=0)
        logits_NKTV = None if self.logits_NKTV is None else self.logits_NKTV.repeat_interleave(repeats, dim=0)
        return Scored(states_NTD, self.head, logits_NKTV)

    def whole(self) -> Tensor:
        """All logits, ``[N, K, T, V]``."""
        if self.logits_NKTV is not None:
            return self.logits_NKTV
        assert self.states_NTD is not None and self.head is not None
        return self.head.all_logits(self.states_NTD)
