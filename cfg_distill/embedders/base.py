"""The protocol of an embedder. D is the embedding width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from cfg_distill.audio import Waveform, silent_share
from cfg_distill.errors import ConfigError, Context, PartError, Problem
from cfg_distill.folders import problems_of_folder


class Embedder(nn.Module, ABC):
    """A frozen model that maps decoded outputs to vectors. Constructing one loads no weights; :meth:`load` does."""

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""
        return []

    def load(self) -> Self:
        """Load the weights; does nothing the second time."""
        return self

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

    Raises:
        ConfigError: the embedder returned something else than float32 ``[N, D]`` without gradient, and bool ``[N]``.
        PartError: the embedder raised an exception.
    """
    try:
        embedding_ND, degenerate_N = embedder.embed(outputs), embedder.degenerate(outputs)
    except ConfigError:
        raise
    except Exception as error:
        raise PartError(type(embedder).__name__, outputs=_failing(embedder, outputs, error)) from error
    name, number = type(embedder).__name__, len(outputs)
    if not isinstance(embedding_ND, Tensor) or (
        (embedding_ND.ndim, len(embedding_ND), embedding_ND.dtype, embedding_ND.requires_grad)
        != (2, number, torch.float32, False)
    ):
        text = f"expected `embed` of {name} to be [N, D] = [{number}, D], float32, without gradient, but got"
        raise ConfigError(Problem("", f"{text} {described(embedding_ND)}."))
    if not isinstance(degenerate_N, Tensor) or (degenerate_N.shape, degenerate_N.dtype) != ((number,), torch.bool):
        text = f"expected `degenerate` of {name} to be [N] = [{number}], bool, but got"
        raise ConfigError(Problem("", f"{text} {described(degenerate_N)}."))
    return embedding_ND.masked_fill(degenerate_N.to(embedding_ND.device).unsqueeze(-1), 0.0)


def described(value: Any) -> str:
    """Shape, dtype and gradient of a tensor, or what stands in its place: for messages."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{list(value.shape)}, {dtype}{', with gradient' if value.requires_grad else ''}"


def _failing(embedder: Embedder, outputs: Sequence[Any], error: Exception) -> range:
    """The number of the first output on which an embedder fails in the same way; none if that is unknown."""
    try:
        for number, output in enumerate(outputs):
            try:
                embedder.embed([output])
                embedder.degenerate([output])
            except type(error):
                return range(number, number + 1)
    except Exception:
        return range(0)  # it fails in another way
    return range(0)


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
