"""The protocol of a generator. Shapes: N rows (B prompts x G samples), K codebooks, T generated positions, V vocabulary.

A *stream* is whatever yields logits for tokens: a generator, or a generator under guidance. Sampling and the losses
know streams only, so that a new way to mix models is a new stream and nothing else.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


@dataclass
class Encoded:
    """Prompts ready for a generator: tensors that share their first dimension, one row a prompt."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def repeat_interleave(self, repeats: int) -> Encoded:
        """Each row ``repeats`` times, neighbours together: prompts to groups."""
        return Encoded({name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()})


@dataclass
class DecodingState:
    """Where incremental decoding stands: the KV cache, and what else the generator must remember between steps."""

    cache: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def repeat_interleave(self, repeats: int) -> DecodingState:
        """Each row ``repeats`` times: the prompt is computed once, its cache serves the whole group."""
        self.cache.batch_repeat_interleave(repeats)
        tensors = {name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()}
        return DecodingState(self.cache, tensors)


class Stream(Protocol):
    """Logits of tokens, at once or step by step."""

    num_codebooks: int
    end_token: int | None
    pad_token: int

    def prefill(self, prompts: Sequence[str | None], repeats: int) -> tuple[Any, Tensor]:
        """Read the prompts, each once, and open ``repeats`` continuations of each.

        Returns the state of ``N = len(prompts) * repeats`` rows and the logits of their first token, ``[N, K, V]``.
        """

    def step(self, state: Any, tokens_NK: Tensor) -> tuple[Any, Tensor]:
        """Append one position of tokens; returns the state and the logits of the next one, ``[N, K, V]``."""

    def logits(self, prompts: Sequence[str | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Tensor:
        """Logits of every generated position at once, ``[N, K, T, V]``, row n belonging to prompt n // (N / B).

        Values at masked cells are arbitrary.
        """


class Generator(nn.Module, ABC):
    """An adapter over a transformers model, never a fork of it. Constructing one loads no weights; :meth:`load` does.

    Attributes:
        model: the transformers network; set by :meth:`load`.
        num_codebooks: K; 1 for text.
        end_token: the token after which a sample is finished; None when all samples have the full length.
        pad_token: fills the cells behind the end token.
    """

    model: nn.Module
    num_codebooks: int = 1
    end_token: int | None = None
    pad_token: int = 0

    @abstractmethod
    def problems(self) -> list[str]:
        """What is wrong with the settings, a sentence each, found without loading weights."""

    @abstractmethod
    def load(self) -> Self:
        """Load the weights; does nothing the second time.

        Raises:
            ConfigError: the folder or hub name cannot be loaded.
        """

    @abstractmethod
    def load_weights(self, folder: str) -> None:
        """Take the weights of another folder of the same architecture.

        Raises:
            ConfigError: names or shapes differ.
        """

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """Positions the model can see, prompt included; None without a limit. Known before the weights are."""

    @abstractmethod
    def encode(self, prompts: Sequence[str | None]) -> Encoded:
        """Prompts as tensors on the model's device. None stands for the unconditional prompt.

        Raises:
            ConfigError: a prompt that the model cannot read.
        """

    @abstractmethod
    def prefill(self, prompts: Sequence[str | None], repeats: int) -> tuple[DecodingState, Tensor]:
        """See :meth:`Stream.prefill`."""

    @abstractmethod
    def step(self, state: DecodingState, tokens_NK: Tensor) -> tuple[DecodingState, Tensor]:
        """See :meth:`Stream.step`."""

    @abstractmethod
    def logits(self, prompts: Sequence[str | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Tensor:
        """See :meth:`Stream.logits`."""

    @abstractmethod
    def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[Any]:
        """Tokens to what a person reads or hears: N texts or waveforms."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write a plain Hugging Face folder that transformers alone loads and that asks for no guidance."""

    @abstractmethod
    def frozen_copy(self) -> Self:
        """The teacher: the same weights, never to move."""

    def spec(self) -> dict[str, Any]:
        """The class path and plain arguments that make this generator again; checkpoints carry it for the export."""
        kind = type(self)
        init_args = {name: getattr(self, name) for name in inspect.signature(kind).parameters}
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": init_args}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device
