"""The protocol of a generator. Shapes: N rows (B prompts x G samples), K codebooks, T generated positions, V vocabulary.

A *predictor* is whatever predicts tokens: a generator, or a generator under guidance. Sampling and the losses
know predictors only, so that a new way to mix models is a new predictor and nothing else.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from cfg_distill.folders import problems_of_folder
from cfg_distill.generators.growing_cache import cache_argument
from cfg_distill.generators.lora import LoRA, merge_adapter, problems_of_base, without_adapter
from cfg_distill.generators.predictions import Predictions


@dataclass
class Encoded:
    """Prompts ready for a generator: tensors that share their first dimension, one row per prompt."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def repeat_interleave(self, repeats: int) -> Encoded:
        """Each row ``repeats`` times, neighbours together: prompts to groups."""
        return Encoded({name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()})


@dataclass
class DecodingState:
    """The state of incremental decoding: the key-value cache, and what else the generator needs at the next step."""

    cache: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def repeat_(self, repeats: int) -> None:
        """Repeat each row, in place: the prompt is computed once, its cache serves the whole group."""
        self.cache.batch_repeat_interleave(repeats)
        self.tensors = {name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()}

    def keep_(self, rows_M: Tensor) -> None:
        """Keep only some rows, by their indices, in place."""
        self.cache.batch_select_indices(rows_M)
        self.tensors = {name: tensor[rows_M] for name, tensor in self.tensors.items()}

    def repeat_interleave(self, repeats: int) -> DecodingState:
        """The name in version 0.1 of :meth:`repeat_`. To go after the next release."""
        warnings.warn("`DecodingState.repeat_interleave` is `repeat_` now.", DeprecationWarning, stacklevel=2)
        self.repeat_(repeats)
        return self

    def keep(self, rows_M: Tensor) -> DecodingState:
        """The name in version 0.1 of :meth:`keep_`. To go after the next release."""
        warnings.warn("`DecodingState.keep` is `keep_` now.", DeprecationWarning, stacklevel=2)
        self.keep_(rows_M)
        return self


class Predictor(Protocol):
    """Predictions of tokens, at once or step by step.

    Tokens live in the layout of :mod:`cfg_distill.generators.delay`: at position t, codebook k holds frame ``t - delays[k]``.
    """

    delays: tuple[int, ...]
    end_tokens: tuple[int, ...]
    pad_token: int

    def prefill(self, prompts: Sequence[str | None], repeats: int) -> tuple[Any, Predictions]:
        """Read the prompts, each once, and begin ``repeats`` continuations of each.

        Returns the state of ``N = len(prompts) * repeats`` rows and the predictions of their first position (T = 1).
        """

    def step(self, state: Any, tokens_NK: Tensor) -> tuple[Any, Predictions]:
        """Append one position of tokens; returns the state and the predictions of the next position (T = 1).

        The state that was passed in is used up.
        """

    def keep(self, state: Any, rows_M: Tensor) -> Any:
        """The state of some rows, by their indices: the others are finished. The state that was passed in is used up."""

    def predictions(self, prompts: Sequence[str | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        """Predictions at every generated position at once, row n belonging to prompt n // (N / B).

        Values at masked cells are arbitrary.
        """


Stream = Predictor
"""The name of :class:`Predictor` in version 0.1. To go after the next release."""


class AcceptsScored:
    """Predictors of version 0.1 call :meth:`Predictor.predictions` by the name ``scored``. To go after the next release.

    A class that defines ``scored`` gets it as ``predictions``; a class that defines ``predictions`` can be asked by both
    names, and ``super().scored(...)`` asks its own.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = vars(cls)
        if "predictions" in own:
            cls.scored = _by_the_old_name(own["predictions"])  # type: ignore[attr-defined]
        elif "scored" in own:
            name = f"{cls.__module__}.{cls.__qualname__}"
            warnings.warn(f"The method `scored` of `{name}` is `predictions` now.", DeprecationWarning, stacklevel=2)
            cls.predictions = own["scored"]  # type: ignore[attr-defined]


def _by_the_old_name(predictions: Callable[..., Predictions]) -> Callable[..., Predictions]:
    def scored(self: Any, *arguments: Any, **named: Any) -> Predictions:
        warnings.warn("The method `scored` is `predictions` now.", DeprecationWarning, stacklevel=2)
        return predictions(self, *arguments, **named)

    return scored


class Generator(AcceptsScored, nn.Module, ABC):
    """An adapter over a transformers model, never a fork of it. Constructing one loads no weights; :meth:`load` does.

    Attributes:
        model: the transformers network; set by :meth:`load`.
        delays: the delay of each codebook in positions, the first 0; ``(0,)`` for text.
        end_tokens: the tokens (of codebook 0) after any of which a sample is finished; none when all have the full length.
        pad_token: fills the cells that do not exist: behind the end token, and before a delayed codebook begins.
        sample_rate: of the waveforms that :meth:`decode` returns, in Hz; None for text.
        frame_rate: frames a second of sound; None for text.
        path: the folder or hub name of the start model.
        takes_system: whether prompts may come with a system message, as the condition ``system``; known before the weights
            are.
        shortest_prompt: positions of :attr:`max_positions` that any prompt takes at least; 0 where prompts take none.
        dtype: of the weights, other than float32 with an adapter only where something is trained.
        lora: the adapter that is trained, with everything else frozen; None when all weights are trained.
        adapter_prefix: where :attr:`model` lies in the model that adapter folders are for: ``decoder.`` where it is a part.
    """

    model: nn.Module
    path: str
    lora: LoRA | None = None
    dtype: str = "float32"
    adapter_prefix: str = ""
    delays: tuple[int, ...] = (0,)
    end_tokens: tuple[int, ...] = ()
    pad_token: int = 0
    sample_rate: int | None = None
    frame_rate: float | None = None
    takes_system: bool = False
    shortest_prompt: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.training = False  # torch's default would switch dropout on in a script that only loads and calls

    @property
    def loaded(self) -> bool:
        """Whether :meth:`load` has made :attr:`model`."""
        return "model" in self._modules

    @cached_property
    def cache_argument(self) -> str:
        """The name by which :attr:`model` takes its key-value cache, and so do its parts; see :func:`cache_argument`."""
        return cache_argument(self.model)

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.delays)

    @abstractmethod
    def problems(self) -> list[str]:
        """What is wrong with the settings, a sentence each, found without loading weights."""

    @abstractmethod
    def load(self) -> Self:
        """Load the weights, in eval mode; does nothing the second time.

        Raises:
            ConfigError: the folder or hub name cannot be loaded.
        """

    @abstractmethod
    def load_weights(self, folder: str) -> None:
        """Take the weights of another folder of the same architecture; a LoRA student takes an adapter of its base.

        Raises:
            ConfigError: names or shapes differ.
        """

    def problems_of_start(self, folder: str) -> list[str]:
        """Why :meth:`load_weights` could not take a folder, a sentence each, found without loading weights."""
        found = problems_of_folder("model.start", folder)
        if found or self.lora is None:
            return found
        return self.problems_of_base(folder, "model.start") or self.lora.problems_of_rank(folder)

    def problems_of_base(self, folder: str, key: str) -> list[str]:
        """Why a folder is no adapter of this generator's base, a sentence each."""
        return problems_of_base(folder, self.path, key)

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """Positions the model can see, prompt included; None without a limit. Known before the weights are."""

    @property
    def reserved_positions(self) -> int:
        """Positions of :attr:`max_positions` that are no prompt's and no frame's: those of the longest delay.

        Override where the model takes more. Known before the weights are.
        """
        return max(self.delays)

    @property
    def longest_sample(self) -> int | None:
        """Frames or tokens of the longest sample of any prompt; None without a limit. Known before the weights are."""
        if self.max_positions is None:
            return None
        return self.max_positions - self.reserved_positions - self.shortest_prompt

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Why there can be no samples of these prompts, a sentence each, known before the weights are.

        Override where a prompt can be wrong: too long for a text encoder, without the melody that it needs, and so on.
        """
        return []

    def prompt_positions(self, prompts: Sequence[str | None]) -> int:
        """Positions of :attr:`max_positions` that the longest of the prompts takes, negative ones among them.

        Override where a prompt takes none, and where it can be told before the weights are loaded.

        Raises:
            ConfigError: a prompt that the model cannot read.
        """
        return max(tensor.shape[-1] for tensor in self.encode(prompts).tensors.values())

    @abstractmethod
    def encode(self, prompts: Sequence[str | None]) -> Encoded:
        """Prompts as tensors on the model's device. None stands for the unconditional prompt.

        Raises:
            ConfigError: a prompt that the model cannot read.
        """

    @abstractmethod
    def prefill(self, prompts: Sequence[str | None], repeats: int) -> tuple[DecodingState, Predictions]:
        """See :meth:`Predictor.prefill`."""

    @abstractmethod
    def step(self, state: DecodingState, tokens_NK: Tensor) -> tuple[DecodingState, Predictions]:
        """See :meth:`Predictor.step`."""

    def keep(self, state: DecodingState, rows_M: Tensor) -> DecodingState:
        """See :meth:`Predictor.keep`."""
        state.keep_(rows_M)
        return state

    @abstractmethod
    def predictions(self, prompts: Sequence[str | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Predictions:
        """See :meth:`Predictor.predictions`."""

    def logits(self, prompts: Sequence[str | None], tokens_NKT: Tensor, mask_NKT: Tensor) -> Tensor:
        """Logits at every generated position, ``[N, K, T, V]``; arbitrary at masked cells."""
        return self.predictions(prompts, tokens_NKT, mask_NKT).whole()

    @abstractmethod
    def decode(self, tokens_NKT: Tensor, mask_NKT: Tensor) -> list[Any]:
        """Tokens to what a person reads or hears: N texts or waveforms."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write a plain Hugging Face folder that transformers alone loads and that asks for no guidance.

        Of a LoRA student: an adapter folder in peft's format.
        """

    def frozen_copy(self) -> Self:
        """The teacher: the same weights, never to move. That of a LoRA student is the base, on the student's own tensors."""
        model = copy.deepcopy(self.model) if self.lora is None else without_adapter(self.model)
        frozen = copy.copy(self)
        frozen.lora = None
        frozen.training = False
        frozen._modules = {"model": model.requires_grad_(False).eval()}
        return frozen

    def merge_adapter(self) -> Self:
        """Add the adapter to the weights: a generator without LoRA that samples as before."""
        if self.lora is not None:
            merge_adapter(self.model)
            self.lora = None
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device
