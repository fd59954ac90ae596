"""The protocol of an embedder. D is the embedding width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.folders import problems_of_folder


class Embedder(nn.Module, ABC):
    """A frozen model that maps decoded outputs to vectors. Constructing one loads no weights; :meth:`load` does."""

    @abstractmethod
    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""

    @abstractmethod
    def load(self) -> Self:
        """Load the weights; does nothing the second time."""

    @abstractmethod
    def embed(self, outputs: Sequence[Any]) -> Tensor:
        """N outputs to ``[N, D]`` float32, without gradient."""


def problems_of_path(path: str) -> list[Problem]:
    """Why the folder or hub name under an embedder's key ``path`` cannot be loaded."""
    return [problem.under("path") for problem in problems_of_folder(path)]


def texts_of(reader: str, outputs: Sequence[Any]) -> list[str]:
    """The outputs, which must be texts.

    Args:
        reader: who reads them, for the message.
        outputs: what a generator decoded.

    Raises:
        ConfigError: one is no text.
    """
    if wrong := [output for output in outputs if not isinstance(output, str)]:
        raise ConfigError(
            f"{reader}: expected text, but the model writes a {type(wrong[0]).__name__}. Use one that reads it; for sound see"
            " recipes/musicgen/metrics.yaml."
        )
    return list(outputs)
