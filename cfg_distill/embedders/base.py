"""The protocol of an embedder. D is the embedding width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn


class Embedder(nn.Module, ABC):
    """A frozen model that maps decoded outputs to vectors. Constructing one loads no weights; :meth:`load` does."""

    @abstractmethod
    def problems(self) -> list[str]:
        """What is wrong with the settings, a sentence each, found without loading weights."""

    @abstractmethod
    def load(self) -> Self:
        """Load the weights; does nothing the second time."""

    @abstractmethod
    def embed(self, outputs: Sequence[Any]) -> Tensor:
        """N outputs to ``[N, D]`` float32, without gradient."""
