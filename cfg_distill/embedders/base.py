"""The protocol of an embedder. D is the embedding width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from cfg_distill.audio import Waveform, silent_share
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
        """N outputs to ``[N, D]`` float32, without gradient.

        An encoder gives an empty output a vector too, and mostly one far from all others. Rewards and metrics of diversity
        therefore call :func:`embedded`.
        """

    def degenerate(self, outputs: Sequence[Any]) -> Tensor:
        """Which of N outputs are empty or degenerate, ``[N]`` bool: no pair with one of them earns any diversity.

        By default :func:`is_empty`. Override it where an output may be worthless in other ways; it must need no weights.
        """
        return torch.tensor([is_empty(output) for output in outputs], dtype=torch.bool)


def is_empty(output: Any) -> bool:
    """Whether an output holds nothing: text without a letter or digit, sound that is silent or has no samples.

    Sound is silent when every tenth of a second of it lies below -60 dBFS (:func:`cfg_distill.audio.silent_share`). Any other
    kind of output is never empty.

    Example:
        >>> is_empty(" ..."), is_empty("a"), is_empty(Waveform(torch.zeros(1, 800), 8000))
        (True, False, True)
    """
    if isinstance(output, str):
        return not any(sign.isalnum() for sign in output)
    return isinstance(output, Waveform) and silent_share(output) == 1.0


def embedded(embedder: Embedder, outputs: Sequence[Any]) -> Tensor:
    """The embeddings of N outputs, ``[N, D]``, with the rows of degenerate outputs set to zero.

    A zero vector has distance 0 from everything (:func:`~cfg_distill.embedders.similarity.cosine_distances`) and no cosine with
    anything. So neither a reward nor a metric pays for an empty sample, whatever vector the encoder gives it.
    """
    embedding_ND = embedder.embed(outputs)
    degenerate_N = embedder.degenerate(outputs).to(embedding_ND.device)
    return embedding_ND.masked_fill(degenerate_N.unsqueeze(-1), 0.0)


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
